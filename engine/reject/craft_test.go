package reject

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/engine/packet/packettest"
	"github.com/netverdict/netverdict/policy"
)

// pair is a client, a server and a Service's address of one family.
type pair struct{ client, server, vip netip.Addr }

var pairs = map[string]pair{
	"v4": {netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.96.0.10")},
	"v6": {netip.MustParseAddr("fd00:1::1"), netip.MustParseAddr("fd00:1::2"), netip.MustParseAddr("fd00:96::10")},
}

func decode(t testing.TB, b []byte) (p packet.Packet, at int) {
	t.Helper()
	packet.NewDecoder().Decode(b, &p)
	at, ok := packet.TransportAt(b)
	if !ok {
		t.Fatalf("no transport header in % x", b)
	}
	return p, at
}

// TestReset: RFC 9293 section 3.10.7.1.
func TestReset(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name     string
		tcp      layers.TCP
		text     string
		seq, ack uint32
		hasACK   bool
	}{
		{"SYN", layers.TCP{SYN: true, Seq: 100}, "", 0, 101, true},
		{"SYN with options", layers.TCP{SYN: true, Seq: 100, Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindSACKPermitted, OptionLength: 2}}}, "", 0, 101, true},
		{"SYN with text (fast open)", layers.TCP{SYN: true, Seq: 100}, "hello", 0, 106, true},
		{"SYN at the end of the numbers", layers.TCP{SYN: true, Seq: 0xffffffff}, "", 0, 0, true},
		{"no flags, text", layers.TCP{Seq: 7}, "hello", 0, 12, true},
		{"FIN", layers.TCP{FIN: true, Seq: 7}, "", 0, 8, true},
		{"ACK", layers.TCP{ACK: true, Seq: 7, Ack: 900}, "hello", 900, 0, false},
		{"SYN and ACK", layers.TCP{SYN: true, ACK: true, Seq: 7, Ack: 900}, "", 900, 0, false},
	}
	for family, a := range pairs {
		for _, c := range cases {
			c.tcp.SrcPort, c.tcp.DstPort = 4000, 80
			sent := packettest.Build(t, a.client, a.server, layers.IPProtocolTCP, &c.tcp, gopacket.Payload(c.text))
			p, at := decode(t, sent)
			s, err := readSegment(sent, at, p.Length)
			if err != nil {
				t.Fatalf("%s %s: %v", family, c.name, err)
			}
			s.dst = netip.AddrPortFrom(a.vip, 8000)
			answer, err := s.reset()
			if err != nil {
				t.Fatalf("%s %s: %v", family, c.name, err)
			}
			got := tcpOf(t, answer)
			if !got.RST || got.ACK != c.hasACK || got.Seq != c.seq || got.Ack != c.ack || got.SrcPort != 8000 || got.DstPort != 4000 || got.SYN || got.FIN {
				t.Errorf("%s %s: answered with %+v", family, c.name, got)
			}
			if from, to := addressesOf(answer); from != a.vip || to != a.client {
				t.Errorf("%s %s: from %v to %v", family, c.name, from, to)
			}
			if again, err := serializeTCP(a.vip, a.client, got); err != nil || string(again) != string(answer) {
				t.Errorf("%s %s: checksums of % x", family, c.name, answer)
			}
		}
	}
}

func tcpOf(t *testing.T, b []byte) *layers.TCP {
	t.Helper()
	first := layers.LayerTypeIPv4
	if b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	tcp, ok := gopacket.NewPacket(b, first, gopacket.Default).Layer(layers.LayerTypeTCP).(*layers.TCP)
	if !ok {
		t.Fatalf("no TCP in % x", b)
	}
	return tcp
}

// TestProhibited: the error quotes the packet as its sender sent it.
func TestProhibited(t *testing.T) {
	t.Parallel()
	for family, a := range pairs {
		original := packettest.Build(t, a.client, a.vip, layers.IPProtocolUDP, &layers.UDP{SrcPort: 4000, DstPort: 8000}, gopacket.Payload("hello"))
		judged := packettest.Build(t, a.client, a.server, layers.IPProtocolUDP, &layers.UDP{SrcPort: 4000, DstPort: 80}, gopacket.Payload("hello"))
		_, at := decode(t, judged)
		quote := addressed(judged, at, netip.AddrPortFrom(a.vip, 8000))
		copy(quote[at+6:at+8], original[at+6:at+8]) // the checksum is not restored
		if string(quote) != string(original) {
			t.Errorf("%s: quoted % x, sent % x", family, quote, original)
		}
		b, err := prohibited(quote, a.client)
		if err != nil {
			t.Fatal(err)
		}
		if family == "v4" {
			if sum := checksum(b[20:]); b[9] != 1 || b[20] != 3 || b[21] != 13 || sum != 0 || string(b[28:]) != string(quote) {
				t.Errorf("v4: % x, checksum %#x", b, sum)
			}
		} else if b[0] != 1 || b[1] != 1 || string(b[8:]) != string(quote) {
			t.Errorf("v6: % x", b)
		}
	}
}

