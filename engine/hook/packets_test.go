package hook

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/policy"
)

func TestAllowedFlowStaysInKernel(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		for _, tc := range []struct{ name, listen string }{
			{"ipv4", "0.0.0.0:0"}, {"ipv6", "[::]:0"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				l := newLab(t, testConfig(b))
				to := netip.AddrPortFrom(server4, serverPort)
				if tc.name == "ipv6" {
					to = netip.AddrPortFrom(server6, serverPort)
				}
				srv := l.udp(l.server, to.String())
				cli, cli2 := l.udp(l.client, tc.listen), l.udp(l.client, tc.listen)
				for range 3 { // one-way: never ESTABLISHED
					l.expectArrival("allowed datagram", cli, srv, to, true)
				}
				l.expectAsked("one flow", 1)
				l.expectArrival("another flow of the same kind", cli2, srv, to, true)
				l.expectAsked("two flows of the same kind", 1)
				if got := l.count(PurposeAllowSet); got != 1 {
					t.Errorf("the allow set answered %d packets, want 1", got)
				}
			})
		}
	})
}

func TestOtherKindOfFlowIsAsked(t *testing.T) {
	l := newLab(t, testConfig(NFT))
	cli := l.udp(l.client, "0.0.0.0:0")
	for port := uint16(9001); port <= 9003; port++ {
		to := netip.AddrPortFrom(server4, port)
		l.expectArrival("datagram", cli, l.udp(l.server, to.String()), to, true)
	}
	l.expectAsked("three destination ports", 3)
}

func TestWithoutSetsEveryFlowIsAsked(t *testing.T) {
	cfg := testConfig(NFT)
	cfg.AllowTimeout, cfg.DenyTimeout = 0, 0
	l := newLab(t, cfg)
	to := netip.AddrPortFrom(server4, serverPort)
	srv := l.udp(l.server, to.String())
	for range 2 {
		cli := l.udp(l.client, "0.0.0.0:0")
		l.expectArrival("first", cli, srv, to, true)
		l.expectArrival("second", cli, srv, to, true)
	}
	l.expectAsked("two flows", 2)
	l.switchTo(true, true)
	if repaired, err := l.hook.Verify(); repaired || err != nil {
		t.Errorf("Verify: repaired %v, %v", repaired, err)
	}
}

func TestRetriedSYNDiesInDenySet(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		l := newLab(t, testConfig(b))
		l.judge.says(policy.Deny, l.hook.Epoch())
		ctx, stop := context.WithTimeout(t.Context(), patience)
		dialed := make(chan error, 1)
		go func() {
			dialed <- l.client.do(func() error {
				_, err := new(net.Dialer).DialContext(ctx, "tcp4", "10.2.0.2:9000")
				return err
			})
		}()
		if !eventually(func() bool { return l.count(PurposeDenySet) > 0 }) {
			t.Error("no retry met the deny set")
		}
		stop()
		if err := <-dialed; err == nil {
			t.Error("connected although denied")
		}
		l.expectAsked("SYN and its retry", 1)
	})
}

func TestStaleVerdictIsObeyedButNotRemembered(t *testing.T) {
	l := newLab(t, testConfig(NFT))
	to := netip.AddrPortFrom(server4, serverPort)
	srv, cli := l.udp(l.server, to.String()), l.udp(l.client, "0.0.0.0:0")
	l.judge.says(policy.Allow, l.hook.Epoch()-1)
	for range 3 {
		l.expectArrival("stale allow", cli, srv, to, true)
	}
	l.expectAsked("stale allows", 3)
	l.judge.says(policy.Deny, l.hook.Epoch()-1)
	for range 3 {
		l.expectArrival("stale deny", cli, srv, to, false)
	}
	l.expectAsked("stale denies", 3)
	for _, set := range []string{"allow-a", "allow-b", "deny-a", "deny-b"} {
		if got := l.router.entries(t, "netverdict4-"+set); got != "" {
			t.Errorf("%s remembers %q", set, got)
		}
	}
	l.judge.says(policy.Allow, l.hook.Epoch())
	l.expectArrival("current allow", cli, srv, to, true)
	l.expectArrival("current allow", cli, srv, to, true)
	l.expectAsked("current allows", 1)
}

