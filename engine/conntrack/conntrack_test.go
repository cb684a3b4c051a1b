//go:build linux

package conntrack

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/bench/netlab/netlabtest"
	"github.com/netverdict/netverdict/policy"
)

const patience = 30 * time.Second

// street is a node with two hosts, that tracks connections.
type street struct {
	t        *testing.T
	node     *netlab.Node
	from, to *netlab.Host
}

func newStreet(t *testing.T) *street {
	t.Helper()
	lab := netlabtest.New(t)
	var err error
	s := &street{t: t}
	if s.node, err = lab.AddNode("node", netlab.NodeOptions{}); err != nil {
		t.Fatal(err)
	}
	if s.from, err = s.node.AddHost("from", netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")); err != nil {
		t.Fatal(err)
	}
	if s.to, err = s.node.AddHost("to", netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:1::2")); err != nil {
		t.Fatal(err)
	}
	// A rule that needs it makes the namespace track connections.
	if _, err := s.node.AddService(netip.MustParseAddr("10.96.0.1"), 80, "tcp", netip.MustParseAddrPort("10.1.0.2:8080")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.node.AddService(netip.MustParseAddr("fd00:96::1"), 80, "tcp", netip.MustParseAddrPort("[fd00:1::2]:8080")); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *street) listen() *Listener {
	s.t.Helper()
	var l *Listener
	err := s.node.Do(func() (err error) {
		l, err = Open()
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

// TestConnections: what begins is told with the addresses behind a Service.
func TestConnections(t *testing.T) {
	s := newStreet(t)
	if _, err := s.to.ServeHTTP(8080); err != nil {
		t.Fatal(err)
	}
	l := s.listen()
	told, ended := make(chan Connection, 100), make(chan error, 1)
	go func() { ended <- l.Run(func(c *Connection) { told <- *c }, func(n uint64) { t.Errorf("%d lost", n) }) }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	expect := func(what string, want Connection) {
		t.Helper()
		for {
			select {
			case c := <-told:
				if c.Src != want.Src || c.Protocol != want.Protocol {
					continue // the namespace's own
				}
				want.SrcPort = c.SrcPort
				if c != want || want.Protocol.HasPorts() && c.SrcPort == 0 {
					t.Errorf("%s: %+v, want %+v", what, c, want)
				}
				return
			case <-ctx.Done():
				t.Fatalf("nobody tells of %s", what)
			}
		}
	}
	for _, target := range []string{"10.1.0.2:8080", "10.96.0.1:80", "[fd00:1::2]:8080", "[fd00:96::1]:80"} {
		to := netip.MustParseAddrPort(target)
		if _, err := s.from.HTTPGet(ctx, to); err != nil {
			t.Fatal(err)
		}
		want := Connection{Src: s.from.Addr4(), Dst: s.to.Addr4(), DstPort: 8080, Protocol: policy.TCP}
		if to.Addr().Is6() {
			want.Src, want.Dst = s.from.Addr6(), s.to.Addr6()
		}
		expect(target, want)
	}
	if err := s.from.Ping(ctx, s.to.Addr4()); err != nil {
		t.Fatal(err)
	}
	expect("a ping", Connection{Src: s.from.Addr4(), Dst: s.to.Addr4(), Protocol: policy.ICMP, ICMPType: 8})
	if err := l.Stop(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestLosses: a listener that does not keep up says how many it missed.
func TestLosses(t *testing.T) {
	const flows = 2000
	s := newStreet(t)
	l := s.listen()
	if err := l.conn.SetReadBuffer(16 << 10); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := range uint16(flows) { // to a port each: source ports come again
		conn, err := s.from.DialContext(ctx, "udp", netip.AddrPortFrom(s.to.Addr4(), 10_000+i).String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	// It has not read anything yet: what is in the socket is all there will be.
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	var told, lost uint64
	if err := l.Run(func(*Connection) { told++ }, func(n uint64) { lost += n }); err != nil {
		t.Error(err)
	}
	// The namespace's own connections, a few, may be among them.
	if told+lost < flows || told+lost > flows+50 || lost == 0 {
		t.Errorf("%d told and %d lost of %d", told, lost, flows)
	}
}
