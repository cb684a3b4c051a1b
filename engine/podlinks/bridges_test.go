package podlinks

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestHasPods(t *testing.T) {
	t.Parallel()
	ranges := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")}
	pods := []netip.Addr{netip.MustParseAddr("10.7.3.5")}
	for addr, want := range map[string]bool{
		"10.1.0.1/24":   true,  // the whole range
		"10.1.0.129/25": true,  // a part of it
		"fd00:1::1/64":  true,  //
		"10.7.0.1/16":   true,  // of a pod, where ranges are not known
		"172.17.0.1/16": false, // another bridge
		"10.1.0.1/16":   false, // wider than the range, and of no known pod
	} {
		ip, network, err := net.ParseCIDR(addr)
		if err != nil {
			t.Fatal(err)
		}
		a := netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: network.Mask}, Scope: unix.RT_SCOPE_UNIVERSE}
		if got := hasPods([]netlink.Addr{a}, ranges, pods); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
		a.Scope = unix.RT_SCOPE_LINK
		if hasPods([]netlink.Addr{a}, ranges, pods) {
			t.Errorf("%s: with the scope of a link it is no pods' network", addr)
		}
	}
}
