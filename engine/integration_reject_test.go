package engine_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/packet/packettest"
	"github.com/netverdict/netverdict/engine/reject"
	"github.com/netverdict/netverdict/policy"
)

const vipPort = 8000

// services puts virtual addresses in front of the server's port 80.
func (n *network) services() (vips []netip.Addr) {
	n.t.Helper()
	families(n.server, func(_ string, a netip.Addr) {
		vip := netip.MustParseAddr("10.96.0.10")
		if a.Is6() {
			vip = netip.MustParseAddr("fd00:96::10")
		}
		for _, proto := range []string{"tcp", "udp"} {
			if _, err := n.node.AddService(vip, vipPort, proto, netip.AddrPortFrom(a, 80)); err != nil {
				n.t.Fatal(err)
			}
		}
		vips = append(vips, vip)
	})
	return vips
}

// startRejecting enforces policies and answers what is denied, so often a second.
func (n *network) startRejecting(deny policy.Denial, rate uint32, policies ...*networkingv1.NetworkPolicy) *reject.Rejecter {
	n.t.Helper()
	var r *reject.Rejecter
	n.startWith(func(o *options) {
		r = n.openRejecter(rate)
		o.hook.Answers, o.engine.Rejecter, o.engine.Deny = true, r, deny
	}, policies...)
	if !n.hook.NotesDialed() {
		n.t.Fatal("the kernel cannot note where connections were addressed")
	}
	return r
}

func (n *network) openRejecter(rate uint32) (r *reject.Rejecter) {
	n.t.Helper()
	marks, err := hook.NewMarks(hook.DefaultMarkMask)
	if err != nil {
		n.t.Fatal(err)
	}
	err = n.node.Do(func() error {
		var partly, err error
		r, partly, err = reject.Open(reject.Config{IPv4: true, IPv6: true, Rate: rate, Mark: marks.Own(), Group: queueNum})
		return errors.Join(err, partly)
	})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	n.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			n.t.Error(err)
		}
		if s := r.Stats(); s.Failed != 0 || s.Lost != 0 {
			n.t.Errorf("answers: %+v", s)
		}
	})
	return r
}

// refused tries a connection, and demands that it is refused at once.
func refused(t *testing.T, from *netlab.Host, to netip.AddrPort) {
	t.Helper()
	began := time.Now()
	c, err := from.DialContext(within(t, patience), "tcp", to.String())
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("TCP %s>%s: %v, want it refused", from.Name(), to, err)
		return
	}
	t.Logf("TCP %s>%s refused after %v", from.Name(), to, time.Since(began))
}

// prohibited sends a datagram and demands the error that ICMP brings
// (icmp_err_convert in net/ipv4/icmp.c, icmpv6_err_convert in net/ipv6/icmp.c).
func prohibited(t *testing.T, from *netlab.Host, to netip.AddrPort) {
	t.Helper()
	began := time.Now()
	_, err := from.UDPExchange(within(t, patience), to, []byte("hello"))
	want := unix.EHOSTUNREACH
	if to.Addr().Is6() {
		want = unix.EACCES
	}
	if !errors.Is(err, want) {
		t.Errorf("UDP %s>%s: %v, want %v", from.Name(), to, err, want)
		return
	}
	t.Logf("UDP %s>%s: %v after %v", from.Name(), to, want, time.Since(began))
}

// TestReject: clients of a denied server fail at once, however often they try, by
// TCP and UDP, direct and through a Service, and the server gets nothing. Allowed
// connections notice nothing.
func TestReject(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		vips := n.services()
		r := n.startRejecting(policy.DenialReject, 1000, allow("other", "server"), isolate(egress, "late"))
		capture, err := n.server.Capture(func(p []byte) bool { return from(p, n.client) && !neighbourDiscovery(p) })
		if err != nil {
			t.Fatal(err)
		}
		defer capture.Close()
		var targets []netip.AddrPort
		families(n.server, func(_ string, a netip.Addr) { targets = append(targets, netip.AddrPortFrom(a, 80)) })
		for _, vip := range vips {
			targets = append(targets, netip.AddrPortFrom(vip, vipPort))
		}
		for range 3 {
			for _, to := range targets {
				refused(t, n.client, to)
				prohibited(t, n.client, to)
			}
		}
		if p, err := capture.Next(within(t, silence)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the server got % x, %v", p, err)
		}
		if got, want := r.Stats(), uint64(3*len(targets)); got.Resets < want || got.Errors < want || got.Limited != 0 {
			t.Errorf("answers %+v, want at least %d of each kind", got, want)
		}
		demand(t, slices.Concat(http(policy.Allow, n.other, n.server, 80), udp(policy.Allow, n.other, n.server, 80))...)
		for _, vip := range vips {
			if _, err := n.other.HTTPGet(within(t, patience), netip.AddrPortFrom(vip, vipPort)); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRejectOtherProtocols: what is not TCP gets an ICMP error that quotes it.
func TestRejectOtherProtocols(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.startRejecting(policy.DenialReject, 1000, isolate(ingress, "server"))
		families(n.server, func(family string, a netip.Addr) {
			capture, err := n.client.Capture(adminProhibited)
			if err != nil {
				t.Fatal(err)
			}
			defer capture.Close()
			sent := sctpInit(t, source(n.client, a), a, 80)
			if err := n.client.SendIP(sent, a); err != nil {
				t.Fatal(err)
			}
			p, err := capture.Next(within(t, patience))
			if err != nil {
				t.Fatalf("%s: %v", family, err)
			}
			if quote := p[transportAt(p)+8:]; !sameContent(sent)(quote) && transportAt(sent) == 40 {
				t.Errorf("%s: the answer quotes % x, sent was % x", family, quote, sent)
			} else if at := transportAt(sent); !slices.Equal(quote[at:], sent[at:]) || !slices.Equal(quote[at-8:at], sent[at-8:at]) {
				t.Errorf("%s: the answer quotes % x, sent was % x", family, quote, sent)
			}
			if !from(p, n.node.Host) {
				t.Errorf("%s: the error is not in the node's name: % x", family, p)
			}
		})
	})
}

