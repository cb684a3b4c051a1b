//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The gateways that every host sees on eth0, as Calico's hosts do. Nobody owns
// the IPv4 one: a permanent neighbour entry stands in for ARP, because an
// address on the router's end would become the source of the router's own
// packets. Every router end owns the IPv6 one, so neighbour discovery is real.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// link makes the veth pair between router and h, and the addresses and routes
// of h's end. Both ends are born in their namespaces. lab.mu is held.
func (h *Host) link(router *Host) error {
	name := routerEnd(h.name)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	// The peer's index is small. Ends that share an index by chance look like no
	// pair to the kernel, which then takes up to a second to see the carrier
	// (linkwatch_urgent_event).
	h.lab.linkCount++
	attrs.Index = 100 + h.lab.linkCount
	err := router.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(h.ns.fd))})
	if err != nil {
		return privilegeError(fmt.Sprintf("create link %s in %s", name, router.name), err)
	}
	h.router, h.ifname = router, name
	near, err := bringUp(router.nl, name)
	if err != nil {
		return err
	}
	far, err := bringUp(h.nl, "eth0")
	if err != nil {
		return err
	}
	if err := addAddr(router.nl, near, netip.PrefixFrom(gateway6, 64)); err != nil {
		return err
	}
	if err := h.configureEnd(far, near.Attrs().HardwareAddr); err != nil {
		return err
	}
	if err := awaitReady(router.nl, near, gateway6); err != nil {
		return err
	}
	return awaitReady(h.nl, far, h.addrs...)
}

// routeTo gives the router its routes to the host's addresses, and returns the
// router's end of the link.
func (h *Host) routeTo() (netlink.Link, error) {
	near, err := h.router.nl.LinkByName(h.ifname)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", h.ifname, err)
	}
	for _, a := range h.addrs {
		if err := addRoute(h.router.nl, linkRoute(near, a)); err != nil {
			return nil, err
		}
	}
	return near, nil
}

func bringUp(nl *netlink.Handle, name string) (netlink.Link, error) {
	link, err := nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	if err := nl.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set link %s up: %w", name, err)
	}
	return link, nil
}

// configureEnd gives the host's eth0 its addresses and default routes.
func (h *Host) configureEnd(eth0 netlink.Link, routerMAC net.HardwareAddr) error {
	for _, a := range h.addrs {
		if err := addAddr(h.nl, eth0, netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	err := h.nl.NeighSet(&netlink.Neigh{
		LinkIndex: eth0.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: gateway4.AsSlice(), HardwareAddr: routerMAC,
	})
	if err != nil {
		return fmt.Errorf("add the gateway's neighbour entry: %w", err)
	}
	routes := []*netlink.Route{linkRoute(eth0, gateway4), gatewayRoute(eth0, netip.MustParsePrefix("0.0.0.0/0"), gateway4)}
	if slices.ContainsFunc(h.addrs, netip.Addr.Is6) {
		routes = append(routes, gatewayRoute(eth0, netip.MustParsePrefix("::/0"), gateway6))
	}
	for _, r := range routes {
		if err := addRoute(h.nl, r); err != nil {
			return err
		}
	}
	return nil
}

// awaitReady waits until a link's end passes packets from the first one on.
// The kernel does three things late, from work queues: it starts the queue of
// an end whose peer came up (linkwatch), then gives it a link-local address,
// without which it cannot ask for neighbours, and for each IPv6 address it
// joins the solicited-node group and then adds the local route (addrconf).
// What is lost before, neighbour discovery repeats only after a second.
func awaitReady(nl *netlink.Handle, end netlink.Link, addrs ...netip.Addr) error {
	return await(fmt.Sprintf("link %s to be ready", end.Attrs().Name), func() (bool, error) {
		now, err := nl.LinkByIndex(end.Attrs().Index)
		if err != nil || now.Attrs().OperState != netlink.OperUp {
			return false, err
		}
		local, err := localAddrs6(nl, end)
		if err != nil || !slices.ContainsFunc(local, netip.Addr.IsLinkLocalUnicast) {
			return false, err
		}
		return !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Is6() && !slices.Contains(local, a) }), nil
	})
}

// localAddrs6 lists the IPv6 addresses that have their local route.
func localAddrs6(nl *netlink.Handle, link netlink.Link) ([]netip.Addr, error) {
	routes, err := nl.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{
		Table: unix.RT_TABLE_LOCAL, LinkIndex: link.Attrs().Index, Type: unix.RTN_LOCAL,
	}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF|netlink.RT_FILTER_TYPE)
	var addrs []netip.Addr
	for _, r := range routes {
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			addrs = append(addrs, a)
		}
	}
	return addrs, err
}

// kernelPatience bounds the wait for what the kernel does on its own time, on a machine
// that is slow and busy.
const kernelPatience = 30 * time.Second

// await polls until check is true, at most for kernelPatience.
func await(what string, check func() (bool, error)) error {
	for deadline := time.Now().Add(kernelPatience); ; time.Sleep(time.Millisecond) {
		ok, err := check()
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("waited %v for %s", kernelPatience, what), err)
		}
	}
}

// unlink removes the link from the router's side, at once and with all routes
// over it; a namespace's own end lets the kernel take its time.
func (h *Host) unlink() error {
	if h.router == nil {
		return nil
	}
	link, err := h.router.nl.LinkByName(h.ifname)
	if err != nil {
		var gone netlink.LinkNotFoundError
		if errors.As(err, &gone) { // a test deleted it
			return nil
		}
		return fmt.Errorf("find link %s: %w", h.ifname, err)
	}
	if err := h.router.nl.LinkDel(link); err != nil {
		return fmt.Errorf("delete link %s: %w", h.ifname, err)
	}
	return nil
}

// announce routes the node's addresses and pod CIDRs in the fabric.
func (n *Node) announce() error {
	link, err := n.routeTo()
	if err != nil {
		return err
	}
	for _, p := range n.podCIDRs {
		via := first(n.addrs, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() })
		if !via.IsValid() {
			return fmt.Errorf("pod CIDR %s: the node has no address of that family", p)
		}
		if err := addRoute(n.router.nl, gatewayRoute(link, p, via)); err != nil {
			return fmt.Errorf("%w (do the pod CIDRs of two nodes overlap?)", err)
		}
	}
	return nil
}

// addUnreachable refuses packets to the part of a pod CIDR that no host owns.
// Without it, node and fabric would pass them to each other until TTL 0.
func (h *Host) addUnreachable(p netip.Prefix) error {
	return addRoute(h.nl, &netlink.Route{Dst: ipNet(p), Type: unix.RTN_UNREACHABLE})
}

func addAddr(nl *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := nl.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

func addRoute(nl *netlink.Handle, r *netlink.Route) error {
	if err := nl.RouteAdd(r); err != nil {
		return fmt.Errorf("add route %s: %w", r.Dst, err)
	}
	return nil
}

func linkRoute(link netlink.Link, a netip.Addr) *netlink.Route {
	return &netlink.Route{
		LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
		Dst: ipNet(netip.PrefixFrom(a, a.BitLen())),
	}
}

func gatewayRoute(link netlink.Link, dst netip.Prefix, via netip.Addr) *netlink.Route {
	return &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst), Gw: via.AsSlice()}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