func TestRepliesAreNeverAsked(t *testing.T) {
	l := newLab(t, testConfig(NFT))
	if err := l.hook.Prepare(Policed{Egress: []netip.Addr{pod4, server4}, Ingress: []netip.Addr{pod4, server4}}); err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(server4, serverPort)
	srv, cli := l.udp(l.server, to.String()), l.udp(l.client, "0.0.0.0:0")
	back := netip.AddrPortFrom(pod4, port(cli))
	l.expectArrival("request", cli, srv, to, true)
	l.expectArrival("reply", srv, cli, back, true)
	l.expectAsked("request and reply", 1)
	// Not even when the flow is to be judged again.
	l.switchTo(true, false)
	l.judge.says(policy.Allow, l.hook.Epoch())
	l.expectArrival("reply", srv, cli, back, true)
	l.expectAsked("reply after a switch", 0)
	l.expectArrival("request", cli, srv, to, true)
	l.expectAsked("request after a switch", 1)
}

func TestRevokingSwitchCutsLiveFlowBothWays(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		l := newLab(t, testConfig(b))
		to := netip.AddrPortFrom(server4, serverPort)
		srv, cli := l.udp(l.server, to.String()), l.udp(l.client, "0.0.0.0:0")
		back := netip.AddrPortFrom(pod4, port(cli))
		l.expectArrival("request", cli, srv, to, true)
		l.expectArrival("reply", srv, cli, back, true)

		l.switchTo(true, false)
		l.judge.says(policy.Deny, l.hook.Epoch())
		l.expectArrival("request of the flow now denied", cli, srv, to, false)
		l.expectAsked("live flow", 1)
		l.expectArrival("reply of the flow now denied", srv, cli, back, false)
		l.expectArrival("request again", cli, srv, to, false)
		l.expectAsked("live flow, again", 1)

		l.switchTo(false, true)
		l.judge.says(policy.Allow, l.hook.Epoch())
		l.expectArrival("request of the flow allowed again", cli, srv, to, true)
		l.expectArrival("reply of the flow allowed again", srv, cli, back, true)
	})
}

// When the kind of flow is in the deny set already, a live flow must still be
// cut in both directions.
func TestDenySetCutsLiveFlowBothWays(t *testing.T) {
	l := newLab(t, testConfig(NFT))
	to := netip.AddrPortFrom(server4, serverPort)
	srv, cli, cli2 := l.udp(l.server, to.String()), l.udp(l.client, "0.0.0.0:0"), l.udp(l.client, "0.0.0.0:0")
	l.expectArrival("request", cli, srv, to, true)
	l.switchTo(true, false)
	l.judge.says(policy.Deny, l.hook.Epoch())
	l.expectArrival("another flow", cli2, srv, to, false)
	l.expectArrival("live flow", cli, srv, to, false)
	l.expectAsked("both flows", 1)
	l.expectArrival("reply of the live flow", srv, cli, netip.AddrPortFrom(pod4, port(cli)), false)
}

func TestCutFlowIsFreedWhenNoPolicyIsAboutIt(t *testing.T) {
	l := newLab(t, testConfig(NFT))
	to := netip.AddrPortFrom(server4, serverPort)
	srv, cli := l.udp(l.server, to.String()), l.udp(l.client, "0.0.0.0:0")
	back := netip.AddrPortFrom(pod4, port(cli))
	l.expectArrival("request", cli, srv, to, true)
	l.switchTo(true, false)
	l.judge.says(policy.Deny, l.hook.Epoch())
	l.expectArrival("denied request", cli, srv, to, false)

	if err := l.hook.Prepare(Policed{}); err != nil {
		t.Fatal(err)
	}
	l.switchTo(false, true)
	l.expectArrival("request that no policy is about", cli, srv, to, true)
	l.expectArrival("its reply", srv, cli, back, true)
	l.expectAsked("request that no policy is about", 1)
}

