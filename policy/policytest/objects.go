package policytest

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/netverdict/netverdict/policy"
)

// The vocabulary is tiny so that selectors and objects meet often. The empty
// label value is valid and differs from an absent label.
var (
	podKeys         = []string{"app", "role"}
	namespaceKeys   = []string{"env", "team"}
	labelValues     = []string{"a", "b", "c", ""}
	portNames       = []string{"http", "dns", "metrics"}
	missingPortName = "nowhere"
	portNumbers     = []uint16{1, 53, 80, 81, 443, 8080, 8081, 9090, 65535}
	transports      = []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP}
)

// epoch is the creation time of the oldest objects; ages differ by few minutes,
// so that pods of the same age are common.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const metadataName = "kubernetes.io/metadata.name"

func namespaceName(i int) string { return "ns-" + string(rune('a'+i)) }
func nodeName(i int) string      { return fmt.Sprintf("node-%d", i) }

func podRange4(node int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(node), 0}), 28)
}

func podRange6(node int) netip.Prefix {
	return netip.PrefixFrom(v6(0x10, node, 0), 124)
}

// v6 is fd00:NET:GROUP::HOST.
func v6(network, group, host int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0, 0, byte(network), 0, byte(group), 15: byte(host)})
}

func nodeAddr4(node int) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 0, byte(node + 1)}) }
func nodeAddr6(node int) netip.Addr { return v6(0x92, 0, node+1) }

// outside are addresses that belong to nobody.
var outside = []netip.Addr{
	netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("172.17.1.1"), netip.MustParseAddr("172.17.2.1"),
	netip.MustParseAddr("203.0.113.0"), netip.MustParseAddr("203.0.113.255"), netip.MustParseAddr("0.0.0.0"),
	netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2:1"),
	netip.MustParseAddr("::1"), netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
}

// namespaces makes an object for most of the namespaces; the others exist only
// through the pods and policies in them.
func (g *generator) namespaces() {
	for i := range g.size.Namespaces {
		if g.chance(75) {
			g.s.Namespaces = append(g.s.Namespaces, g.namespace(namespaceName(i)))
		}
	}
}

func (g *generator) namespace(name string) *policy.Namespace {
	ns := &policy.Namespace{Name: name, Labels: g.labels(namespaceKeys)}
	if g.chance(50) { // an API server always sets it, manifests need not
		ns.Labels[metadataName] = name
	}
	return ns
}

// audits picks the namespaces that are not enforced. It draws after everything else,
// so that a seed's other objects are what they were without it.
func (g *generator) audits() {
	for _, ns := range g.s.Namespaces {
		ns.Audit = g.chance(25)
	}
}

// denials picks the namespaces that say how they deny, after everything else too.
func (g *generator) denials() {
	for _, ns := range g.s.Namespaces {
		ns.Denial = g.denial()
	}
}

// denial is mostly unset.
func (g *generator) denial() policy.Denial {
	if g.chance(70) {
		return policy.DenialUnset
	}
	return pick(g.rng, []policy.Denial{policy.DenialDrop, policy.DenialReject})
}

func (g *generator) labels(keys []string) map[string]string {
	set := map[string]string{}
	for _, k := range keys {
		if g.chance(60) {
			set[k] = pick(g.rng, labelValues)
		}
	}
	return set
}

// nodes makes an object for most of the nodes; the others are known only by what
// the pods on them say.
func (g *generator) nodes() {
	for i := range g.size.Nodes {
		if !g.chance(80) {
			continue
		}
		n := &policy.Node{Name: nodeName(i), Addrs: []netip.Addr{nodeAddr4(i)}}
		if g.chance(70) {
			n.Addrs = append(n.Addrs, nodeAddr6(i))
		}
		n.PodCIDRs = []netip.Prefix{podRange4(i), podRange6(i)}
		g.s.Nodes = append(g.s.Nodes, n)
	}
}

// pod draws one more pod for the snapshot.
func (g *generator) pod() *policy.Pod {
	node := g.rng.IntN(g.size.Nodes)
	p := &policy.Pod{
		NamespacedName: g.freshPodName(),
		Labels:         g.labels(podKeys),
		NodeName:       nodeName(node),
		HostNetwork:    g.chance(12),
		Phase:          g.phase(),
		Created:        epoch.Add(time.Duration(g.rng.IntN(3)) * time.Minute),
		Ports:          g.containerPorts(),
	}
	if g.chance(8) {
		p.NodeName = "" // not scheduled, yet an odd network may have given it addresses
	}
	p.HostAddrs = g.hostAddrs(node)
	p.Addrs = g.podAddrs(node)
	if p.HostNetwork && g.chance(80) {
		p.Addrs = []netip.Addr{nodeAddr4(node), nodeAddr6(node)}
	}
	return p
}

