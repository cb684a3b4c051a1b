package main

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/netverdict/netverdict/bench/netlab"
)

// TestAntiSpoof: what a pod sends with another pod's address, one of the world or the
// node's is dropped and counted, also after a restart; its own passes.
func TestAntiSpoof(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		l.serve(l.server, 80)
		socket := filepath.Join(t.TempDir(), "agent.sock")
		args := []string{"--node-name=node-1", "--anti-spoof", "--pod-cidr=10.1.0.0/24,fd00:1::/64", "--status-socket", socket, "--on-stop=keep-closed", backend}
		a := l.agent(args...)
		a.await(0, `msg="pods' interfaces" count=3`)
		dropped := l.demandSpoofing(socket, 0)
		a.kill()
		l.demandSpoofed("without an agent")
		a = l.agent(args...)
		a.await(0, `msg="pods' interfaces" count=3`)
		l.demandSpoofing(socket, 0)
		a.terminate()
		if dropped == 0 {
			t.Error("nothing was counted")
		}
		if out, err := l.command("cleanup").Output(); err != nil {
			t.Errorf("cleanup: %v: %s", err, out)
		}
		l.demandNothingLeft("after cleanup")
	})
}

// TestAntiSpoofFollowsRoutes: a pod that nobody has told the agent of is kept from
// spoofing as soon as there is a route to it; who is behind another interface than
// pods may send with whatever source, and pods share a bridge.
func TestAntiSpoofFollowsRoutes(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		outside, err := l.node.AddHost("outside", netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd00:9::1"))
		if err != nil {
			t.Fatal(err)
		}
		socket := filepath.Join(t.TempDir(), "agent.sock")
		a := l.agent("--node-name=node-1", "--anti-spoof", "--pod-cidr=10.1.0.0/16,fd00:1::/48", "--unknown-pod=allow", "--hold-limit=0", "--status-socket", socket, backend)
		a.await(0, `msg="pods' interfaces" count=3 shared=\[\]`)
		l.demandAsymmetric(outside)
		a.after(func() {
			if l.client, err = l.node.AddHost("late", netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("fd00:1::9")); err != nil {
				t.Fatal(err)
			}
		}, `msg="pods' interfaces" count=4`)
		l.demandSpoofed("a pod that is not known")
		a.after(l.addBridge, `msg="pods' interfaces" count=5 shared=\[cni0\]`)
		s, err := askStatus(context.Background(), socket)
		if err != nil {
			t.Fatal(err)
		}
		if text := s.AntiSpoof.text(); !strings.HasSuffix(text, "5 interfaces of pods, of which several pods share cni0 and can use each other's addresses") {
			t.Errorf("status says %q", text)
		}
	})
}

// demandAsymmetric sends from a host behind no pod's interface with sources that are
// routed elsewhere; it must arrive.
func (l *agentLab) demandAsymmetric(outside *netlab.Host) {
	l.t.Helper()
	capture, err := l.server.Capture(isUDP)
	if err != nil {
		l.t.Fatal(err)
	}
	defer capture.Close()
	ctx, cancel := context.WithTimeout(context.Background(), agentPatience)
	defer cancel()
	for i, src := range []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")} {
		dst := l.server.Addrs()[i]
		if err := outside.SendIP(datagram(l.t, src, dst), dst); err != nil {
			l.t.Fatal(err)
		}
		if p, err := capture.Next(ctx); err != nil || sourceOf(p) != src {
			l.t.Errorf("from outside: % x, %v", p, err)
		}
	}
}

// addBridge makes what a bridge CNI plugin has.
func (l *agentLab) addBridge() {
	l.t.Helper()
	for _, args := range [][]string{
		{"link", "add", "cni0", "type", "bridge"}, {"link", "set", "cni0", "up"}, {"route", "add", "10.1.7.0/24", "dev", "cni0"},
	} {
		if out, err := l.node.Command(context.Background(), "ip", args...).CombinedOutput(); err != nil {
			l.t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
}

// demandSpoofing tries everything, and returns how many packets were dropped.
func (l *agentLab) demandSpoofing(socket string, before uint64) uint64 {
	l.t.Helper()
	l.expect("own address", true, l.client, l.server, 80)
	l.expect("own address", true, l.other, l.server, 80)
	sent := l.demandSpoofed("with an agent")
	s, err := askStatus(context.Background(), socket)
	if err != nil {
		l.t.Fatal(err)
	}
	if s.AntiSpoof == nil || s.AntiSpoof.Dropped < before+sent || s.AntiSpoof.Links != 3 || len(s.AntiSpoof.Shared) != 0 {
		l.t.Errorf("status %+v, want at least %d dropped", s.AntiSpoof, before+sent)
		return 0
	}
	l.t.Log(s.AntiSpoof.text())
	return s.AntiSpoof.Dropped
}

// demandSpoofed sends datagrams from the client with foreign sources, then one with
// its own, which alone must arrive.
func (l *agentLab) demandSpoofed(when string) (sent uint64) {
	l.t.Helper()
	for i, dst := range l.server.Addrs() {
		capture, err := l.server.Capture(isUDP)
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { capture.Close() })
		world := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}[i]
		for _, src := range []netip.Addr{l.other.Addrs()[i], world, l.node.Addrs()[i]} {
			if err := l.client.SendIP(datagram(l.t, src, dst), dst); err != nil {
				l.t.Fatal(err)
			}
			sent++
		}
		own := l.client.Addrs()[i]
		if err := l.client.SendIP(datagram(l.t, own, dst), dst); err != nil {
			l.t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), agentPatience)
		p, err := capture.Next(ctx)
		cancel()
		if err != nil || sourceOf(p) != own {
			l.t.Errorf("%s: the first packet that arrives is % x, %v, want one from %v", when, p, err, own)
		}
		ctx, cancel = context.WithTimeout(context.Background(), 100*time.Millisecond)
		if p, err := capture.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			l.t.Errorf("%s: also arrives: % x, %v", when, p, err)
		}
		cancel()
	}
	return sent
}

func isUDP(p []byte) bool { return p[0]>>4 == 4 && p[9] == 17 || p[0]>>4 == 6 && p[6] == 17 }

func sourceOf(p []byte) netip.Addr {
	if p[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(p[12:16]))
	}
	return netip.AddrFrom16([16]byte(p[8:24]))
}

func datagram(t *testing.T, src, dst netip.Addr) []byte {
	t.Helper()
	var ip interface {
		gopacket.SerializableLayer
		gopacket.NetworkLayer
	} = &layers.IPv4{Version: 4, TTL: 64, Id: 1, Protocol: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	if dst.Is6() {
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	udp := &layers.UDP{SrcPort: 4000, DstPort: 9}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, udp); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
