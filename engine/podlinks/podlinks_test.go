package podlinks

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func route(t *testing.T, dst string, link int, edit ...func(*netlink.Route)) netlink.Route {
	t.Helper()
	r := netlink.Route{LinkIndex: link, Type: unix.RTN_UNICAST}
	if dst != "default" {
		_, n, err := net.ParseCIDR(dst)
		if err != nil {
			t.Fatal(err)
		}
		r.Dst = n
	}
	for _, e := range edit {
		e(&r)
	}
	return r
}

// TestIndexes: which interfaces the routes of some CNI plugins give away.
func TestIndexes(t *testing.T) {
	t.Parallel()
	via := func(r *netlink.Route) { r.Gw = net.IPv4(192, 168, 0, 1) }
	unreachable := func(r *netlink.Route) { r.Type = unix.RTN_UNREACHABLE }
	pod := []netip.Addr{netip.MustParseAddr("10.1.0.5")}
	ranges := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")}
	for _, c := range []struct {
		name   string
		ranges []netip.Prefix
		pods   []netip.Addr
		routes []netlink.Route
		want   []int
	}{
		{"ptp", ranges, nil, []netlink.Route{route(t, "default", 1, via), route(t, "192.168.0.0/24", 1), route(t, "10.1.0.5/32", 7), route(t, "fd00:1::5/128", 8), route(t, "fe80::/64", 9)}, []int{7, 8}},
		{"bridge", ranges, nil, []netlink.Route{route(t, "0.0.0.0/0", 1, via), route(t, "10.1.0.0/24", 5), route(t, "10.2.0.0/24", 1, via)}, []int{5}},
		{"a tunnel to other nodes", ranges, nil, []netlink.Route{route(t, "10.2.0.0/24", 6, via), route(t, "10.1.0.5/32", 7)}, []int{7}},
		{"ranges not known", nil, pod, []netlink.Route{route(t, "10.1.0.5/32", 7), route(t, "10.1.0.6/32", 8)}, []int{7}},
		{"pods of the uplink's network", nil, pod, []netlink.Route{route(t, "default", 1, via), route(t, "10.1.0.0/24", 1)}, nil},
		{"a blackhole for the range", ranges, nil, []netlink.Route{route(t, "10.1.0.0/24", 3, unreachable)}, nil},
		{"a default route without gateway", ranges, nil, []netlink.Route{route(t, "default", 4), route(t, "10.1.0.5/32", 4)}, nil},
	} {
		got := slices.Sorted(maps.Keys(indexesFor(c.routes, c.ranges, c.pods)))
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
