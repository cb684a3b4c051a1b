package packet

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/netverdict/netverdict/policy"
)

type decodeCase struct {
	name string
	b    []byte
	want Packet
}

func between4(want Packet) Packet { want.Src, want.Dst = src4, dst4; return want }
func between6(want Packet) Packet { want.Src, want.Dst = src6, dst6; return want }

// plainCases are ordinary packets of each protocol and family.
func plainCases(tb testing.TB) []decodeCase {
	var cases []decodeCase
	for _, six := range []bool{false, true} {
		between, family, ipLen := between4, "v4", ipv4HeaderLen
		icmpProto, icmp := policy.ICMP, gopacket.SerializableLayer(&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4)})
		icmpLen := 8 + 20
		if six {
			between, family, ipLen = between6, "v6", ipv6HeaderLen
			icmpProto, icmp = policy.ICMPv6, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 1)}
			icmpLen = 4 + 20
		}
		add := func(name string, b []byte, length int, want Packet) {
			want.State, want.Length = OK, ipLen+length
			cases = append(cases, decodeCase{family + "/" + name, b, between(want)})
		}
		add("tcp", over(tb, six, policy.TCP, tcpLayer(), payload(30)), 40+30,
			Packet{Protocol: policy.TCP, SrcPort: 40001, DstPort: 80, TCPFlags: 0x42})
		add("udp", over(tb, six, policy.UDP, udpLayer(), payload(30)), 8+30,
			Packet{Protocol: policy.UDP, SrcPort: 40002, DstPort: 53})
		add("sctp", over(tb, six, policy.SCTP, sctpLayer(), payload(20)), 12+20,
			Packet{Protocol: policy.SCTP, SrcPort: 40003, DstPort: 3868})
		want := Packet{Protocol: icmpProto, ICMPType: 3, ICMPCode: 4}
		if six {
			want.ICMPType, want.ICMPCode = 128, 1
		}
		add("icmp", over(tb, six, icmpProto, icmp, payload(20)), icmpLen, want)
		for _, proto := range []policy.Protocol{41, 47, 50, 136, 255} {
			add("protocol "+proto.String(), over(tb, six, proto, payload(20)), 20, Packet{Protocol: proto})
			add("empty protocol "+proto.String(), over(tb, six, proto), 0, Packet{Protocol: proto})
		}
		other := policy.ICMPv6
		if six {
			other = policy.ICMP
		}
		add("icmp of the other family", over(tb, six, other, payload(20)), 20, Packet{Protocol: other})
	}
	return cases
}

