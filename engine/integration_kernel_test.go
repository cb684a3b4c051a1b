package engine_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/policy"
)

// TestOneWayUDPLeavesUserSpace: UDP that is never answered is never ESTABLISHED
// to conntrack. Still only its first datagram is judged, by the connection mark
// alone: there is no allow set here.
func TestOneWayUDPLeavesUserSpace(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.startWith(func(o *options) { o.hook.AllowTimeout = 0 },
			allow("client", "server", port(corev1.ProtocolUDP, 8125)))
		seen := uint64(0)
		families(n.server, func(family string, a netip.Addr) {
			const datagrams = 50
			capture, err := n.server.Capture(toPort(policy.UDP, 8125))
			if err != nil {
				t.Fatal(err)
			}
			defer capture.Close()
			packet := udpDatagram(t, source(n.client, a), a, 40000, 8125, []byte("gauge:1|g"))
			for i := range datagrams {
				if err := n.client.SendIP(packet, a); err != nil {
					t.Fatal(err)
				}
				if _, err := capture.Next(within(t, patience)); err != nil {
					t.Fatalf("%s datagram %d: %v", family, i, err)
				}
			}
			seen++
			n.demandQueued(fmt.Sprintf("after %d datagrams over %s", datagrams, family), seen)
		})
	})
}

// TestDeniedRetriesStayInTheKernel: of a SYN that is sent again and again, and
// of more connections of that kind, user space sees the first packet only.
func TestDeniedRetriesStayInTheKernel(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.start(isolate(ingress, "server"))
		capture, err := n.server.Capture(toPort(policy.TCP, 80))
		if err != nil {
			t.Fatal(err)
		}
		defer capture.Close()
		families(n.server, func(family string, a netip.Addr) {
			before, dropped := n.queued(), n.matched(hook.PurposeDenySet)
			first := tcpSYN(t, source(n.client, a), a, 40000, 80)
			if err := n.client.SendIP(first, a); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the verdict", func() bool { return n.engine.Stats().Decided(policy.Deny) == before+1 })
			eventually(t, "the packet to be dropped", func() bool { return n.matched(hook.PurposeDenied) == before+1 })
			for i := range uint16(10) {
				retry, another := first, tcpSYN(t, source(n.client, a), a, 41000+i, 80)
				for _, p := range [][]byte{retry, another} {
					if err := n.client.SendIP(p, a); err != nil {
						t.Fatal(err)
					}
				}
			}
			eventually(t, "20 packets dropped by the deny set", func() bool { return n.matched(hook.PurposeDenySet) == dropped+20 })
			n.demandQueued(family, before+1)
		})
		if p, err := capture.Next(within(t, silence)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the server got %x, %v", p, err)
		}
	})
}

// TestAllowedClientsStayInTheKernel: a second connection of a client to a service
// it may use is not judged again; one to another port is.
func TestAllowedClientsStayInTheKernel(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80, 81)
		n.start(allow("client", "server"))
		for range 3 {
			demand(t, http(policy.Allow, n.client, n.server, 80)...)
		}
		n.demandQueued("three connections over each family", 2)
		if got := n.matched(hook.PurposeAllowSet); got < 4 || got > 4+n.repeatedSYNs() {
			t.Errorf("the allow set let %d packets through, want 4", got)
		}
		demand(t, http(policy.Allow, n.client, n.server, 81)...)
		n.demandQueued("another port", 4)
	})
}

// TestRepliesAreNotJudged, though as connections of their own they would be
// denied: the server may not send, and the client may not be reached. That holds
// for new connections and for those that are older than the generation, of which
// a reply may be the first packet that the rules see.
func TestRepliesAreNotJudged(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.startWith(func(o *options) { o.hook.AllowTimeout = 0 })
		streams := openStreams(t, n.client, n.server)
		policies := []*networkingv1.NetworkPolicy{allow("client", "server"), isolate(egress, "server"), isolate(ingress, "client")}
		n.apply(policies...)
		for range 3 {
			for _, s := range streams {
				s.awaitLines(20)
			}
			demand(t, slices.Concat(http(policy.Allow, n.client, n.server, 80),
				udp(policy.Allow, n.client, n.server, 80), ping(policy.Allow, n.client, n.server))...)
			n.apply(append(policies, isolate(ingress, "other"))...)
			n.apply(policies...)
		}
		demand(t, http(policy.Deny, n.server, n.client, 80)...) // the policies do what they say
		if err := n.stop(); err != nil {
			t.Error(err)
		}
		for _, r := range n.flows.Records() {
			if toServer := r.Dst == n.server.Addr4() || r.Dst == n.server.Addr6(); toServer != (r.Decision.Verdict == policy.Allow) || !toServer && r.DstPort != 80 {
				t.Errorf("%v:%d>%v:%d/%v was judged: %v", r.Src, r.SrcPort, r.Dst, r.DstPort, r.Protocol, r.Decision.Verdict)
			}
		}
	})
}

