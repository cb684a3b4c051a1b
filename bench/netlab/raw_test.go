//go:build linux

package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

const sctpInit = 1 // chunk type, RFC 9260 section 3.2

// initPacket builds an IP packet with an SCTP INIT.
func initPacket(t testing.TB, src, dst netip.Addr, dstPort uint16) []byte {
	t.Helper()
	sctp := &layers.SCTP{SrcPort: 40000, DstPort: layers.SCTPPort(dstPort)}
	init := &layers.SCTPInit{
		SCTPChunk:   layers.SCTPChunk{Type: layers.SCTPChunkTypeInit, Length: 20},
		InitiateTag: 0x1234, AdvertisedReceiverWindowCredit: 65535, OutboundStreams: 1, InboundStreams: 1, InitialTSN: 1,
	}
	var ip gopacket.SerializableLayer = &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolSCTP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	if dst.Is6() {
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolSCTP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, ip, sctp, init); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// isInit matches SCTP INITs to a port, parsed by hand: the lab must deliver
// packets that start at the IP header.
func isInit(port uint16) func([]byte) bool {
	return func(p []byte) bool {
		var payload []byte
		switch {
		case len(p) >= 20 && p[0]>>4 == 4 && p[9] == 132:
			payload = p[int(p[0]&15)*4:]
		case len(p) >= 40 && p[0]>>4 == 6 && p[6] == 132:
			payload = p[40:]
		}
		return len(payload) > 12 && binary.BigEndian.Uint16(payload[2:]) == port && payload[12] == sctpInit
	}
}

func TestSCTPPacketArrives(t *testing.T) {
	lab := newLab(t)
	n1 := addNode(t, lab, "n1", "10.0.1.0/24", "fd00:1::/64")
	n2 := addNode(t, lab, "n2", "10.0.2.0/24", "fd00:2::/64")
	a := addHost(t, n1, "a", "10.0.1.1", "fd00:1::1")
	b := addHost(t, n1, "b", "10.0.1.2", "fd00:1::2")
	c := addHost(t, n2, "c", "10.0.2.1", "fd00:2::1")
	if err := lab.Connect(n1, n2); err != nil {
		t.Fatal(err)
	}
	for _, to := range []*Host{b, c} {
		for i, dst := range to.Addrs() {
			src := a.Addrs()[i]
			capture := must[*Capture](t)(to.Capture(isInit(9999)))
			for _, port := range []uint16{9998, 9999} { // the first must be filtered out
				if err := a.SendIP(initPacket(t, src, dst, port), dst); err != nil {
					t.Fatal(err)
				}
			}
			got := must[[]byte](t)(capture.Next(within(t, patience)))
			if want := fmt.Sprintf("%s>%s", src, dst); endpoints(got) != want {
				t.Errorf("arrived %s, want %s", endpoints(got), want)
			}
			if p, err := capture.Next(within(t, 50*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a second packet: %x, %v", p, err)
			}
			capture.Close()
		}
	}
}

func endpoints(p []byte) string {
	first := layers.LayerTypeIPv4
	if p[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	flow := gopacket.NewPacket(p, first, gopacket.NoCopy).NetworkLayer().NetworkFlow()
	return flow.Src().String() + ">" + flow.Dst().String()
}

func TestForgedSourceArrives(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	a, b := addHost(t, n, "a", "10.0.0.1", "fd00::1"), addHost(t, n, "b", "10.0.0.2", "fd00::2")
	capture := must[*Capture](t)(b.Capture(isInit(5)))
	for i, src := range []string{"203.0.113.7", "2001:db8::7"} {
		dst := b.Addrs()[i]
		if err := a.SendIP(initPacket(t, netip.MustParseAddr(src), dst, 5), dst); err != nil {
			t.Fatal(err)
		}
		got := must[[]byte](t)(capture.Next(within(t, patience)))
		if want := src + ">" + dst.String(); endpoints(got) != want {
			t.Errorf("arrived %s, want %s", endpoints(got), want)
		}
	}
}

// A capture keeps what arrives between calls, works on after an ended context,
// sees only arrivals, and ends with its host.
func TestCapture(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	a, b := addHost(t, n, "a", "10.0.0.1"), addHost(t, n, "b", "10.0.0.2")
	capture := must[*Capture](t)(b.Capture(func(p []byte) bool { return p[0]>>4 == 4 }))
	if _, err := capture.Next(within(t, 10*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nothing sent: %v", err)
	}
	for range 3 {
		if err := a.Ping(within(t, patience), b.Addr4()); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		got := must[[]byte](t)(capture.Next(within(t, patience)))
		if endpoints(got) != "10.0.0.1>10.0.0.2" {
			t.Errorf("captured %s: own packets are no arrivals", endpoints(got))
		}
	}
	time.AfterFunc(20*time.Millisecond, func() { b.Remove() })
	if _, err := capture.Next(within(t, patience)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Remove: %v", err)
	}
}

func TestPingFailsWithoutAnswer(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	a := addHost(t, n, "a", "10.0.0.1", "fd00::1")
	b := addHost(t, n, "b", "10.0.0.2", "fd00::2")
	for _, tool := range []string{"iptables", "ip6tables"} {
		if out, err := n.Command(t.Context(), tool, "-w", "-A", "FORWARD", "-j", "DROP").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, to := range b.Addrs() {
		if err := a.Ping(within(t, 100*time.Millisecond), to); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", to, err)
		}
	}
}
