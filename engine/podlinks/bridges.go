//go:build linux

package podlinks

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Bridge is one on which this node has an address in a network of its pods.
type Bridge struct {
	Name string
	// Unseen4 and Unseen6 say that what is bridged on it does not come by the rules of
	// iptables and ip6tables: the pods there reach each other whatever policies say.
	Unseen4, Unseen6 bool
	// UnseenTagged says the same of frames with a VLAN tag. Those of VLAN 0 arrive like
	// others, and a pod with CAP_NET_RAW can send them.
	UnseenTagged bool
}

// Bridges lists the bridges behind which pods are, for pods as Find wants them.
func Bridges(ranges []netip.Prefix, pods []netip.Addr) (bridges []Bridge, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if l.Type() != "bridge" {
			continue
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("list the addresses of %s: %w", l.Attrs().Name, err)
		}
		if hasPods(addrs, ranges, pods) {
			name := l.Attrs().Name
			bridges = append(bridges, Bridge{name, !filtered(name, "iptables"), !filtered(name, "ip6tables"), !isSet(filterTagged)})
		}
	}
	return bridges, nil
}

func hasPods(addrs []netlink.Addr, ranges []netip.Prefix, pods []netip.Addr) bool {
	for i := range addrs {
		a := &addrs[i]
		if p, ok := prefixOf(a.IPNet); ok && a.Scope == unix.RT_SCOPE_UNIVERSE && leadsToPods(p.Masked(), ranges, pods) {
			return true
		}
	}
	return false
}

// filtered reports whether br_netfilter shows a bridge's packets to a family's rules:
// either those of every bridge of the network namespace, or of this one
// (net/bridge/br_netfilter_hooks.c).
func filtered(bridge, by string) bool {
	return isSet("/proc/sys/net/bridge/bridge-nf-call-"+by) || isSet("/sys/class/net/"+bridge+"/bridge/nf_call_"+by)
}

const filterTagged = "/proc/sys/net/bridge/bridge-nf-filter-vlan-tagged"

// isSet reads a switch of the kernel; without it, it is off.
func isSet(file string) bool {
	text, err := os.ReadFile(file)
	return err == nil && strings.TrimSpace(string(text)) != "0"
}