// cases4 are the oddities of IPv4.
func cases4(tb testing.TB) []decodeCase {
	tcp := over(tb, false, policy.TCP, tcpLayer(), payload(30))
	udp := over(tb, false, policy.UDP, udpLayer(), payload(30))
	options := serialize(tb, &layers.IPv4{
		Version: 4, Protocol: layers.IPProtocolUDP, SrcIP: src4.AsSlice(), DstIP: dst4.AsSlice(),
		Options: []layers.IPv4Option{{OptionType: 7, OptionLength: 39, OptionData: make([]byte, 37)}},
	}, udpLayer())
	okTCP := between4(Packet{Protocol: policy.TCP, SrcPort: 40001, DstPort: 80, TCPFlags: 0x42, State: OK, Length: 90})
	okUDP := between4(Packet{Protocol: policy.UDP, SrcPort: 40002, DstPort: 53, State: OK, Length: 58})
	bad := func(p Packet, s State, length int) Packet {
		return between4(Packet{Protocol: p.Protocol, State: s, Length: length})
	}
	withLength := func(p Packet, n int) Packet { p.Length = n; return p }
	return []decodeCase{
		{"AH ends the walk in IPv4", set(tcp, 9, 51), between4(Packet{Protocol: 51, State: OK, Length: 90})},
		{"40 bytes of options", options, withLength(okUDP, 68)},
		{"hostile options", set(options, 21, 0), withLength(okUDP, 68)},
		{"hostile TCP options", set(tcp, 41, 0), okTCP},
		{"IHL 4", set(udp, 0, 0x44), bad(okUDP, BadHeaderLength, 58)},
		{"IHL beyond the capture", set(udp[:28], 0, 0x4a), bad(okUDP, ShortCapture, 58)},
		{"IHL beyond the total length", set(set(udp, 3, 30), 0, 0x4f), bad(okUDP, BadTotalLength, 30)},
		{"total length 0, UDP", set(udp, 3, 0), bad(okUDP, BadTotalLength, 0)},
		{"total length 0, TCP (BIG TCP)", set(tcp, 3, 0), withLength(okTCP, 0)},
		{"total length 0, TCP fragment", set(set(tcp, 3, 0), 6, 0x20), bad(okTCP, BadTotalLength, 0)},
		{"total length 0, short TCP", set(tcp[:39], 3, 0), bad(okTCP, ShortCapture, 0)},
		{"total length 19", set(udp, 3, 19), bad(okUDP, BadTotalLength, 19)},
		{"total length leaves 7 bytes of UDP", set(udp, 3, 27), bad(okUDP, TruncatedHeader, 27)},
		{"total length leaves 19 bytes of TCP", set(tcp, 3, 39), bad(okTCP, TruncatedHeader, 39)},
		{"link-layer padding is not the packet", append(set(udp, 3, 24), make([]byte, 22)...), bad(okUDP, TruncatedHeader, 24)},
		{"padding after the packet", append(udp[:len(udp):len(udp)], 1, 2, 3), okUDP},
		{"SCTP of 11 bytes", set(set(udp, 3, 31), 9, 132), bad(Packet{Protocol: policy.SCTP}, TruncatedHeader, 31)},
		{"ICMP of 7 bytes", set(set(udp, 3, 27), 9, 1), bad(Packet{Protocol: policy.ICMP}, TruncatedHeader, 27)},
		{"UDP length 7", set(udp, 25, 7), bad(okUDP, BadUDPLength, 58)},
		{"UDP length 0", set(udp, 25, 0), bad(okUDP, BadUDPLength, 58)},
		{"UDP length past the packet", set(udp, 25, 39), bad(okUDP, BadUDPLength, 58)},
		{"UDP length past the first fragment", set(set(udp, 25, 39), 6, 0x20), okUDP},
		{"TCP data offset 4", set(tcp, 32, 4<<4), bad(okTCP, BadDataOffset, 90)},
		{"TCP data offset past the packet", set(set(tcp, 32, 15<<4), 3, 60), bad(okTCP, BadDataOffset, 60)},
		{"TCP data offset one word past the packet", set(tcp, 3, 56), bad(okTCP, BadDataOffset, 56)},
		{"first fragment", set(tcp, 6, 0x20), okTCP},
		{"last fragment", set(tcp, 7, 1), bad(okTCP, Fragment, 90)},
		{"middle fragment", set(set(tcp, 6, 0x20), 7, 185), bad(okTCP, Fragment, 90)},
		{"version 0", set(tcp, 0, 0x05), Packet{State: BadVersion}},
		{"version 5", set(tcp, 0, 0x55), Packet{State: BadVersion}},
		{"version 15", set(tcp, 0, 0xf5), Packet{State: BadVersion}},
		{"empty", nil, Packet{State: TruncatedHeader}},
	}
}

