package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/bench/netlab"
)

// TestPodsOfOneBridge: where a bridge joins pods, policies hold between them whatever
// address they choose: one link-local, one of many, or the node's. Without a policy
// nobody minds, and what needs no policy works under one: neighbour discovery, the
// pods' own addresses, the node.
func TestPodsOfOneBridge(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		l.serve(l.server, 80)
		l.joinByBridge()
		socket := filepath.Join(t.TempDir(), "agent.sock")
		a := l.agent("--node-name=node-1", "--pod-cidr=10.1.0.0/24,fd00:1::/64", "--status-socket", socket, backend)
		l.demandOnLink("without a policy", true)
		a.after(func() { l.write("policy.yaml", policyFor("client", "server")) }, newState)
		l.expect("the allowed client", true, l.client, l.server, 80)
		l.expect("another pod", false, l.other, l.server, 80)
		l.demandOnLink("with a policy", false)
		l.demandForged("with a policy")
		a.await(0, `level=WARN .*sysctl=net.bridge.bridge-nf-filter-vlan-tagged`)
		l.demandTagged("with a policy")
		l.expectNode("with a policy")
		a.kill()
		l.demandOnLink("without an agent", false)
		a = l.agent("--node-name=node-1", "--pod-cidr=10.1.0.0/24,fd00:1::/64", "--status-socket", socket, backend)
		l.demandOnLink("after a restart", false)
		a.after(func() { l.remove("policy.yaml") }, newState)
		l.demandOnLink("without a policy again", true)
		a.terminate()
		l.demandNothingLeft("at the end")
	})
}

// TestBridgeUnseen: an agent whose rules do not see what is bridged says so.
func TestBridgeUnseen(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.serve(l.server, 80)
	l.joinByBridge()
	l.onNode("sysctl -qw net.bridge.bridge-nf-call-ip6tables=0")
	socket := filepath.Join(t.TempDir(), "agent.sock")
	a := l.agent("--node-name=node-1", "--status-socket", socket)
	a.await(0, `level=ERROR msg="pods on one bridge reach each other WHATEVER POLICIES SAY.*sysctl=net.bridge.bridge-nf-call-ip6tables bridges=\[cni0\]`)
	s, err := askStatus(context.Background(), socket)
	if err != nil {
		t.Fatal(err)
	}
	if s.Bridges == nil || strings.Join(s.Bridges.Names, " ") != "cni0" || strings.Join(s.Bridges.Unseen, " ") != "net.bridge.bridge-nf-call-ip6tables" {
		text, _ := json.Marshal(s.Bridges)
		t.Errorf("status says %s", text)
	}
}

// joinByBridge makes of the pods' links what a bridge CNI plugin does.
func (l *agentLab) joinByBridge() {
	l.t.Helper()
	l.onNode("ip link add cni0 type bridge")
	for _, h := range []*netlab.Host{l.client, l.server, l.other} {
		l.onNode(strings.ReplaceAll("ip route flush dev LINK; ip -6 route flush dev LINK; ip -6 addr flush dev LINK; ip link set LINK master cni0", "LINK", h.Interface()))
		out, err := h.Command(l.t.Context(), "sh", "-ec", `
			ip route flush dev eth0
			ip route add 10.1.0.0/24 dev eth0
			ip route add default via 10.1.0.254
			ip -6 route del default
			ip -6 route add fd00:1::/64 dev eth0
			ip -6 route add default via fd00:1::ff`).CombinedOutput()
		if err != nil {
			l.t.Fatalf("routes of %s: %v: %s", h.Name(), err, out)
		}
	}
	l.onNode(`ip link set cni0 up
		ip addr add 10.1.0.254/24 dev cni0
		ip -6 addr add fd00:1::ff/64 dev cni0 nodad
		sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1`)
	l.expectNode("on the bridge")
}

// expectNode: the node reaches a pod.
func (l *agentLab) expectNode(when string) {
	l.t.Helper()
	l.expect(when+": the node", true, l.node.Host, l.server, 80)
}

// onLink are the ways from one pod to another that name no pod.
func (l *agentLab) onLink() map[string]string {
	l.t.Helper()
	return map[string]string{
		"udp4 to all hosts":        "224.0.0.1",
		"udp6 to all nodes":        "ff02::1%" + eth0(l.t, l.other),
		"udp6 to a link's address": linkLocal(l.t, l.server) + "%" + eth0(l.t, l.other),
	}
}

