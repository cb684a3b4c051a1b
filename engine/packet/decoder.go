package packet

import (
	"encoding/binary"
	"math"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/netverdict/netverdict/policy"
)

// Sizes in bytes of the fixed parts of headers.
const (
	ipv4HeaderLen = 20 // RFC 791
	ipv6HeaderLen = 40 // RFC 8200
	tcpHeaderLen  = 20 // RFC 9293
	udpHeaderLen  = 8  // RFC 768
	sctpHeaderLen = 12 // RFC 9260, common header
	icmpHeaderLen = 8  // RFC 792 and, for ICMPv6, the kernel's struct icmp6hdr
)

// What must be captured of a header whose rest no decision reads.
const (
	portsLen    = 4 // source and destination port
	typeCodeLen = 2 // ICMP type and code
)

// unsaidLength stands for the length of a BIG TCP packet: a GSO packet above
// 65,535 bytes carries 0 in its IPv4 total length (iph_totlen in
// include/linux/ip.h), newer kernels do the same with the IPv6 payload length.
// Such packets exist only inside the kernel; from the wire, ip_rcv drops the
// one and ip6_rcv trims the other to its bare header.
const unsaidLength = math.MaxInt32

// Decoder holds the layers that Decode reuses. It belongs to one worker: it is
// not safe for concurrent use.
//
// The gopacket layers (v1.1.19) have habits the packet path cannot afford:
// every error is formatted on the heap; IPv4 and TCP parse options, which an
// attacker chooses, into growing slices and refuse a header whose options are
// cut off; IPv6 allocates hop-by-hop options and refuses a payload length of 0.
// So they are given a copy of the fixed part of a header, checked beforehand
// and with its options masked out, on which they neither fail nor allocate nor
// keep a reference to the caller's bytes. IPv6 and its extension headers are
// read here, because masking would leave nothing for the layer to do.
type Decoder struct {
	ip4   layers.IPv4
	tcp   layers.TCP
	udp   layers.UDP
	sctp  layers.SCTP
	icmp4 layers.ICMPv4
	icmp6 layers.ICMPv6

	// scratch is the copied fixed header that a layer is looking at.
	scratch [max(ipv4HeaderLen, tcpHeaderLen)]byte
}

// NewDecoder returns a Decoder ready for use.
func NewDecoder() *Decoder { return new(Decoder) }

// Decode reads the packet that starts with b into p. It never panics, never
// allocates and keeps no reference to b. Its work is bounded by constants,
// whatever the packet says and however long b is.
func (d *Decoder) Decode(b []byte, p *Packet) {
	*p = Packet{}
	if len(b) == 0 {
		p.State = TruncatedHeader
		return
	}
	switch b[0] >> 4 {
	case 4:
		p.State = d.ipv4(b, p)
	case 6:
		p.State = d.ipv6(b, p)
	default:
		p.State = BadVersion
	}
}

func (d *Decoder) ipv4(b []byte, p *Packet) State {
	if len(b) < ipv4HeaderLen {
		return TruncatedHeader
	}
	h := d.fixed(b, ipv4HeaderLen)
	h[0] = 4<<4 | ipv4HeaderLen/4 // mask the options
	h[2], h[3] = 0, 0             // the total length is judged below
	if d.ip4.DecodeFromBytes(h, gopacket.NilDecodeFeedback) != nil {
		return TruncatedHeader
	}
	p.Src = netip.AddrFrom4([4]byte(d.ip4.SrcIP))
	p.Dst = netip.AddrFrom4([4]byte(d.ip4.DstIP))
	p.Protocol = policy.Protocol(d.ip4.Protocol)
	p.Length = int(binary.BigEndian.Uint16(b[2:4]))

	moreFragments := d.ip4.Flags&layers.IPv4MoreFragments != 0
	fragment := moreFragments || d.ip4.FragOffset != 0
	headerLen := int(b[0]&0x0f) * 4
	length := p.Length
	if length == 0 && p.Protocol == policy.TCP && !fragment {
		length = unsaidLength
	}
	switch {
	case headerLen < ipv4HeaderLen:
		return BadHeaderLength
	case length < headerLen:
		return BadTotalLength
	case d.ip4.FragOffset != 0:
		return Fragment
	}
	s := newSpan(b, length)
	if state := s.need(headerLen); state != OK {
		return state
	}
	return d.transport(s.skip(headerLen), moreFragments, p)
}

