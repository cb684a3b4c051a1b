//go:build linux

package reject

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/netverdict/netverdict/policy"
)

// TCP flags in byte 13 of the header (RFC 9293 section 3.1).
const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	_
	flagACK
)

// segment is what a reset needs to know of the TCP segment that it answers.
type segment struct {
	src, dst netip.AddrPort
	seq, ack uint32
	length   uint32 // of its text, SYN and FIN included (SEG.LEN)
	flags    uint8
}

// readSegment reads the TCP header at an offset. total is the length of the whole
// packet in bytes, of which b may be but the beginning; 0: not known.
func readSegment(b []byte, at, total int) (segment, error) {
	if len(b) < at+20 {
		return segment{}, errShort
	}
	h := b[at:]
	s := segment{seq: binary.BigEndian.Uint32(h[4:]), ack: binary.BigEndian.Uint32(h[8:]), flags: h[13]}
	src, dst := addressesOf(b)
	s.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(h))
	s.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(h[2:]))
	if text := total - at - int(h[12]>>4)*4; text > 0 {
		s.length = uint32(text)
	}
	for _, counted := range [...]uint8{flagSYN, flagFIN} {
		if s.flags&counted != 0 {
			s.length++
		}
	}
	return s, nil
}

var errShort = errors.New("the packet ends inside its transport header")

// reset answers a segment, in the name of its destination (RFC 9293 section
// 3.10.7.1): with the sequence number that the sender expects, or, if it has not
// said which, with an acknowledgement of what it sent.
func (s *segment) reset() ([]byte, error) {
	tcp := layers.TCP{SrcPort: layers.TCPPort(s.dst.Port()), DstPort: layers.TCPPort(s.src.Port()), RST: true}
	if s.flags&flagACK != 0 {
		tcp.Seq = s.ack
	} else {
		tcp.ACK, tcp.Ack = true, s.seq+s.length
	}
	return serializeTCP(s.dst.Addr(), s.src.Addr(), &tcp)
}

// forward goes on to the destination in the name of the sender, in place of the
// segment itself, whose sequence number is the one expected there.
func (s *segment) forward() ([]byte, error) {
	return serializeTCP(s.src.Addr(), s.dst.Addr(), &layers.TCP{
		SrcPort: layers.TCPPort(s.src.Port()), DstPort: layers.TCPPort(s.dst.Port()),
		RST: true, ACK: true, Seq: s.seq, Ack: s.ack,
	})
}

func serializeTCP(src, dst netip.Addr, tcp *layers.TCP) ([]byte, error) {
	var ip interface {
		gopacket.SerializableLayer
		gopacket.NetworkLayer
	} = &layers.IPv4{Version: 4, TTL: hopLimit, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	if src.Is6() {
		ip = &layers.IPv6{Version: 6, HopLimit: hopLimit, NextHeader: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		return nil, fmt.Errorf("craft a reset: %w", err)
	}
	return serialize(ip, tcp)
}

// hopLimit is what hosts send with (RFC 1700).
const hopLimit = 64

func serialize(parts ...gopacket.SerializableLayer) ([]byte, error) {
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, parts...)
	if err != nil {
		return nil, fmt.Errorf("craft an answer: %w", err)
	}
	return buf.Bytes(), nil
}

// prohibited is an ICMP error about a packet, which it quotes as its sender sent it.
// For IPv4 it is whole but for the source, which the kernel fills in, as it does
// the checksum of ICMPv6, which has no IP header here.
func prohibited(quote []byte, to netip.Addr) ([]byte, error) {
	if to.Is6() {
		const unused = 4 // RFC 4443 section 3.1
		body := append(make([]byte, 4+unused), quote...)
		body[0], body[1] = layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6CodeAdminProhibited
		return body, nil
	}
	return serialize(
		&layers.IPv4{Version: 4, TTL: hopLimit, Protocol: layers.IPProtocolICMPv4, SrcIP: netip.IPv4Unspecified().AsSlice(), DstIP: to.AsSlice()},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeCommAdminProhibited)},
		gopacket.Payload(quote))
}

// addressed returns a copy of a packet with the destination that its sender gave
// it. The transport's checksum stays: nobody can check that of a quote, which may be
// cut, and in a packet from a local socket it is unfinished.
func addressed(b []byte, at int, dst netip.AddrPort) []byte {
	quote := append([]byte(nil), b...)
	if dst.Addr().Is6() {
		copy(quote[24:40], dst.Addr().AsSlice())
	} else {
		copy(quote[16:20], dst.Addr().AsSlice())
		quote[10], quote[11] = 0, 0
		binary.BigEndian.PutUint16(quote[10:], checksum(quote[:at]))
	}
	if len(quote) >= at+4 {
		binary.BigEndian.PutUint16(quote[at+2:], dst.Port())
	}
	return quote
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// addressesOf reads the fixed IP header, which the caller has found to be there.
func addressesOf(b []byte) (src, dst netip.Addr) {
	if b[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	}
	return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
}

// fingerprint is what DNAT leaves alone of a packet, behind the transport header at
// an offset: the ports and the checksum are not in it.
func fingerprint(seed maphash.Seed, b []byte, at int, protocol policy.Protocol) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	part := func(from, to int) { h.Write(b[min(at+from, len(b)):min(at+to, len(b))]) }
	switch protocol {
	case policy.TCP:
		part(4, 12) // sequence and acknowledgement
	case policy.UDP:
		part(4, 6) // length
		part(8, 40)
	case policy.SCTP:
		part(4, 8) // verification tag
		part(12, 44)
	default:
		part(0, 32)
	}
	return h.Sum64()
}