// freshPodName is unused; about one in eight ends in "-terminating", which is how
// Manifests knows that the pod is being deleted: policy.Pod cannot say so, because
// it makes no difference.
func (g *generator) freshPodName() policy.NamespacedName {
	used := func(n policy.NamespacedName) bool {
		return slices.ContainsFunc(g.s.Pods, func(p *policy.Pod) bool { return p.NamespacedName == n })
	}
	for {
		n := policy.NamespacedName{
			Namespace: namespaceName(g.rng.IntN(g.size.Namespaces)),
			Name:      fmt.Sprintf("pod-%d", g.rng.IntN(10*g.size.Pods+10)),
		}
		if g.chance(12) {
			n.Name += terminatingSuffix
		}
		if !used(n) {
			return n
		}
	}
}

func (g *generator) phase() policy.Phase {
	switch n := g.rng.IntN(100); {
	case n < 70:
		return policy.PhaseRunning
	case n < 85:
		return policy.PhasePending
	}
	return policy.PhaseEnded
}

// podAddrs draws at most one address per family from the pod ranges: mostly of
// the pod's own node, mostly unused, but some addresses are claimed twice.
func (g *generator) podAddrs(node int) []netip.Addr {
	if g.chance(10) {
		node = g.rng.IntN(g.size.Nodes)
	}
	four, six := g.podAddr(podRange4(node)), g.podAddr(podRange6(node))
	switch n := g.rng.IntN(100); {
	case n < 35:
		return []netip.Addr{four, six}
	case n < 45:
		return []netip.Addr{six, four}
	case n < 75:
		return []netip.Addr{four}
	case n < 93:
		return []netip.Addr{six}
	}
	return nil
}

// podAddr draws from a range of 16 addresses, so that two pods soon share one.
func (g *generator) podAddr(r netip.Prefix) netip.Addr {
	a := r.Addr()
	for range g.rng.IntN(16) {
		a = a.Next()
	}
	return a
}

func (g *generator) hostAddrs(node int) []netip.Addr {
	switch n := g.rng.IntN(100); {
	case n < 40:
		return []netip.Addr{nodeAddr4(node)}
	case n < 70:
		return []netip.Addr{nodeAddr4(node), nodeAddr6(node)}
	case n < 75: // an address of the node that its Node object does not list
		return []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 1, byte(node + 1)})}
	}
	return nil
}

// containerPorts draws named ports. One name may stand for several numbers and
// protocols: containers of one pod may reuse a name.
func (g *generator) containerPorts() []policy.ContainerPort {
	var ports []policy.ContainerPort
	for range g.rng.IntN(4) {
		p := policy.ContainerPort{Name: pick(g.rng, portNames), Protocol: policy.TCP, Port: pick(g.rng, portNumbers)}
		if g.chance(40) {
			p.Protocol = pick(g.rng, transports)
		}
		ports = append(ports, p)
	}
	return ports
}

// poachedAddresses lets a node or a host-network pod claim the address of a pod
// now and then.
func (g *generator) poachedAddresses() {
	var held []netip.Addr
	for _, p := range g.s.Pods {
		held = append(held, p.Addrs...)
	}
	if len(held) == 0 {
		return
	}
	if len(g.s.Nodes) > 0 && g.chance(25) {
		n := pick(g.rng, g.s.Nodes)
		n.Addrs = append(n.Addrs, pick(g.rng, held))
	}
	for _, p := range g.s.Pods {
		if p.HostNetwork && g.chance(20) {
			p.Addrs = []netip.Addr{pick(g.rng, held)}
		}
	}
}

// PodAddrs are the addresses that pods may have, in clusters of up to Small.Nodes nodes.
func PodAddrs() []netip.Addr {
	var addrs []netip.Addr
	for node := range Small.Nodes {
		for _, r := range [...]netip.Prefix{podRange4(node), podRange6(node)} {
			for a := r.Addr(); r.Contains(a); a = a.Next() {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

// PortNumbers are the ports that random policies and pods mention.
func PortNumbers() []uint16 { return slices.Clone(portNumbers) }