// cases6 are the oddities of IPv6.
func cases6(tb testing.TB) []decodeCase {
	hbh, rt, fr, dst := uint8(extHopByHop), uint8(extRouting), uint8(extFragment), uint8(extDestinationOptions)
	tcp, udp := uint8(policy.TCP), uint8(policy.UDP)
	ok := func(proto uint8, length int) Packet {
		p := between6(Packet{Protocol: policy.Protocol(proto), State: OK, Length: length})
		if proto == tcp {
			p.SrcPort, p.DstPort, p.TCPFlags = 40001, 80, 0x02
		} else if proto == udp {
			p.SrcPort, p.DstPort = 40002, 53
		}
		return p
	}
	bad := func(proto uint8, s State, length int) Packet {
		return between6(Packet{Protocol: policy.Protocol(proto), State: s, Length: length})
	}
	mapped := ext6(udp, rawUDP())
	copy(mapped[8:], netip.MustParseAddr("::ffff:10.0.0.1").AsSlice())
	mappedWant := ok(udp, 48)
	mappedWant.Src = netip.MustParseAddr("::ffff:10.0.0.1")
	zero := func(b []byte) []byte { return set(set(b, 4, 0), 5, 0) } // payload length 0
	big := func(p Packet, n int) Packet { p.Length = n; return p }
	var eight, nine [][]byte
	for range maxExtensions - 1 {
		eight = append(eight, ext(dst, 8))
	}
	nine = append(append(nine, eight...), ext(dst, 8), ext(udp, 8), rawUDP())
	eight = append(eight, ext(udp, 8), rawUDP())
	return []decodeCase{
		{"the whole chain", ext6(hbh, ext(dst, 8), ext(rt, 24), ext(fr, 16), fragment6(51, 0, false), ah(dst), ext(tcp, 8), rawTCP()), ok(tcp, 40+8+24+16+8+24+8+20)},
		{"eight extension headers", ext6(dst, eight...), ok(udp, 40+64+8)},
		{"nine extension headers", ext6(dst, nine...), bad(0, ExtensionChainTooLong, 40+72+8)},
		{"the longest extension header", ext6(dst, ext(udp, 2048), rawUDP()), ok(udp, 40+2048+8)},
		{"it is beyond the copy range", ext6(dst, ext(udp, 2048), rawUDP())[:256], bad(0, ShortCapture, 40+2048+8)},
		{"an extension header past the packet", ext6(dst, set(ext(udp, 16), 1, 2)), bad(0, TruncatedHeader, 56)},
		{"half an extension header", ext6(dst, ext(udp, 8)[:4]), bad(0, TruncatedHeader, 44)},
		{"authentication header", ext6(51, ah(udp), rawUDP()), ok(udp, 40+24+8)},
		{"atomic fragment", ext6(fr, fragment6(udp, 0, false), rawUDP()), ok(udp, 56)},
		{"first fragment", ext6(fr, fragment6(udp, 0, true), set(rawUDP(), 5, 200)), ok(udp, 56)},
		{"first fragment without header", ext6(fr, fragment6(udp, 0, true)), bad(udp, TruncatedHeader, 48)},
		{"last fragment", ext6(fr, fragment6(udp, 1, false), rawUDP()), bad(udp, Fragment, 56)},
		{"fragment at the highest offset", ext6(fr, fragment6(tcp, 8191, true), rawUDP()), bad(tcp, Fragment, 56)},
		{"no next header", ext6(59), ok(59, 40)},
		{"no next header, bytes behind", ext6(59, rawTCP()), ok(59, 60)},
		{"extension, then no next header", ext6(dst, ext(59, 8)), ok(59, 48)},
		{"ESP ends the walk", ext6(dst, ext(50, 8), rawTCP()), ok(50, 68)},
		{"mobility ends the walk", ext6(135, ext(tcp, 8), rawTCP()), ok(135, 68)},
		{"4-in-6 address stays IPv6", mapped, mappedWant},
		{"padding after the packet", append(ext6(dst, ext(udp, 8)), rawUDP()...), bad(udp, TruncatedHeader, 48)},
		{"payload length 0, UDP", zero(ext6(udp, rawUDP())), bad(udp, TruncatedHeader, 40)},
		{"payload length 0, TCP without bytes", ext6(tcp), bad(tcp, TruncatedHeader, 40)},
		{"payload length 0, TCP (BIG TCP)", zero(ext6(tcp, rawTCP())), big(ok(tcp, 0), 0)},
		{"jumbo (BIG TCP)", zero(ext6(hbh, jumbo(tcp, 200_000), rawTCP())), ok(tcp, 200_040)},
		{"jumbo behind padding", zero(ext6(hbh, append([]byte{tcp, 1, 0, 1, 1, 0}, append(jumbo(0, 70_000)[2:], 1, 2, 0, 0)...), rawTCP())), ok(tcp, 70_040)},
		{"jumbo of an ordinary length", zero(ext6(hbh, jumbo(tcp, 65535), rawTCP())), bad(0, BadJumboLength, 40)},
		{"jumbo of 4 GiB", zero(ext6(hbh, jumbo(tcp, 1<<32-1), rawTCP())), bad(0, BadJumboLength, 40)},
		{"jumbo option of 3 bytes", zero(ext6(hbh, set(jumbo(tcp, 70_000), 3, 3), rawTCP())), bad(0, BadJumboLength, 40)},
		{"jumbo option past its header", zero(ext6(hbh, set(jumbo(tcp, 70_000), 3, 5), rawTCP())), bad(0, BadJumboLength, 40)},
		{"jumbo option half past its header", zero(ext6(hbh, append([]byte{tcp, 0, 1, 0}, jumbo(0, 70_000)[2:]...), rawTCP())), bad(0, BadJumboLength, 40)},
		{"jumbo header cut off", zero(ext6(hbh, jumbo(tcp, 70_000)[:7])), bad(0, TruncatedHeader, 40)},
		{"jumbo header beyond the copy range", zero(ext6(hbh, ext(tcp, 64)))[:80], bad(0, ShortCapture, 40)},
		{"payload length 0, hop-by-hop without jumbo", zero(ext6(hbh, ext(tcp, 8), rawTCP())), bad(0, BadJumboLength, 40)},
		{"payload length 0, destination options", zero(ext6(dst, ext(tcp, 8), rawTCP())), bad(0, TruncatedHeader, 40)},
		{"TCP data offset 4", ext6(tcp, set(rawTCP(), 12, 4<<4)), bad(tcp, BadDataOffset, 60)},
		{"39 bytes", ext6(59)[:39], Packet{State: TruncatedHeader}},
	}
}

