package audit

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/netverdict/netverdict/policy"
)

// Ends of the test packets.
var (
	pod4, peer4, vip4, node4 = netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("192.168.0.1")
	pod6, peer6              = netip.MustParseAddr("fd00:1::1"), netip.MustParseAddr("fd00:1::2")
)

func serialize(tb testing.TB, ls ...gopacket.SerializableLayer) []byte {
	tb.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, ls...); err != nil {
		tb.Fatal(err)
	}
	return append([]byte(nil), buf.Bytes()...)
}

func over(tb testing.TB, src, dst netip.Addr, p policy.Protocol, ls ...gopacket.SerializableLayer) []byte {
	tb.Helper()
	var ip gopacket.SerializableLayer = &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocol(p), SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	if src.Is6() {
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocol(p), SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	return serialize(tb, append([]gopacket.SerializableLayer{ip}, ls...)...)
}

// wire is a packet to be built.
type wire struct {
	src, dst netip.Addr
	sp, dp   uint16
	seq      uint32 // of TCP; what else tells packets apart is in the payload
	flags    string // of TCP
	payload  string
}

func (w wire) tcp(tb testing.TB) []byte {
	t := &layers.TCP{SrcPort: layers.TCPPort(w.sp), DstPort: layers.TCPPort(w.dp), Seq: w.seq, Window: 1000}
	for _, f := range w.flags {
		switch f {
		case 'S':
			t.SYN = true
		case 'A':
			t.ACK = true
		case 'R':
			t.RST = true
		case 'E':
			t.ECE, t.CWR = true, true
		}
	}
	return over(tb, w.src, w.dst, policy.TCP, t, gopacket.Payload(w.payload))
}

func (w wire) udp(tb testing.TB) []byte {
	return over(tb, w.src, w.dst, policy.UDP, &layers.UDP{SrcPort: layers.UDPPort(w.sp), DstPort: layers.UDPPort(w.dp)}, gopacket.Payload(w.payload))
}

// sctp is a packet with one chunk.
func (w wire) sctp(tb testing.TB, chunk byte) []byte {
	return over(tb, w.src, w.dst, policy.SCTP, &layers.SCTP{SrcPort: layers.SCTPPort(w.sp), DstPort: layers.SCTPPort(w.dp)},
		gopacket.Payload(append([]byte{chunk, 0, 0, 20}, make([]byte, 16)...)))
}

func (w wire) icmp(tb testing.TB, kind uint8, id uint16) []byte {
	body := gopacket.Payload(append([]byte{byte(id >> 8), byte(id), 0, 1}, w.payload...))
	if w.src.Is6() {
		return over(tb, w.src, w.dst, policy.ICMPv6, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}, body)
	}
	return over(tb, w.src, w.dst, policy.ICMP, gopacket.Payload(append([]byte{kind, 0, 0, 0}, body...)))
}

// framed puts a packet into an Ethernet frame, with VLAN tags.
func framed(tb testing.TB, ip []byte, tags ...uint16) []byte {
	tb.Helper()
	kind := layers.EthernetTypeIPv4
	if ip[0]>>4 == 6 {
		kind = layers.EthernetTypeIPv6
	}
	e := &layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: kind}
	all := []gopacket.SerializableLayer{e}
	for i, tag := range tags {
		d := &layers.Dot1Q{VLANIdentifier: tag, Type: kind}
		if i == 0 {
			e.EthernetType = layers.EthernetTypeDot1Q
		} else {
			all[i].(*layers.Dot1Q).Type = layers.EthernetTypeDot1Q
		}
		all = append(all, d)
	}
	return serialize(tb, append(all, gopacket.Payload(ip))...)
}

// raw is a payload that is no header of anything.
func (w wire) raw() gopacket.SerializableLayer { return gopacket.Payload(make([]byte, 24)) }