// adminProhibited recognizes the ICMP errors (RFC 1812, RFC 4443).
func adminProhibited(p []byte) bool {
	at := transportAt(p)
	if len(p) < at+8 {
		return false
	}
	if at == 20 {
		return p[9] == 1 && p[at] == 3 && p[at+1] == 13
	}
	return p[6] == 58 && p[at] == 1 && p[at+1] == 1
}

// TestRejectLiveFlow: both ends of a TCP connection that a change of policy cuts
// are reset, also through a Service.
func TestRejectLiveFlow(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		vips := n.services()
		accepted := acceptAll(t, n.server, 80)
		n.startRejecting(policy.DenialReject, 1000)
		var conns []net.Conn
		targets := slices.Clone(n.server.Addrs())
		for _, to := range append(targets, vips...) {
			port := uint16(80)
			if slices.Contains(vips, to) {
				port = vipPort
			}
			c, err := n.client.DialContext(within(t, patience), "tcp", netip.AddrPortFrom(to, port).String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			conns = append(conns, c)
		}
		n.apply(isolate(ingress, "server"))
		for _, c := range conns {
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range conns {
			demandReset(t, fmt.Sprintf("client to %v", c.RemoteAddr()), c)
		}
		for range conns {
			s := <-accepted
			demandReset(t, fmt.Sprintf("server at %v", s.LocalAddr()), s)
		}
	})
}

func demandReset(t *testing.T, name string, c net.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%s: got %q, %v, want a reset", name, got, err)
	}
}

// acceptAll accepts connections and reads nothing of them.
func acceptAll(t *testing.T, h *netlab.Host, port uint16) <-chan net.Conn {
	t.Helper()
	accepted := make(chan net.Conn, 16)
	families(h, func(_ string, a netip.Addr) {
		var wg sync.WaitGroup
		l, err := h.Listen("tcp", netip.AddrPortFrom(a, port).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			l.Close()
			wg.Wait()
		})
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { c.Close() })
				accepted <- c
			}
		})
	})
	return accepted
}

// TestMidStream: segments that begin no connection are judged as one that does, and
// those that nobody could have sent are dropped. Denied ones are answered, but only
// their sender is: nobody can reset a connection by forging a segment of it.
func TestMidStream(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.startRejecting(policy.DenialReject, 1000, allow("other", "server"))
		families(n.server, func(family string, a netip.Addr) {
			toServer, err := n.server.Capture(toPort(policy.TCP, 80))
			if err != nil {
				t.Fatal(err)
			}
			defer toServer.Close()
			toClient, err := n.client.Capture(isReset)
			if err != nil {
				t.Fatal(err)
			}
			defer toClient.Close()
			for i, flags := range []layers.TCP{{ACK: true}, {ACK: true, PSH: true}, {ACK: true, FIN: true}, {SYN: true, ACK: true}, {RST: true}, {FIN: true}, {}} {
				flags.SrcPort, flags.DstPort, flags.Seq, flags.Ack = layers.TCPPort(41000+i), 80, 1000, 2000
				if err := n.client.SendIP(packettest.Build(t, source(n.client, a), a, layers.IPProtocolTCP, &flags), a); err != nil {
					t.Fatal(err)
				}
			}
			answer, err := toClient.Next(within(t, patience))
			if err != nil {
				t.Fatalf("%s: %v", family, err)
			}
			if at := transportAt(answer); binary.BigEndian.Uint32(answer[at+4:]) != 2000 {
				t.Errorf("%s: a segment that acknowledges 2000 is answered with % x", family, answer[at:])
			}
			if p, err := toServer.Next(within(t, silence)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: the server got % x, %v", family, p, err)
			}
			allowed := packettest.Build(t, source(n.other, a), a, layers.IPProtocolTCP, &layers.TCP{SrcPort: 41000, DstPort: 80, ACK: true, Seq: 1000, Ack: 2000})
			if err := arrives(within(t, patience), n.other, n.server, a, allowed); err != nil {
				t.Errorf("%s: of a connection that is allowed, and older than conntrack's memory: %v", family, err)
			}
		})
	})
}

