//go:build linux

package netlab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func TestServerClose(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	a, b := addHost(t, n, "a", "10.0.0.1"), addHost(t, n, "b", "10.0.0.2")
	s := must[*Server](t)(b.ServeTCP(0))
	to := netip.AddrPortFrom(b.Addr4(), s.Port)
	c := must[net.Conn](t)(a.DialContext(within(t, patience), "tcp", to.String()))
	defer c.Close()
	must[int](t)(c.Write([]byte("x")))
	must[int](t)(c.Read(make([]byte, 1)))
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("connection to a closed server: %v, want a reset", err)
	}
	if _, err := a.TCPExchange(within(t, patience), to, []byte("x")); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("closed port: %v, want connection refused", err)
	}
	must[*Server](t)(b.ServeTCP(s.Port))
}

func TestServePush(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	a, b := addHost(t, n, "a", "fd00::1"), addHost(t, n, "b", "fd00::2")
	must[*Server](t)(b.ServePush(9, time.Millisecond))
	must[*Server](t)(b.ServePush(10, 0))
	lines := readPush(t, a, netip.AddrPortFrom(b.Addr6(), 9), 100)
	if !strings.HasPrefix(lines, "host=b remote=[fd00::1]:") || !strings.Contains(lines, "\n0\n1\n2\n") {
		t.Errorf("pushed %q", lines)
	}
	if bulk := readPush(t, a, netip.AddrPortFrom(b.Addr6(), 10), 4<<20); !strings.HasPrefix(bulk, "host=b ") {
		t.Errorf("bulk begins %.20q", bulk)
	}
}

func readPush(t *testing.T, from *Host, to netip.AddrPort, n int) string {
	t.Helper()
	c := must[net.Conn](t)(from.DialContext(within(t, patience), "tcp", to.String()))
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	var b strings.Builder
	buf := make([]byte, 64<<10)
	for b.Len() < n {
		b.Write(buf[:must[int](t)(c.Read(buf))])
	}
	return b.String()
}

// A pending exchange ends with its host and says why.
func TestRemoveEndsExchanges(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	a, b := addHost(t, n, "a", "10.0.0.1"), addHost(t, n, "b", "10.0.0.2")
	must[net.PacketConn](t)(b.ListenPacket("udp4", "10.0.0.2:9")).Close()
	sink := must[net.PacketConn](t)(b.ListenPacket("udp4", "10.0.0.2:9"))
	defer sink.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := a.UDPExchange(context.Background(), netip.MustParseAddrPort("10.0.0.2:9"), []byte("hello"))
		ended <- err
	}()
	if _, _, err := sink.ReadFrom(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := a.Remove(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "a was removed") {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the exchange outlives its host")
	}
}