func allCases(tb testing.TB) []decodeCase {
	return append(append(plainCases(tb), cases4(tb)...), cases6(tb)...)
}

// addrs lets cmp compare addresses, zone and 4-in-6 form included.
var addrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestDecode(t *testing.T) {
	d := NewDecoder() // shared: nothing may leak from one packet to the next
	for _, c := range allCases(t) {
		t.Run(c.name, func(t *testing.T) {
			before := bytes.Clone(c.b)
			got := Packet{SrcPort: 1, DstPort: 2, TCPFlags: 3, ICMPType: 4, ICMPCode: 5, State: OK, Length: 6}
			d.Decode(c.b, &got)
			if diff := cmp.Diff(c.want, got, addrs); diff != "" {
				t.Errorf("Decode(% x): -want +got\n%s", c.b, diff)
			}
			if !bytes.Equal(before, c.b) {
				t.Error("Decode changed the bytes it was given")
			}
		})
	}
}

// TestEveryTruncation cuts each packet at every length, as a copy range does:
// the result is the right one as soon as all that matters is there, and
// malformed before. Truncated packets are their own allocation, so a read past
// the end would panic.
func TestEveryTruncation(t *testing.T) {
	d := NewDecoder()
	for _, c := range allCases(t) {
		if c.want.State != OK {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			complete := false
			for n := range len(c.b) + 1 {
				var got Packet
				d.Decode(bytes.Clone(c.b[:n:n]), &got)
				if err := checkTruncated(&got, &c.want, complete); err != nil {
					t.Fatalf("first %d of %d bytes: %v", n, len(c.b), err)
				}
				complete = got.State == OK
			}
			if !complete {
				t.Error("the complete packet did not decode")
			}
		})
	}
}

// checkTruncated compares a truncated packet's decoding with the complete one.
func checkTruncated(got, want *Packet, complete bool) error {
	switch got.State {
	case OK:
		if *got != *want {
			return fmt.Errorf("decoded to %+v, the whole packet to %+v", *got, *want)
		}
	case TruncatedHeader, ShortCapture:
		if complete {
			return fmt.Errorf("%v, though fewer bytes were enough", got.State)
		}
		if got.SrcPort != 0 || got.DstPort != 0 || got.TCPFlags != 0 {
			return fmt.Errorf("%v, yet transport fields were set: %+v", got.State, *got)
		}
	default:
		return fmt.Errorf("%v blames the packet for the copy range", got.State)
	}
	return nil
}

