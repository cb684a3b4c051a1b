//go:build linux

package netlab

import (
	"context"
	"net/netip"
	"testing"
)

// What the lab itself costs: benchmarks of other packages that dial or probe
// through it must stay well above.
func BenchmarkDo(b *testing.B) {
	h := addHost(b, addNode(b, newLab(b), "n"), "h", "10.0.0.1")
	b.ReportAllocs()
	for b.Loop() {
		if err := h.Do(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTCPExchange(b *testing.B) {
	n := addNode(b, newLab(b), "n")
	client, server := addHost(b, n, "client", "10.0.0.1"), addHost(b, n, "server", "10.0.0.2")
	must[*Server](b)(server.ServeTCP(7))
	to, payload := netip.AddrPortFrom(server.Addr4(), 7), []byte("x")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.TCPExchange(context.Background(), to, payload); err != nil {
			b.Fatal(err)
		}
	}
}