// isReset recognizes TCP resets.
func isReset(p []byte) bool {
	at := transportAt(p)
	return p[protocolAt(p)] == byte(policy.TCP) && len(p) >= at+20 && p[at+13]&4 != 0
}

// TestDenialOfNamespaces: what a namespace says counts for what its policies deny,
// whatever the engine is told, and from the moment that it says so.
func TestDenialOfNamespaces(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		vips := n.services()
		n.startRejecting(policy.DenialDrop, 1000, isolate(ingress, "server"))
		say := func(d policy.Denial) {
			s := n.snapshot(false, isolate(ingress, "server"))
			s.Namespaces = []*policy.Namespace{{Name: "shop", Denial: d}}
			n.applyTree(n.compile(s))
		}
		silent := func() {
			t.Helper()
			demand(t, slices.Concat(http(policy.Deny, n.client, n.server, 80), udp(policy.Deny, n.client, n.server, 80))...)
		}
		answered := func() {
			t.Helper()
			families(n.server, func(_ string, a netip.Addr) {
				refused(t, n.client, netip.AddrPortFrom(a, 80))
				prohibited(t, n.client, netip.AddrPortFrom(a, 80))
			})
			for _, vip := range vips {
				refused(t, n.client, netip.AddrPortFrom(vip, vipPort))
			}
		}
		silent()
		say(policy.DenialReject)
		answered()
		say(policy.DenialDrop)
		silent()
		say(policy.DenialReject)
		answered()
		say(policy.DenialUnset)
		silent()
	})
}

// TestNamespaceDropsAlthoughRejecting: the other way round.
func TestNamespaceDropsAlthoughRejecting(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.startRejecting(policy.DenialReject, 1000)
		s := n.snapshot(false, isolate(ingress, "server"))
		s.Namespaces = []*policy.Namespace{{Name: "shop", Denial: policy.DenialDrop}}
		n.applyTree(n.compile(s))
		demand(t, slices.Concat(http(policy.Deny, n.client, n.server, 80), udp(policy.Deny, n.client, n.server, 80))...)
	})
}

// TestRejectRate: a flood gets no more answers than the rate allows, leaves room for
// those of others, and what is beyond it is absorbed by the kernel.
func TestRejectRate(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		const rate, perSource, ports, rounds = 80, 10, 200, 20
		r := n.startRejecting(policy.DenialReject, rate, isolate(ingress, "server"))
		resets, err := n.client.Capture(func(p []byte) bool { return transportAt(p) == 20 && p[9] == 6 && p[33]&4 != 0 })
		if err != nil {
			t.Fatal(err)
		}
		defer resets.Close()
		began := time.Now()
		for range rounds {
			var frames [][]byte
			for port := range ports {
				frames = append(frames, tcpSYN(t, n.client.Addr4(), n.server.Addr4(), 40000, uint16(port+1)))
			}
			sendFrames(t, n.node.Host, n.client, frames)
		}
		refused(t, n.other, netip.AddrPortFrom(n.server.Addr4(), 80))
		eventually(t, "the flood to be judged", func() bool {
			c, err := n.hook.Counters()
			return err == nil && c[hook.PurposeQueue].Packets+c[hook.PurposeDenySet].Packets >= ports*rounds
		})
		got := uint64(0)
		for {
			p, err := resets.Next(within(t, silence))
			if err != nil {
				break
			}
			if ack := binary.BigEndian.Uint32(p[28:]); p[33] != 0x14 || ack != 78 {
				t.Errorf("a reset with flags %#x that acknowledges %d, want RST and ACK of 78", p[33], ack)
			}
			got++
		}
		most := uint64(perSource*(1+time.Since(began).Seconds())) + 1
		if got == 0 || got > most {
			t.Errorf("%d resets for %d SYNs in %v, want 1 to %d", got, ports*rounds, time.Since(began), most)
		}
		if s := r.Stats(); s.Limited == 0 {
			t.Errorf("answers %+v: nothing was limited", s)
		}
		t.Logf("%d SYNs: %d answered, %d seen by user space, %+v", ports*rounds, got, n.queued(), r.Stats())
	})
}