// An ICMP error in the original direction, about a reply, belongs to the flow
// that is about to be judged again; it is no flow of its own.
func TestICMPErrorOfAllowedFlowPasses(t *testing.T) {
	l := newLab(t, testConfig(NFT))
	to := netip.AddrPortFrom(server4, serverPort)
	srv, cli := l.udp(l.server, to.String()), l.udp(l.client, "0.0.0.0:0")
	back := netip.AddrPortFrom(pod4, port(cli))
	l.expectArrival("request", cli, srv, to, true)
	cli.Close() // a reply is now answered with port unreachable
	l.switchTo(true, false)
	l.judge.says(policy.Deny, l.hook.Epoch())
	if _, err := srv.WriteToUDPAddrPort([]byte("late"), back); err != nil {
		t.Fatal(err)
	}
	l.awaitCount(PurposeICMPError, 1)
	l.expectAsked("ICMP error", 0)
}

// Programs that use connection marks restore them into packet marks with all
// bits, ours included. That must not look like a verdict.
func TestRestoredConnmarkIsNoVerdict(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		l := newLab(t, testConfig(b))
		l.router.run(t, fmt.Sprintf("iptables-%v -t mangle -A PREROUTING -j CONNMARK --restore-mark", b))
		to := netip.AddrPortFrom(server4, serverPort)
		srv, cli := l.udp(l.server, to.String()), l.udp(l.client, "0.0.0.0:0")
		back := netip.AddrPortFrom(pod4, port(cli))
		for range 2 {
			l.expectArrival("request", cli, srv, to, true)
			l.expectArrival("reply", srv, cli, back, true)
		}
		l.expectAsked("flow", 1)

		l.switchTo(true, false)
		l.judge.says(policy.Deny, l.hook.Epoch())
		for range 2 {
			l.expectArrival("request of the flow now denied", cli, srv, to, false)
			l.expectArrival("reply of the flow now denied", srv, cli, back, false)
		}
		l.expectAsked("live flow", 1)
	})
}

func TestHostAndUnpolicedTrafficIsUntouched(t *testing.T) {
	l := newLab(t, testConfig(NFT))
	l.judge.says(policy.Deny, l.hook.Epoch())
	to := netip.AddrPortFrom(server4, serverPort)
	srv := l.udp(l.server, to.String())
	pod := l.udp(l.client, "0.0.0.0:7000")
	if err := l.hook.Prepare(Policed{Egress: []netip.Addr{pod4}, Ingress: []netip.Addr{pod4, server4}}); err != nil {
		t.Fatal(err)
	}
	host := l.udp(l.router, "0.0.0.0:0")
	l.expectArrival("node to pod, both policed", host, srv, to, true)
	l.expectArrival("node to pod, both policed", host, pod, netip.AddrPortFrom(pod4, 7000), true)
	if err := l.hook.Prepare(Policed{}); err != nil {
		t.Fatal(err)
	}
	if err := l.hook.Finish(); err != nil {
		t.Fatal(err)
	}
	l.expectArrival("pod that no policy is about", pod, srv, to, true)
	l.expectAsked("untouched traffic", 0)
}

// Nobody after our rules sees our bits, and nobody's bits are lost.
func TestPacketMarkIsHiddenAndForeignBitsStay(t *testing.T) {
	l := newLab(t, testConfig(NFT))
	l.router.run(t, `
iptables-nft -t mangle -A PREROUTING -j MARK --set-xmark 0x4321/0xffff
iptables-nft -t mangle -A POSTROUTING -d 10.2.0.2 -m mark --mark 0x4321 -m comment --comment clean -j RETURN
iptables-nft -t mangle -A POSTROUTING -d 10.2.0.2 -m comment --comment dirty -j RETURN`)
	to := netip.AddrPortFrom(server4, serverPort)
	srv, cli, cli2 := l.udp(l.server, to.String()), l.udp(l.client, "0.0.0.0:0"), l.udp(l.client, "0.0.0.0:0")
	l.judge.says(policy.Allow, l.hook.Epoch()-1)
	l.expectArrival("stale allow", cli, srv, to, true)
	l.judge.says(policy.Allow, l.hook.Epoch())
	l.expectArrival("allow", cli, srv, to, true)
	l.expectArrival("established", cli, srv, to, true)
	l.expectArrival("allow set", cli2, srv, to, true)
	// Two packets of a flow wait together; the first verdict marks the flow.
	l.switchTo(true, false)
	l.judge.says(policy.Allow, l.hook.Epoch())
	both := make(chan struct{})
	l.judge.gate.Store(&both)
	_, err1 := cli.WriteToUDPAddrPort([]byte("hello"), to)
	_, err2 := cli.WriteToUDPAddrPort([]byte("hello"), to)
	close(both)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	l.expect("one of two", l.received(srv, true), true)
	l.expect("the other", l.received(srv, true), true)
	l.expectAsked("two packets at once", 2)
	out := l.router.run(t, "iptables-nft-save -c -t mangle")
	if !strings.Contains(out, "[6:198] -A POSTROUTING -d 10.2.0.2/32 -m mark --mark 0x4321 -m comment --comment clean") {
		t.Errorf("want 6 packets with the foreign mark alone:\n%s", out)
	}
}

