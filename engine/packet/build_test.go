package packet

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/netverdict/netverdict/policy"
)

// Ends of the test packets.
var (
	src4 = netip.MustParseAddr("10.244.1.7")
	dst4 = netip.MustParseAddr("10.96.0.10")
	src6 = netip.MustParseAddr("fd00:10:244:1::7")
	dst6 = netip.MustParseAddr("fd00:10:96::a")
)

// tcpOptions are those of an ordinary Linux SYN: 20 bytes.
var tcpOptions = []layers.TCPOption{
	{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 180}},
	{OptionType: layers.TCPOptionKindSACKPermitted, OptionLength: 2},
	{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: make([]byte, 8)},
	{OptionType: layers.TCPOptionKindNop, OptionLength: 1},
	{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{7}},
}

// serialize renders the layers with correct lengths.
func serialize(tb testing.TB, ls ...gopacket.SerializableLayer) []byte {
	tb.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, ls...); err != nil {
		tb.Fatalf("serialize test packet: %v", err)
	}
	return buf.Bytes()
}

// over puts the transport layers into an IPv4 (six false) or IPv6 packet.
func over(tb testing.TB, six bool, proto policy.Protocol, ls ...gopacket.SerializableLayer) []byte {
	tb.Helper()
	var ip gopacket.SerializableLayer = &layers.IPv4{
		Version: 4, TTL: 64, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocol(proto),
		SrcIP: src4.AsSlice(), DstIP: dst4.AsSlice(),
	}
	if six {
		ip = &layers.IPv6{
			Version: 6, HopLimit: 64, NextHeader: layers.IPProtocol(proto),
			SrcIP: src6.AsSlice(), DstIP: dst6.AsSlice(),
		}
	}
	return serialize(tb, append([]gopacket.SerializableLayer{ip}, ls...)...)
}

func tcpLayer() *layers.TCP {
	return &layers.TCP{SrcPort: 40001, DstPort: 80, SYN: true, ECE: true, Window: 64240, Options: tcpOptions}
}

func udpLayer() *layers.UDP { return &layers.UDP{SrcPort: 40002, DstPort: 53} }

func sctpLayer() *layers.SCTP { return &layers.SCTP{SrcPort: 40003, DstPort: 3868} }

func payload(n int) gopacket.Payload { return make([]byte, n) }

// ext6 is an IPv6 packet with the given next header and the raw bytes behind
// its header, its payload length being theirs.
func ext6(next uint8, parts ...[]byte) []byte {
	b := make([]byte, ipv6HeaderLen)
	b[0], b[6], b[7] = 6<<4, next, 64
	copy(b[8:], src6.AsSlice())
	copy(b[24:], dst6.AsSlice())
	for _, part := range parts {
		b = append(b, part...)
	}
	n := len(b) - ipv6HeaderLen
	b[4], b[5] = byte(n>>8), byte(n)
	return b
}

// ext is an extension header of the given size in bytes (a multiple of 8)
// followed by next, with PadN options inside.
func ext(next uint8, size int) []byte {
	b := make([]byte, size)
	b[0], b[1] = next, byte(size/8-1)
	return b
}

// fragment6 is a fragment header; offset counts 8-byte units.
func fragment6(next uint8, offset uint16, more bool) []byte {
	v := offset << 3
	if more {
		v |= 1
	}
	return []byte{next, 0, byte(v >> 8), byte(v), 0, 0, 0, 9}
}

// ah is an authentication header of 24 bytes, followed by next.
func ah(next uint8) []byte {
	b := make([]byte, 24)
	b[0], b[1] = next, 24/4-2
	return b
}

// jumbo is a hop-by-hop header with a jumbo payload option.
func jumbo(next uint8, length uint32) []byte {
	return []byte{next, 0, optJumbo, 4, byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)}
}

// rawTCP and rawUDP are transport headers without gopacket's hand in them.
func rawTCP() []byte {
	return []byte{0x9c, 0x41, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 0x02, 0xfa, 0xf0, 0, 0, 0, 0}
}

func rawUDP() []byte { return []byte{0x9c, 0x42, 0, 53, 0, 8, 0, 0} }

// set returns a copy of b with the byte at i replaced.
func set(b []byte, i int, v byte) []byte {
	c := append([]byte(nil), b...)
	c[i] = v
	return c
}
