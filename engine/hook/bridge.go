package hook

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"

	"github.com/netverdict/netverdict/policy"
)

// What is done with packets that this node sends on for others, bridged or routed, in
// FORWARD: what the node sends itself does not come by there.

// forwardRules deal with sources and destinations that say nothing about which pod
// is meant. Pods on one bridge reach each other by link-local addresses, which every
// interface has and no API object shows, and all at once by broadcast and multicast.
// And a source address of the node, which POSTROUTING lets pass, can only be forged
// here.
func (c *chain) forwardRules() (rules []rule) {
	in := c.names.forward()
	for _, ends := range onLinkEnds[c.family] {
		rules = append(rules, rule{in, fmt.Sprintf("%s -m set --match-set %s %s", ends.prefix, c.names.bridges(c.family), ends.dims), PurposeOnLink, "-g " + c.names.onLink()})
	}
	rules = append(rules, rule{in, fmt.Sprintf("%s -m conntrack ! --ctstate RELATED,ESTABLISHED -m set --match-set %s dst -m addrtype --src-type LOCAL", c.forgeable(), c.names.ingress(c.family)), PurposeSpoofed, "-j DROP"})
	rules = append(rules, c.neighbourRules(c.names.onLink())...)
	return append(rules, rule{c.names.onLink(), "", PurposeDrop, "-j DROP"})
}

// forgeable narrows down the packets whose source is worth a look at the routing
// table, which costs as much as all other rules: in IPv4 those on bridges, as routing
// drops a source address of its own (fib_validate_source), but a bridge does not
// route. In IPv6 routing has no such check, so it is all but those of connections
// that were judged.
func (c *chain) forgeable() string {
	if c.family == ipv4 {
		return "-m set --match-set " + c.names.bridges(c.family) + " dst,dst"
	}
	return "-m connmark ! --mark " + c.conn.exactly(policy.Allow, c.generation)
}

// onLinkEnds are what the packets have that are looked for in the set of bridges: a
// comparison that spares most the set. IPv4 has broadcast in 240.0.0.0/4; that of a
// subnet is an address of the pods' range that no pod holds.
var onLinkEnds = map[family][]struct{ prefix, dims string }{
	ipv4: {{"-d 224.0.0.0/3", "dst,dst"}},
	ipv6: {{"-d fe80::/10", "dst,dst"}, {"-d ff00::/8", "dst,dst"}, {"-s fe80::/10", "src,dst"}},
}

// forwardJump is the rule in FORWARD.
func (c *chain) forwardJump() rule {
	return rule{forwarding, "", PurposeJump, "-j " + c.names.forward()}
}

// maxBridges bounds the bridges; each has two entries.
const maxBridges = 1 << 10

func (s *stack) bridgesSpec(name string) setSpec {
	return setSpec{name: name, typename: linkType, family: s.family, maxElem: 2 * maxBridges}
}

// SetBridges says on which bridges pods must not reach each other past all policies:
// by link-local addresses, broadcast or multicast. Neighbour discovery passes. It
// needs Install.
func (h *Hook) SetBridges(names []string) error {
	return h.change(func() error {
		var errs []error
		for _, s := range h.stacks {
			errs = append(errs, s.setLinks(s.names.bridges(s.family), names))
		}
		return errors.Join(errs...)
	})
}

// setLinks makes a set of interfaces contain these, for every address.
func (s *stack) setLinks(set string, names []string) error {
	have, err := s.sets.handle.IpsetList(set)
	if err != nil {
		return fmt.Errorf("read ipset %s: %w", set, explainSet(err))
	}
	known, wanted := map[string]int{}, map[string]bool{}
	for _, name := range names {
		wanted[name] = true
	}
	for i := range have.Entries {
		name := have.Entries[i].IFace
		if known[name]++; !wanted[name] {
			err = errors.Join(err, ignoreGone(s.sets.handle.IpsetDel(set, &have.Entries[i])))
		}
	}
	for name := range wanted {
		if known[name] == len(s.family.everywhere()) {
			continue
		}
		for _, half := range s.family.everywhere() {
			err = errors.Join(err, s.sets.handle.IpsetAdd(set, &netlink.IPSetEntry{IP: half, CIDR: 1, IFace: name, Replace: true}))
		}
	}
	if err != nil {
		return fmt.Errorf("change ipset %s: %w", set, explainSet(err))
	}
	return nil
}

// everywhere is all addresses of a family, in two halves: no entry has a prefix of
// length 0 to netlink's library.
func (f family) everywhere() []net.IP {
	if f == ipv6 {
		return []net.IP{net.IPv6zero, net.ParseIP("8000::")}
	}
	return []net.IP{net.IPv4zero.To4(), net.IPv4(128, 0, 0, 0).To4()}
}