// demandOnLink sends to the server by all of these ways.
func (l *agentLab) demandOnLink(when string, arrives bool) {
	l.t.Helper()
	for how, to := range l.onLink() {
		func() {
			capture, err := l.server.Capture(toDiscard)
			if err != nil {
				l.t.Fatal(err)
			}
			defer capture.Close()
			ctx, cancel := context.WithTimeout(context.Background(), agentPatience)
			defer cancel()
			c, err := l.other.DialContext(ctx, "udp", net.JoinHostPort(to, "9"))
			if err != nil {
				l.t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte("hello")); err != nil {
				l.t.Fatal(err)
			}
			if !arrives {
				ctx, cancel = context.WithTimeout(ctx, agentSilence)
				defer cancel()
			}
			if p, err := capture.Next(ctx); arrives != (err == nil) || !arrives && !errors.Is(err, context.DeadlineExceeded) {
				l.t.Errorf("%s: %s: % x, %v, want arrival %v", when, how, p, err, arrives)
			}
		}()
	}
	l.demandDial(when, arrives)
}

// demandDial connects to the server's link-local address.
func (l *agentLab) demandDial(when string, answered bool) {
	l.t.Helper()
	limit := agentSilence
	if answered {
		limit = agentPatience
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := l.other.DialContext(ctx, "tcp", fmt.Sprintf("[%s%%%s]:80", linkLocal(l.t, l.server), eth0(l.t, l.other)))
	if err == nil {
		c.Close()
	}
	if answered != (err == nil) {
		l.t.Errorf("%s: TCP to a link's address: %v, want an answer: %v", when, err, answered)
	}
}

// demandForged sends to the server with the node's addresses.
func (l *agentLab) demandForged(when string) {
	l.t.Helper()
	for i, dst := range l.server.Addrs() {
		capture, err := l.server.Capture(toDiscard)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, src := range []netip.Addr{l.node.Addrs()[i], []netip.Addr{netip.MustParseAddr("10.1.0.254"), netip.MustParseAddr("fd00:1::ff")}[i]} {
			if err := l.other.SendIP(datagram(l.t, src, dst), dst); err != nil {
				l.t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), agentSilence)
		if p, err := capture.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			l.t.Errorf("%s: from the node's address, as another pod sent it: % x, %v", when, p, err)
		}
		cancel()
		capture.Close()
	}
}

// demandTagged sends to the server in frames of VLAN 0, which are seen only if the
// kernel is told so.
func (l *agentLab) demandTagged(when string) {
	l.t.Helper()
	for _, filtered := range []bool{false, true} {
		if filtered {
			l.onNode("sysctl -qw net.bridge.bridge-nf-filter-vlan-tagged=1")
		}
		capture, err := l.server.Capture(toDiscard)
		if err != nil {
			l.t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), agentPatience)
		if filtered {
			cancel()
			ctx, cancel = context.WithTimeout(context.Background(), agentSilence)
		}
		l.sendTagged(datagram(l.t, l.other.Addr4(), l.server.Addr4()))
		if p, err := capture.Next(ctx); filtered == (err == nil) {
			l.t.Errorf("%s: in a tagged frame, which is seen %v: % x, %v", when, filtered, p, err)
		}
		cancel()
		capture.Close()
	}
}

// sendTagged broadcasts a frame: who it is for sees the address in the packet.
func (l *agentLab) sendTagged(packet []byte) {
	l.t.Helper()
	inHost(l.t, l.other, func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		frame := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, i.HardwareAddr, []byte{0x81, 0, 0, 0, 8, 0}, packet)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: i.Index})
	})
}

// toDiscard recognizes UDP datagrams to port 9.
func toDiscard(p []byte) bool {
	switch {
	case !isUDP(p):
		return false
	case p[0]>>4 == 4:
		return p[22] == 0 && p[23] == 9
	}
	return p[42] == 0 && p[43] == 9
}

// eth0 is the index of a host's interface, which works as a zone.
func eth0(t *testing.T, h *netlab.Host) (index string) {
	t.Helper()
	inHost(t, h, func() error {
		i, err := net.InterfaceByName("eth0")
		if err == nil {
			index = fmt.Sprint(i.Index)
		}
		return err
	})
	return index
}

func linkLocal(t *testing.T, h *netlab.Host) (addr string) {
	t.Helper()
	inHost(t, h, func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := i.Addrs()
		for _, a := range addrs {
			if p := netip.MustParsePrefix(a.String()); p.Addr().IsLinkLocalUnicast() && p.Addr().Is6() {
				addr = p.Addr().String()
			}
		}
		return err
	})
	return addr
}

func inHost(t *testing.T, h *netlab.Host, f func() error) {
	t.Helper()
	if err := h.Do(f); err != nil {
		t.Fatal(err)
	}
}