// TestTransportAt walks extension headers as package packet does.
func TestTransportAt(t *testing.T) {
	t.Parallel()
	a := pairs["v6"]
	udp := packettest.Build(t, a.client, a.server, layers.IPProtocolUDP, &layers.UDP{SrcPort: 4000, DstPort: 80}, gopacket.Payload("hello"))
	for _, c := range []struct {
		name   string
		kind   byte
		header []byte
		want   int
	}{
		{"hop-by-hop", 0, []byte{17, 0, 1, 4, 0, 0, 0, 0}, 48},
		{"long destination options", 60, append([]byte{17, 1, 1, 12}, make([]byte, 12)...), 56},
		{"authentication", 51, append([]byte{17, 4}, make([]byte, 22)...), 64},
		{"first fragment", 44, []byte{17, 0, 0, 1, 0, 0, 0, 1}, 48},
	} {
		b := append(append(append([]byte(nil), udp[:40]...), c.header...), udp[40:]...)
		b[6] = c.kind
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		var p packet.Packet
		packet.NewDecoder().Decode(b, &p)
		if at, ok := packet.TransportAt(b); !ok || at != c.want || p.State != packet.OK || p.DstPort != 80 {
			t.Errorf("%s: at %d, %t, want %d; decoded %+v", c.name, at, ok, c.want, p)
		}
	}
}

// TestAnswerable: what RFC 1122 section 3.2.2 and RFC 4443 section 2.4 forbid.
func TestAnswerable(t *testing.T) {
	t.Parallel()
	a, b := pairs["v4"], pairs["v6"]
	ok := packet.Packet{State: packet.OK, Protocol: policy.UDP, Src: a.client, Dst: a.server}
	for _, c := range []struct {
		name string
		edit func(p *packet.Packet)
		want bool
	}{
		{"UDP", func(*packet.Packet) {}, true},
		{"UDP v6", func(p *packet.Packet) { p.Src, p.Dst = b.client, b.server }, true},
		{"TCP SYN", func(p *packet.Packet) { p.Protocol, p.TCPFlags = policy.TCP, flagSYN }, true},
		{"TCP RST", func(p *packet.Packet) { p.Protocol, p.TCPFlags = policy.TCP, flagRST }, false},
		{"TCP RST and ACK", func(p *packet.Packet) { p.Protocol, p.TCPFlags = policy.TCP, flagRST|flagACK }, false},
		{"echo", func(p *packet.Packet) { p.Protocol, p.ICMPType = policy.ICMP, 8 }, true},
		{"ICMP error", func(p *packet.Packet) { p.Protocol, p.ICMPType = policy.ICMP, 3 }, false},
		{"ICMP redirect", func(p *packet.Packet) { p.Protocol, p.ICMPType = policy.ICMP, 5 }, false},
		{"ICMP of a new type", func(p *packet.Packet) { p.Protocol, p.ICMPType = policy.ICMP, 200 }, false},
		{"echo v6", func(p *packet.Packet) { p.Src, p.Dst, p.Protocol, p.ICMPType = b.client, b.server, policy.ICMPv6, 128 }, true},
		{"ICMPv6 error", func(p *packet.Packet) { p.Src, p.Dst, p.Protocol, p.ICMPType = b.client, b.server, policy.ICMPv6, 2 }, false},
		{"neighbour advertisement", func(p *packet.Packet) { p.Src, p.Dst, p.Protocol, p.ICMPType = b.client, b.server, policy.ICMPv6, 136 }, false},
		{"malformed", func(p *packet.Packet) { p.State = packet.BadUDPLength }, false},
		{"later fragment", func(p *packet.Packet) { p.State = packet.Fragment }, false},
		{"to multicast", func(p *packet.Packet) { p.Dst = netip.MustParseAddr("224.0.0.251") }, false},
		{"to multicast v6", func(p *packet.Packet) { p.Src, p.Dst = b.client, netip.MustParseAddr("ff02::fb") }, false},
		{"to broadcast", func(p *packet.Packet) { p.Dst = netip.MustParseAddr("255.255.255.255") }, false},
		{"from nobody", func(p *packet.Packet) { p.Src = netip.IPv4Unspecified() }, false},
		{"from this network", func(p *packet.Packet) { p.Src = netip.MustParseAddr("0.1.2.3") }, false},
		{"from loopback", func(p *packet.Packet) { p.Src = netip.MustParseAddr("127.0.0.1") }, false},
		{"from class E", func(p *packet.Packet) { p.Src = netip.MustParseAddr("250.1.1.1") }, false},
		{"from multicast", func(p *packet.Packet) { p.Src = netip.MustParseAddr("239.1.1.1") }, false},
		{"from nobody v6", func(p *packet.Packet) { p.Src, p.Dst = netip.IPv6Unspecified(), b.server }, false},
		{"from a link v6", func(p *packet.Packet) { p.Src, p.Dst = netip.MustParseAddr("fe80::1"), b.server }, false},
	} {
		p := ok
		c.edit(&p)
		if got := answerable(&p); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
}
