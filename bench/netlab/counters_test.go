//go:build linux

package netlab

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

func TestRepeatedSYNs(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	a, b := addHost(t, n, "a", "10.0.0.1"), addHost(t, n, "b", "10.0.0.2")
	must[*Server](t)(b.ServeTCP(7))
	must[net.Conn](t)(a.DialContext(within(t, patience), "tcp", netip.AddrPortFrom(b.Addr4(), 7).String())).Close()
	if got := must[uint64](t)(a.RepeatedSYNs()); got != 0 {
		t.Logf("%d repeated: a slow machine", got)
	}
	if out, err := b.Command(t.Context(), "iptables", "-w", "-A", "INPUT", "-j", "DROP").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before := must[uint64](t)(a.RepeatedSYNs())
	go func() { _, _ = a.DialContext(t.Context(), "tcp", netip.AddrPortFrom(b.Addr4(), 8).String()) }()
	eventually(t, func() error {
		if got := must[uint64](t)(a.RepeatedSYNs()); got <= before {
			return errors.New("no SYN was sent again")
		}
		return nil
	})
}
