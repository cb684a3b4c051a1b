package hook

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// family is the IP version; everything exists once for each.
type family uint8

const (
	ipv4 family = 4
	ipv6 family = 6
)

func (f family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// commands is how the names of the family's iptables commands begin.
func (f family) commands() string {
	if f == ipv6 {
		return "ip6tables"
	}
	return "iptables"
}

// icmp is the name of the family's ICMP in rules.
func (f family) icmp() string {
	if f == ipv6 {
		return "ipv6-icmp"
	}
	return "icmp"
}

// af is the address family, as ipset and conntrack want it; that of no family
// stands for all.
func (f family) af() uint8 {
	switch f {
	case ipv4:
		return unix.AF_INET
	case ipv6:
		return unix.AF_INET6
	}
	return unix.AF_UNSPEC
}

// familyOf returns the family of an address; an IPv4-mapped one is IPv4.
func familyOf(a netip.Addr) family {
	if a.Unmap().Is4() {
		return ipv4
	}
	return ipv6
}

// side names one of the two sets of a kind, of which the rules use one.
type side byte

const (
	sideA side = 'a'
	sideB side = 'b'
)

func (s side) other() side {
	if s == sideA {
		return sideB
	}
	return sideA
}

// names makes the names of chains and sets from the prefix.
type names struct{ prefix string }

// maxPrefix leaves room for the longest suffix of a chain: names of chains have
// at most 28 bytes (XT_EXTENSION_MAXNAMELEN in linux/netfilter/x_tables.h is 29,
// with the final zero). Names of sets may have 31 (IPSET_MAXNAMELEN is 32).
const maxPrefix = 28 - len("-VERDICT")

var prefixPattern = regexp.MustCompile(`^[A-Z][A-Z0-9]*(-[A-Z0-9]+)*$`)

func newNames(prefix string) (names, error) {
	if len(prefix) > maxPrefix || !prefixPattern.MatchString(prefix) {
		return names{}, fmt.Errorf("chain prefix %q: want at most %d capital letters, digits and single dashes, beginning with a letter",
			prefix, maxPrefix)
	}
	return names{prefix}, nil
}

func (n names) base() string    { return n.prefix }
func (n names) reply() string   { return n.prefix + "-REPLY" }
func (n names) known() string   { return n.prefix + "-KNOWN" }
func (n names) verdict() string { return n.prefix + "-VERDICT" }
func (n names) allow() string   { return n.prefix + "-ALLOW" }
func (n names) deny() string    { return n.prefix + "-DENY" }
func (n names) arrival() string { return n.prefix + "-ARRIVAL" }
func (n names) forward() string { return n.prefix + "-FORWARD" }
func (n names) onLink() string  { return n.prefix + "-ONLINK" }
func (n names) probe() string   { return n.prefix + "-PROBE" }

// chains lists the chains that the rules consist of.
func (n names) chains() []string {
	return []string{n.base(), n.reply(), n.known(), n.verdict(), n.allow(), n.deny(), n.arrival(), n.forward(), n.onLink()}
}

func (n names) set(f family, kind string) string {
	return fmt.Sprintf("%s%d-%s", strings.ToLower(n.prefix), uint8(f), kind)
}

func (n names) egress(f family) string  { return n.set(f, "egress") }
func (n names) ingress(f family) string { return n.set(f, "ingress") }

func (n names) allowSet(f family, s side) string { return n.set(f, setAllow+string(rune(s))) }
func (n names) denySet(f family, s side) string  { return n.set(f, setDeny+string(rune(s))) }

// How the names of the sets of verdicts end, before their side.
const (
	setAllow = "allow-"
	setDeny  = "deny-"
)

// podLinks is the set of the interfaces behind which pods are.
func (n names) podLinks(f family) string { return n.set(f, "pod-links") }

// allSets are the sets of both families, and the request.
func (n names) allSets() []string {
	return slices.Concat(n.sets(ipv4), n.sets(ipv6), []string{n.request()})
}

// bridges is the set of the bridges that several pods share.
func (n names) bridges(f family) string { return n.set(f, "bridges") }

// request is the set that asks the owner of the rules to hand them over.
func (n names) request() string { return strings.ToLower(n.prefix) + "-handover" }

// probeSets are made and removed when the kernel is tried out.
func (n names) probeSets(f family) (keys, addrs, links string) {
	return n.set(f, "probe-key"), n.set(f, "probe-ip"), n.set(f, "probe-if")
}

// sets lists the names of all sets of a family, whether they exist or not.
func (n names) sets(f family) []string {
	keys, addrs, links := n.probeSets(f)
	return []string{
		n.egress(f), n.ingress(f),
		n.allowSet(f, sideA), n.allowSet(f, sideB),
		n.denySet(f, sideA), n.denySet(f, sideB),
		n.podLinks(f), n.bridges(f),
		keys, addrs, links,
	}
}