// A packet that belongs to no connection would be judged as if it opened one.
func TestInvalidPacketIsDropped(t *testing.T) {
	l := newLab(t, testConfig(NFT))
	// FIN and SYN together: no state of TCP has that (tcp_valid_flags in
	// net/netfilter/nf_conntrack_proto_tcp.c).
	segment := []byte{0x1b, 0x58, 0x23, 0x28, 0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 0x03, 0xff, 0xff, 0, 0, 0, 0}
	l.client.in(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, syscall.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, segment, 0, &unix.SockaddrInet4{Addr: server4.As4()})
	})
	l.awaitCount(PurposeInvalid, 1)
	l.expectAsked("invalid packet", 0)
}

func TestCountersSurviveSwitches(t *testing.T) {
	l := newLab(t, testConfig(NFT))
	to := netip.AddrPortFrom(server4, serverPort)
	srv, cli := l.udp(l.server, to.String()), l.udp(l.client, "0.0.0.0:0")
	for range 3 {
		l.expectArrival("request", cli, srv, to, true)
		l.switchTo(true, true)
		l.judge.says(policy.Allow, l.hook.Epoch())
	}
	if got := l.count(PurposeQueue); got != 3 {
		t.Errorf("counted %d queued packets, want 3", got)
	}
}

// Replacing the rules must not lose packets that wait for a verdict meanwhile.
func TestSwitchLosesNoQueuedPacket(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		l := newLab(t, testConfig(b))
		const packets = 200
		var got atomic.Int64
		srv := l.udp(l.server, "10.2.0.2:9000")
		go func() {
			for buf := make([]byte, 16); ; got.Add(1) {
				if _, _, err := srv.ReadFromUDPAddrPort(buf); err != nil {
					return
				}
			}
		}()
		cli := l.udp(l.client, "0.0.0.0:0")
		sent := make(chan error, 1)
		go func() {
			var err error
			for range packets {
				if _, err = cli.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(server4, serverPort)); err != nil {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			sent <- err
		}()
		for range 5 {
			l.switchTo(true, false)
			l.judge.epoch.Store(l.hook.Epoch())
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		eventually(func() bool { return got.Load() >= packets })
		if got.Load() != packets {
			t.Errorf("%d of %d packets arrived across switches", got.Load(), packets)
		}
	})
}

// TestForgedSourcesLeavePodsRoom: a flood from more sources than the kernel counts
// keeps isolated pods from nothing.
func TestForgedSourcesLeavePodsRoom(t *testing.T) {
	cfg := testConfig(NFT)
	cfg.sources = 16
	l := newLab(t, cfg)
	if err := l.hook.Prepare(Policed{Egress: []netip.Addr{pod4}, Ingress: []netip.Addr{pod4}}); err != nil {
		t.Fatal(err)
	}
	for i := range byte(64) {
		l.forge(netip.AddrFrom4([4]byte{192, 0, 2, i + 1}), pod4)
	}
	at := l.udp(l.server, "0.0.0.0:9000")
	l.expectArrival("from the pod, in the flood", l.udp(l.client, "0.0.0.0:0"), at, netip.AddrPortFrom(server4, serverPort), true)
	if l.count(PurposeQueue) > 16+1 {
		t.Errorf("asked about %d packets: the table was not full", l.count(PurposeQueue))
	}
}

// forge sends a datagram from the server's network with a source of its own choice.
func (l *lab) forge(src, dst netip.Addr) {
	l.t.Helper()
	packet := []byte{0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0}
	packet = append(append(packet, src.AsSlice()...), dst.AsSlice()...)
	packet = append(packet, 0x0f, 0xa0, 0, 9, 0, 8, 0, 0)
	l.server.in(l.t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: dst.As4()})
	})
}