// TestCaptureNeeded pins how many bytes of each protocol are enough.
func TestCaptureNeeded(t *testing.T) {
	want := map[string]int{
		"v4/tcp": 40, "v4/udp": 28, "v4/sctp": 24, "v4/icmp": 22, "v4/protocol 47": 20,
		"v6/tcp": 60, "v6/udp": 48, "v6/sctp": 44, "v6/icmp": 42, "v6/protocol 47": 40,
	}
	d, seen := NewDecoder(), 0
	for _, c := range plainCases(t) {
		n, ok := want[c.name]
		if !ok {
			continue
		}
		seen++
		var p Packet
		if d.Decode(c.b[:n-1:n-1], &p); p.State == OK {
			t.Errorf("%s: OK with %d bytes", c.name, n-1)
		}
		if d.Decode(c.b[:n:n], &p); p.State != OK {
			t.Errorf("%s: %v with %d bytes", c.name, p.State, n)
		}
	}
	if seen != len(want) {
		t.Errorf("checked %d packets, want %d", seen, len(want))
	}
}

// TestGSO decodes the prefix of a 64 KiB super-packet, and all of it.
func TestGSO(t *testing.T) {
	for _, six := range []bool{false, true} {
		b := over(t, six, policy.TCP, tcpLayer(), payload(65535-40-40))
		for _, n := range []int{128, 256, len(b)} {
			var p Packet
			NewDecoder().Decode(b[:n:n], &p)
			if p.State != OK || p.DstPort != 80 || p.Length != len(b) {
				t.Errorf("first %d bytes: %+v, want OK, port 80, length %d", n, p, len(b))
			}
		}
	}
}

// TestRandomDamage flips bytes of good packets with a fixed seed: a quick
// version of FuzzDecode that every test run gets.
func TestRandomDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	cases, d := allCases(t), NewDecoder()
	for range 200_000 {
		b := bytes.Clone(cases[rng.IntN(len(cases))].b)
		for range 1 + rng.IntN(4) {
			if len(b) > 0 {
				b[rng.IntN(min(len(b), 96))] = byte(rng.Uint32())
			}
		}
		b = b[:rng.IntN(len(b)+1)]
		var p Packet
		d.Decode(b, &p)
		if err := checkDecoded(b, &p); err != nil {
			t.Fatalf("Decode(% x): %v", b, err)
		}
	}
}

func TestAllocs(t *testing.T) {
	d := NewDecoder()
	for _, c := range allCases(t) {
		var p Packet
		if n := testing.AllocsPerRun(100, func() { d.Decode(c.b, &p) }); n != 0 {
			t.Errorf("%s (%v): %v allocations, want 0", c.name, p.State, n)
		}
	}
}

func TestStateText(t *testing.T) {
	if (Packet{}).State.Malformed() != true || OK.Malformed() {
		t.Error("only OK may be well-formed; the zero Packet is not")
	}
	seen := map[string]bool{}
	for s := range numStates {
		text, _ := s.MarshalText()
		var back State
		if err := back.UnmarshalText(text); err != nil || back != s || len(text) == 0 || seen[string(text)] {
			t.Errorf("state %d: text %q reads back as %d, %v; want a unique name", s, text, back, err)
		}
		seen[string(text)] = true
	}
	var s State
	if err := s.UnmarshalText([]byte("fine")); err == nil {
		t.Error("an unknown state was accepted")
	}
	if got := State(200).String(); got != "undecoded" {
		t.Errorf("State(200) prints %q", got)
	}
}

func BenchmarkDecode(b *testing.B) {
	d := NewDecoder()
	for _, c := range plainCases(b) {
		if c.want.Length == ipv4HeaderLen || c.want.Length == ipv6HeaderLen {
			continue
		}
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			var p Packet
			for b.Loop() {
				d.Decode(c.b, &p)
			}
			if p != c.want {
				b.Fatalf("decoded %+v, want %+v", p, c.want)
			}
		})
	}
}
