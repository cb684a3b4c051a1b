//go:build linux

package netlab

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestService(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	client := addHost(t, n, "client", "10.0.0.1", "fd00::1")
	b1 := addHost(t, n, "b1", "10.0.0.2", "fd00::2")
	b2 := addHost(t, n, "b2", "10.0.0.3", "fd00::3")
	serveAll(t, b1)
	serveAll(t, b2)
	for i, vip := range []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")} {
		to := func(port uint16) []netip.AddrPort {
			return []netip.AddrPort{netip.AddrPortFrom(b1.Addrs()[i], port), netip.AddrPortFrom(b2.Addrs()[i], port)}
		}
		web := must[*Service](t)(n.AddService(vip, 8080, "tcp", to(80)...))
		must[*Service](t)(n.AddService(vip, 53, "udp", to(7)...))
		vipWeb := netip.AddrPortFrom(vip, 8080)
		for _, from := range []*Host{client, n.Host, b1} { // b1 also reaches itself
			countBackends(t, from, vipWeb)
		}
		r := must[Reply](t)(client.UDPExchange(within(t, patience), netip.AddrPortFrom(vip, 53), []byte("q")))
		if r.Host != "b1" && r.Host != "b2" || string(r.Payload) != "q" {
			t.Errorf("UDP through %s: %+v", vip, r)
		}
		if err := web.Remove(); err != nil {
			t.Fatal(err)
		}
		if who, err := client.HTTPGet(within(t, 200*time.Millisecond), vipWeb); err == nil {
			t.Errorf("a removed service led to %s", who)
		}
	}
	checkNoChains(t, n)
}

// countBackends makes 40 requests; missing one of two random backends has a
// chance of 2^-39.
func countBackends(t *testing.T, from *Host, vip netip.AddrPort) {
	t.Helper()
	seen := map[string]int{}
	for range 40 {
		seen[must[string](t)(from.HTTPGet(within(t, patience), vip))]++
	}
	if seen["b1"] == 0 || seen["b2"] == 0 || len(seen) != 2 {
		t.Errorf("%s to %s reached %v, want b1 and b2", from.Name(), vip, seen)
	}
}

// checkNoChains: the TCP services, numbers 1 and 3, are gone without trace.
func checkNoChains(t *testing.T, n *Node) {
	t.Helper()
	for tool, gone := range map[string]string{"iptables-save": "NETLAB-SVC-1", "ip6tables-save": "NETLAB-SVC-3"} {
		out := string(must[[]byte](t)(n.Command(t.Context(), tool, "-t", "nat").Output()))
		if strings.Contains(out, gone) || strings.Contains(out, "8080") || strings.Count(out, "SNAT") != 2 {
			t.Errorf("%s after Remove:\n%s", tool, out)
		}
	}
}

func TestServiceRefusals(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	vip, backend := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddrPort("10.0.0.1:80")
	tests := []struct {
		want string
		err  error
	}{
		{"want tcp, udp or sctp", second(n.AddService(vip, 80, "icmp", backend))},
		{"no backends", second(n.AddService(vip, 80, "tcp"))},
		{"another family", second(n.AddService(netip.MustParseAddr("fd00::1"), 80, "tcp", backend))},
	}
	for _, tt := range tests {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%v, want %q", tt.err, tt.want)
		}
	}
	s := must[*Service](t)(n.AddService(vip, 80, "sctp", backend))
	if err := n.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(); err != nil {
		t.Errorf("the node took it along: %v", err)
	}
	t.Setenv("PATH", "/nonexistent")
	n = addNode(t, lab, "n")
	if _, err := n.AddService(vip, 80, "tcp", backend); err == nil || !strings.Contains(err.Error(), "apt-get install iptables") {
		t.Errorf("without iptables: %v", err)
	}
}