// transport reads the header of p.Protocol at the start of s. partial says that
// s is the first fragment of something longer.
func (d *Decoder) transport(s span, partial bool, p *Packet) State {
	switch p.Protocol {
	case policy.TCP:
		return d.readTCP(s, p)
	case policy.UDP:
		return d.readUDP(s, partial, p)
	case policy.SCTP:
		return d.readSCTP(s, p)
	case policy.ICMP:
		if p.Src.Is4() {
			return d.readICMPv4(s, p)
		}
	case policy.ICMPv6:
		if p.Src.Is6() {
			return d.readICMPv6(s, p)
		}
	}
	return OK
}

func (d *Decoder) readTCP(s span, p *Packet) State {
	if state := s.need(tcpHeaderLen); state != OK {
		return state
	}
	offset := int(s.b[12]>>4) * 4
	if offset < tcpHeaderLen || offset > s.length {
		return BadDataOffset
	}
	h := d.fixed(s.b, tcpHeaderLen)
	h[12] = tcpHeaderLen / 4 << 4 // mask the options
	if d.tcp.DecodeFromBytes(h, gopacket.NilDecodeFeedback) != nil {
		return TruncatedHeader
	}
	p.SrcPort, p.DstPort = uint16(d.tcp.SrcPort), uint16(d.tcp.DstPort)
	p.TCPFlags = h[13] // the layer has them only as eight booleans
	return OK
}

func (d *Decoder) readUDP(s span, partial bool, p *Packet) State {
	if state := s.need(udpHeaderLen); state != OK {
		return state
	}
	// A length of 0 would mean a jumbogram (RFC 2675); to conntrack it is a
	// malformed packet (udp_error in nf_conntrack_proto_udp.c), so to us too.
	length := int(binary.BigEndian.Uint16(s.b[4:6]))
	if length < udpHeaderLen || (length > s.length && !partial) {
		return BadUDPLength
	}
	if d.udp.DecodeFromBytes(d.fixed(s.b, udpHeaderLen), gopacket.NilDecodeFeedback) != nil {
		return TruncatedHeader
	}
	p.SrcPort, p.DstPort = uint16(d.udp.SrcPort), uint16(d.udp.DstPort)
	return OK
}

func (d *Decoder) readSCTP(s span, p *Packet) State {
	if state := s.needPrefix(portsLen, sctpHeaderLen); state != OK {
		return state
	}
	if d.sctp.DecodeFromBytes(d.fixed(s.b, sctpHeaderLen), gopacket.NilDecodeFeedback) != nil {
		return TruncatedHeader
	}
	p.SrcPort, p.DstPort = uint16(d.sctp.SrcPort), uint16(d.sctp.DstPort)
	return OK
}

func (d *Decoder) readICMPv4(s span, p *Packet) State {
	if state := s.needPrefix(typeCodeLen, icmpHeaderLen); state != OK {
		return state
	}
	if d.icmp4.DecodeFromBytes(d.fixed(s.b, icmpHeaderLen), gopacket.NilDecodeFeedback) != nil {
		return TruncatedHeader
	}
	p.ICMPType, p.ICMPCode = d.icmp4.TypeCode.Type(), d.icmp4.TypeCode.Code()
	return OK
}

func (d *Decoder) readICMPv6(s span, p *Packet) State {
	if state := s.needPrefix(typeCodeLen, icmpHeaderLen); state != OK {
		return state
	}
	if d.icmp6.DecodeFromBytes(d.fixed(s.b, icmpHeaderLen), gopacket.NilDecodeFeedback) != nil {
		return TruncatedHeader
	}
	p.ICMPType, p.ICMPCode = d.icmp6.TypeCode.Type(), d.icmp6.TypeCode.Code()
	return OK
}

// fixed copies the first n bytes of b to the scratch space and returns the
// copy, zero-filled where b is shorter. n is at most len(d.scratch).
func (d *Decoder) fixed(b []byte, n int) []byte {
	h := d.scratch[:n]
	clear(h[copy(h, b):])
	return h
}
