package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/policy"
)

// Flow is a connection to be decided. Both addresses are of the same family.
type Flow struct {
	Src, Dst netip.Addr
	Protocol policy.Protocol
	Port     uint16 // destination port, host byte order; 0 for protocols without ports
}

func (f Flow) String() string {
	return fmt.Sprintf("%s → %s %s/%d", f.Src, f.Dst, f.Protocol, f.Port)
}

// Decide asks a decider about the flow: oracle.Decide or a tree behind a closure.
func (f Flow) Decide(decide func(src, dst netip.Addr, proto policy.Protocol, port uint16) policy.Decision) policy.Decision {
	return Comparable(decide(f.Src, f.Dst, f.Protocol, f.Port))
}

// Comparable returns a decision without the IDs of its outcomes: which place they
// have among all of a tree says nothing about the connection.
func Comparable(d policy.Decision) policy.Decision {
	for _, o := range []**policy.Outcome{&d.Egress, &d.Ingress} {
		plain := **o
		plain.ID = 0
		*o = &plain
	}
	return d
}

// RandomFlow draws a connection that is likely to be decided wrongly: between
// pods, nodes and the edges of CIDRs, at the edges of port ranges, over every
// protocol including those that policies do not know.
func RandomFlow(rng *rand.Rand, s *policy.Snapshot) Flow {
	f := Flow{Protocol: randomProtocol(rng)}
	f.Src = randomAddr(rng, s)
	f.Dst = f.Src
	for range 20 { // a lone family may have a single address: then the flow is to itself
		if d := randomAddr(rng, s); d.Is4() == f.Src.Is4() {
			f.Dst = d
			break
		}
	}
	if f.Protocol.HasPorts() {
		f.Port = randomPort(rng, s)
	}
	return f
}

func randomProtocol(rng *rand.Rand) policy.Protocol {
	switch n := rng.IntN(100); {
	case n < 55:
		return policy.TCP
	case n < 72:
		return policy.UDP
	case n < 86:
		return policy.SCTP
	case n < 92:
		return policy.ICMP
	case n < 96:
		return policy.ICMPv6
	}
	return policy.Protocol(rng.IntN(256))
}

// randomAddr prefers pods, since only they have rules.
func randomAddr(rng *rand.Rand, s *policy.Snapshot) netip.Addr {
	var held []netip.Addr
	for _, p := range s.Pods {
		held = append(held, p.Addrs...)
	}
	switch n := rng.IntN(100); {
	case n < 65 && len(held) > 0:
		return pick(rng, held)
	case n < 85:
		return pick(rng, interestingAddrs(s))
	}
	if edges := edgeAddrs(s); len(edges) > 0 {
		return pick(rng, edges)
	}
	return pick(rng, outside)
}

// edgeAddrs are the first and last addresses of all prefixes in the snapshot and
// the addresses just outside of them.
func edgeAddrs(s *policy.Snapshot) []netip.Addr {
	var addrs []netip.Addr
	add := func(p netip.Prefix) {
		first, last := p.Masked().Addr(), lastAddr(p)
		for _, a := range []netip.Addr{first.Prev(), first, last, last.Next()} {
			if a.IsValid() {
				addrs = append(addrs, a)
			}
		}
	}
	for _, p := range s.LocalPodCIDRs {
		add(p)
	}
	for _, b := range ipBlocks(s) {
		for _, cidr := range append([]string{b.CIDR}, b.Except...) {
			add(netip.MustParsePrefix(cidr))
		}
	}
	return addrs
}

// lastAddr sets all host bits.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b) // always 4 or 16 bytes
	return a
}

// randomPort draws a number that rules or pods name, or one beside it.
func randomPort(rng *rand.Rand, s *policy.Snapshot) uint16 {
	candidates := append([]uint16{0}, portNumbers...)
	for _, p := range policyPorts(s) {
		if p.Port == nil || p.Port.Type != intstr.Int {
			continue
		}
		last := p.Port.IntVal
		if p.EndPort != nil {
			last = *p.EndPort
		}
		for _, n := range []int32{p.Port.IntVal - 1, p.Port.IntVal, last, last + 1} {
			if n >= 0 && n <= 65535 {
				candidates = append(candidates, uint16(n))
			}
		}
	}
	return pick(rng, candidates)
}

// eachRule calls visit with the parts of every rule of every policy.
func eachRule(s *policy.Snapshot, visit func([]networkingv1.NetworkPolicyPort, []networkingv1.NetworkPolicyPeer)) {
	for _, np := range s.Policies {
		for _, r := range np.Spec.Ingress {
			visit(r.Ports, r.From)
		}
		for _, r := range np.Spec.Egress {
			visit(r.Ports, r.To)
		}
	}
}

func policyPorts(s *policy.Snapshot) (all []networkingv1.NetworkPolicyPort) {
	eachRule(s, func(ports []networkingv1.NetworkPolicyPort, _ []networkingv1.NetworkPolicyPeer) {
		all = append(all, ports...)
	})
	return all
}

func ipBlocks(s *policy.Snapshot) (all []*networkingv1.IPBlock) {
	eachRule(s, func(_ []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer) {
		for _, p := range peers {
			if p.IPBlock != nil {
				all = append(all, p.IPBlock)
			}
		}
	})
	return all
}
