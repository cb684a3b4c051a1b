//go:build linux

// Package podlinks finds the interfaces of a node behind which pods are, by its
// routes: whatever CNI plugin made them, a packet to a pod must find its way.
package podlinks

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is an interface behind which there are pods and nobody else.
type Link struct {
	Name string
	// Shared says that it is a bridge: which pod a packet came from is not known.
	Shared bool
}

// Find lists the interfaces to which routes lead, without a gateway, that are for
// pods: inside ranges of this node's pods, or with one of these pod addresses as the
// most specific prefix. An interface through which anybody else is reached over a
// gateway, such as a default route's, is none.
func Find(ranges []netip.Prefix, pods []netip.Addr) ([]Link, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var links []Link
	for index := range indexesFor(routes, ranges, pods) {
		l, err := netlink.LinkByIndex(index)
		if err != nil {
			continue // it has gone since
		}
		links = append(links, Link{l.Attrs().Name, l.Type() == "bridge"})
	}
	slices.SortFunc(links, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	return links, nil
}

// indexesFor are the interfaces' indexes.
func indexesFor(routes []netlink.Route, ranges []netip.Prefix, pods []netip.Addr) map[int]bool {
	links, others := map[int]bool{}, map[int]bool{}
	for i := range routes {
		r := &routes[i]
		dst, ok := prefixOf(r.Dst)
		switch {
		case r.Gw != nil || len(r.MultiPath) > 0 || !ok || dst.Bits() == 0:
			others[r.LinkIndex] = true
		case r.Type != unix.RTN_UNICAST || r.LinkIndex == 0 || dst.Addr().IsMulticast() || dst.Addr().IsLinkLocalUnicast():
		case leadsToPods(dst, ranges, pods):
			links[r.LinkIndex] = true
		}
	}
	for index := range others {
		delete(links, index)
	}
	return links
}

// leadsToPods reports whether a route is for pods of this node.
func leadsToPods(dst netip.Prefix, ranges []netip.Prefix, pods []netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Bits() <= dst.Bits() && r.Contains(dst.Addr()) }) ||
		slices.ContainsFunc(pods, dst.Contains)
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if len(n.Mask) == net.IPv4len {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), ok
}