// TestOwnNodeIsUntouched: the node reaches an isolated pod (kubelet's probes) and
// the pod its node, and nobody in user space hears of it.
func TestOwnNodeIsUntouched(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		if _, err := n.node.ServeHTTP(80); err != nil {
			t.Fatal(err)
		}
		if _, err := n.node.ServeUDP(80); err != nil {
			t.Fatal(err)
		}
		n.start(isolate(ingress, "server"), isolate(egress, "server"))
		for _, pair := range [][2]*netlab.Host{{n.node.Host, n.server}, {n.server, n.node.Host}} {
			demand(t, slices.Concat(http(policy.Allow, pair[0], pair[1], 80),
				udp(policy.Allow, pair[0], pair[1], 80), ping(policy.Allow, pair[0], pair[1]))...)
		}
		n.demandQueued("the node and its pod", 0)
		demand(t, http(policy.Deny, n.client, n.server, 80)...)
	})
}

// TestUnselectedPodsAreUntouched: what no policy is about never leaves the kernel.
func TestUnselectedPodsAreUntouched(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.start(isolate(ingress, "server"))
		demand(t, slices.Concat(http(policy.Allow, n.client, n.other, 80), udp(policy.Allow, n.other, n.client, 80),
			ping(policy.Allow, n.client, n.other), sctp(t, policy.Allow, n.client, n.other, 80),
			http(policy.Allow, n.server, n.other, 80))...) // isolated for ingress only
		n.demandQueued("pods that no policy selects", 0)
	})
}

// TestErrorsReachTheClient of an allowed flow: the RST of a closed TCP port and
// the ICMP message about a closed UDP port, although the server may not send.
func TestErrorsReachTheClient(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.start(allow("client", "server"), isolate(egress, "server"), isolate(ingress, "client"))
		families(n.server, func(family string, a netip.Addr) {
			closed := netip.AddrPortFrom(a, 9).String()
			_, err := n.client.DialContext(within(t, patience), "tcp", closed)
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("TCP over %s: %v, want a refusal", family, err)
			}
			c, err := n.client.DialContext(within(t, patience), "udp", closed)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := awaitRefusal(t, c); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("UDP over %s: %v, want a refusal", family, err)
			}
		})
	})
}

func awaitRefusal(t *testing.T, c net.Conn) error {
	if _, err := c.Write([]byte("anybody there?")); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(within(t, patience), func() { c.Close() })
	defer stop()
	_, err := c.Read(make([]byte, 64))
	return err
}

// TestServices: policy is about the pod behind a service, on both sides of DNAT,
// and a pod that reaches itself through its own service is not isolated from itself.
func TestServices(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		vip4, vip6 := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::10")
		for vip, backend := range map[netip.Addr]netip.Addr{vip4: n.server.Addr4(), vip6: n.server.Addr6()} {
			if _, err := n.node.AddService(vip, 8080, "tcp", netip.AddrPortFrom(backend, 80)); err != nil {
				t.Fatal(err)
			}
		}
		n.start(allow("client", "server", port(corev1.ProtocolTCP, 80)))
		through := func(want policy.Verdict, from *netlab.Host, vip netip.Addr) probe {
			return probe{fmt.Sprintf("HTTP %s>%s", from.Name(), vip), want, func(ctx context.Context) error {
				return answeredBy(n.server)(from.HTTPGet(ctx, netip.AddrPortFrom(vip, 8080)))
			}}
		}
		demand(t,
			through(policy.Allow, n.client, vip4), through(policy.Allow, n.client, vip6),
			through(policy.Deny, n.other, vip4), through(policy.Deny, n.other, vip6),
			through(policy.Allow, n.server, vip4), through(policy.Allow, n.server, vip6))
	})
}

// TestForeignMarksSurvive: the bits of others in packet marks and connection marks
// are the same after a verdict, and no bit of ours is seen by who comes after us.
func TestForeignMarksSurvive(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		const packet, conn = "0x5a000002", "0xa5000055" // all but those of narrow
		for _, family := range []string{"v4", "v6"} {
			mangle := func(args ...string) {
				n.command(n.iptables(family, ""), append([]string{"-w", "-t", "mangle"}, args...)...)
			}
			mangle("-A", "PREROUTING", "-j", "MARK", "--set-xmark", packet+"/0xfffffe0f")
			mangle("-A", "PREROUTING", "-j", "CONNMARK", "--set-xmark", conn+"/0xfffcf2ff")
		}
		n.startWith(narrow, allow("client", "server"))
		for _, family := range []string{"v4", "v6"} {
			n.command(n.iptables(family, ""), "-w", "-t", "mangle", "-A", "POSTROUTING", "-p", "tcp", "-m", "mark", "!", "--mark", packet)
			n.command(n.iptables(family, ""), "-w", "-t", "mangle", "-A", "POSTROUTING", "-p", "tcp", "-m", "connmark", "!", "--mark", conn+"/0xfffcf2ff")
		}
		for range 2 { // judged, then known to the allow set
			demand(t, http(policy.Allow, n.client, n.server, 80)...)
		}
		for _, family := range []string{"v4", "v6"} {
			rules := n.command(n.iptables(family, ""), "-w", "-t", "mangle", "-nvxL", "POSTROUTING")
			for _, rule := range strings.Split(strings.TrimSpace(rules), "\n")[3:] {
				if strings.Fields(rule)[0] != "0" {
					t.Errorf("%s: packets with other marks:\n%s", family, rules)
				}
			}
		}
	})
}
