package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/netverdict/netverdict/policy"
)

// FuzzDecode checks every decoding against rules that hold for all packets and
// against gopacket's own packet walk.
func FuzzDecode(f *testing.F) {
	for _, c := range allCases(f) {
		f.Add(c.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Packet
		d := NewDecoder()
		d.Decode(b[:len(b):len(b)], &p)
		if err := checkDecoded(b, &p); err != nil {
			t.Fatalf("%v\npacket %+v", err, p)
		}
		again := Packet{State: OK, SrcPort: 9}
		if d.Decode(b, &again); again != p {
			t.Fatalf("a reused decoder and packet give %+v, fresh ones %+v", again, p)
		}
	})
}

// checkDecoded verifies what must hold for b whatever it contains.
func checkDecoded(b []byte, p *Packet) error {
	if p.State == Undecoded || p.State >= numStates {
		return fmt.Errorf("Decode left state %d", p.State)
	}
	if p.State != OK {
		if p.SrcPort|p.DstPort|uint16(p.TCPFlags|p.ICMPType|p.ICMPCode) != 0 {
			return fmt.Errorf("state %v with transport fields", p.State)
		}
		return nil
	}
	if !p.Src.IsValid() || !p.Dst.IsValid() || p.Src.Is4() != p.Dst.Is4() {
		return fmt.Errorf("OK with addresses %v and %v", p.Src, p.Dst)
	}
	if four := b[0]>>4 == 4; p.Src.Is4() != four {
		return fmt.Errorf("IP version %d gave address %v", b[0]>>4, p.Src)
	}
	if !p.Protocol.HasPorts() && p.SrcPort|p.DstPort != 0 {
		return fmt.Errorf("protocol %v has ports", p.Protocol)
	}
	if p.Protocol != policy.TCP && p.TCPFlags != 0 {
		return fmt.Errorf("protocol %v has TCP flags", p.Protocol)
	}
	return checkAgainstGopacket(b, p)
}

// checkAgainstGopacket compares p, which is OK, with an independent decoding
// where gopacket has one: where it fails or stops early, as on options cut off
// by the copy range or on any IPv6 fragment header, there is nothing to compare.
func checkAgainstGopacket(b []byte, p *Packet) error {
	first := layers.LayerTypeIPv4
	if p.Src.Is6() {
		first = layers.LayerTypeIPv6
	}
	ls := gopacket.NewPacket(b, first, gopacket.DecodeOptions{NoCopy: true}).Layers()
	for i, l := range ls {
		switch l := l.(type) {
		case *layers.IPv4:
			if i > 0 {
				return nil // a tunnel's inner packet is not ours
			}
			if err := sameAddrs(p, l.SrcIP, l.DstIP); err != nil {
				return err
			}
			if p.Protocol != policy.Protocol(l.Protocol) {
				return fmt.Errorf("protocol %v, gopacket has %v", p.Protocol, l.Protocol)
			}
		case *layers.IPv6:
			if i > 0 {
				return nil
			}
			if err := sameAddrs(p, l.SrcIP, l.DstIP); err != nil {
				return err
			}
		case *layers.IPv6HopByHop, *layers.IPv6Routing, *layers.IPv6Destination:
			if p.Src.Is4() {
				return nil // gopacket walks them there too; to the kernel they are protocols like any other
			}
		default:
			if len(l.LayerContents()) == 0 {
				return nil // gopacket adds the layer also when it failed
			}
			return sameTransport(p, l)
		}
	}
	return nil
}

func sameAddrs(p *Packet, src, dst []byte) error {
	s, _ := netip.AddrFromSlice(src)
	d, _ := netip.AddrFromSlice(dst)
	if s != p.Src || d != p.Dst {
		return fmt.Errorf("addresses %v and %v, gopacket has %v and %v", p.Src, p.Dst, s, d)
	}
	return nil
}

// sameTransport compares with the layer gopacket found behind the IP headers.
func sameTransport(p *Packet, l gopacket.Layer) error {
	want := Packet{Src: p.Src, Dst: p.Dst, State: p.State, Length: p.Length}
	switch l := l.(type) {
	case *layers.TCP:
		want.Protocol, want.SrcPort, want.DstPort = policy.TCP, uint16(l.SrcPort), uint16(l.DstPort)
		want.TCPFlags = tcpFlags(l)
	case *layers.UDP:
		want.Protocol, want.SrcPort, want.DstPort = policy.UDP, uint16(l.SrcPort), uint16(l.DstPort)
	case *layers.SCTP:
		want.Protocol, want.SrcPort, want.DstPort = policy.SCTP, uint16(l.SrcPort), uint16(l.DstPort)
	case *layers.ICMPv4:
		want.Protocol = policy.ICMP
		if p.Src.Is4() {
			want.ICMPType, want.ICMPCode = l.TypeCode.Type(), l.TypeCode.Code()
		}
	case *layers.ICMPv6:
		want.Protocol = policy.ICMPv6
		if p.Src.Is6() {
			want.ICMPType, want.ICMPCode = l.TypeCode.Type(), l.TypeCode.Code()
		}
	default:
		return nil
	}
	if *p != want {
		return fmt.Errorf("decoded %+v, gopacket %+v", *p, want)
	}
	return nil
}

// tcpFlags packs the flags that gopacket spreads over booleans.
func tcpFlags(l *layers.TCP) uint8 {
	var flags uint8
	for i, set := range []bool{l.FIN, l.SYN, l.RST, l.PSH, l.ACK, l.URG, l.ECE, l.CWR} {
		if set {
			flags |= 1 << i
		}
	}
	return flags
}

// TestOracleIsUsed makes sure that the comparison above compares something: a
// packet decoded wrongly must be noticed for every protocol.
func TestOracleIsUsed(t *testing.T) {
	d := NewDecoder()
	for _, c := range plainCases(t) {
		if !c.want.Protocol.HasPorts() {
			continue
		}
		var p Packet
		d.Decode(c.b, &p)
		wrong := p
		wrong.DstPort++
		if checkAgainstGopacket(c.b, &p) != nil || checkAgainstGopacket(c.b, &wrong) == nil {
			t.Errorf("%s: gopacket's decoding was not compared", c.name)
		}
		if got := binary.BigEndian.Uint16(c.b[len(c.b)-p.Length+headerOf(&p)+2:]); got != p.DstPort {
			t.Errorf("%s: port %d on the wire, %d decoded", c.name, got, p.DstPort)
		}
	}
}

func headerOf(p *Packet) int {
	if p.Src.Is4() {
		return ipv4HeaderLen
	}
	return ipv6HeaderLen
}
