package audit

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// Way says on which way a copy of a packet was taken.
type Way uint8

const (
	// WayUnknown: nobody said. The copy is judged as it is.
	WayUnknown Way = iota
	// WayIn: the packet came in, so its destination may change yet.
	WayIn
	// WayOut: the packet goes out, so its source may have changed.
	WayOut
)

// stage is what a packet may do to a flow, by itself.
type stage uint8

const (
	// carries: it belongs to a flow that something else began.
	carries stage = iota
	// begins: it asks for a new flow, and says so.
	begins
	// unsaid: it begins a flow if nobody has seen it before.
	unsaid
)

// sight is one copy of a packet.
type sight struct {
	at     int64 // Unix nanoseconds
	way    Way
	packet packet.Packet
	flow   flowID
	stage  stage
	print  uint64 // equal for copies of one packet, see fingerprint
}

// flowID is one direction of a flow: the 5-tuple, with the identifier of ICMP
// queries as both ports.
type flowID struct {
	src, dst         netip.Addr
	srcPort, dstPort uint16
	protocol         policy.Protocol
}

func (f flowID) reverse() flowID {
	f.src, f.dst, f.srcPort, f.dstPort = f.dst, f.src, f.dstPort, f.srcPort
	return f
}

// looker turns bytes into sights. It is for one goroutine.
type looker struct {
	decoder *packet.Decoder
	seed    maphash.Seed
}

func newLooker() looker { return looker{packet.NewDecoder(), maphash.MakeSeed()} }

// look reads the packet that starts with ip. Where s.packet.State is not OK only
// that is valid.
func (l *looker) look(ip []byte, way Way, at int64, s *sight) {
	*s = sight{at: at, way: way}
	l.decoder.Decode(ip, &s.packet)
	p := &s.packet
	if p.State.Malformed() {
		return
	}
	header, identification := transport(ip)
	s.flow = flowID{p.Src, p.Dst, p.SrcPort, p.DstPort, p.Protocol}
	s.stage = stageOf(p, header)
	if isQuery(p) && len(header) >= 6 {
		id := binary.BigEndian.Uint16(header[4:6])
		s.flow.srcPort, s.flow.dstPort = id, id
	}
	s.print = l.fingerprint(p, header, identification)
}

// Bits and numbers of transport headers.
const (
	tcpSYN   = 0x02 // RFC 9293 section 3.1
	tcpACK   = 0x10
	sctpInit = 1 // chunk type, RFC 9260 section 3.2
)

func stageOf(p *packet.Packet, header []byte) stage {
	switch {
	case p.Protocol == policy.TCP && p.TCPFlags&(tcpSYN|tcpACK) == tcpSYN:
		return begins
	case p.Protocol == policy.SCTP && len(header) > 12 && header[12] == sctpInit:
		return begins
	case p.Protocol == policy.TCP, p.Protocol == policy.SCTP:
		return carries
	case isICMP(p) && !isQuery(p):
		return carries // a reply, an error about a flow, or neighbour discovery
	}
	return unsaid
}

func isICMP(p *packet.Packet) bool {
	return p.Protocol == policy.ICMP && p.Src.Is4() || p.Protocol == policy.ICMPv6 && p.Src.Is6()
}

// isQuery reports whether an ICMP message begins a flow to conntrack (valid_new in
// net/netfilter/nf_conntrack_proto_icmp.c and nf_conntrack_proto_icmpv6.c).
func isQuery(p *packet.Packet) bool {
	switch {
	case !isICMP(p):
		return false
	case p.Src.Is4():
		return p.ICMPType == 8 || p.ICMPType == 13 || p.ICMPType == 15 || p.ICMPType == 17
	}
	return p.ICMPType == 128 || p.ICMPType == 139
}

// transport returns the bytes from the transport header on and, of IPv4, the
// identification. It is for packets that the decoder has found to be good.
func transport(ip []byte) (header []byte, identification uint16) {
	if ip[0]>>4 == 4 {
		return ip[int(ip[0]&15)*4:], binary.BigEndian.Uint16(ip[4:6])
	}
	next, rest := ip[6], ip[40:]
	for len(rest) >= 8 {
		var size int
		switch next {
		case 0, 43, 60: // RFC 8200 sections 4.3, 4.4, 4.6
			size = (int(rest[1]) + 1) * 8
		case 44: // RFC 8200 section 4.5
			size = 8
		case 51: // RFC 4302 section 2.2
			size = (int(rest[1]) + 2) * 4
		default:
			return rest, 0
		}
		next, rest = rest[0], rest[min(size, len(rest)):]
	}
	return rest, 0
}

// printed is how many bytes of a transport header and its payload count.
const printed = 96

// fingerprint is equal for the copies of one packet on its way through a node, and
// differs, almost certainly, from those of other packets. Address translation
// changes addresses, ports, ICMP identifiers and checksums, forwarding the hop
// limit, and TCPMSS an option: none of these count. Nor does what differs when a
// connection is asked for again: the first packet of TCP and SCTP and its
// repetitions have one fingerprint.
func (l *looker) fingerprint(p *packet.Packet, header []byte, identification uint16) uint64 {
	var h maphash.Hash
	h.SetSeed(l.seed)
	h.WriteByte(byte(p.Protocol))
	part := func(from, to int) {
		if to = min(to, len(header)); from < to {
			h.Write(header[from:to])
		}
	}
	switch {
	case p.Protocol == policy.TCP:
		part(4, 12) // sequence and acknowledgement number
		return h.Sum64()
	case p.Protocol == policy.SCTP:
		part(4, 8) // verification tag
		part(12, printed)
		return h.Sum64()
	case p.Protocol == policy.UDP:
		part(8, printed)
	case isICMP(p):
		part(0, 2) // type and code
		part(6, printed)
	default:
		part(0, printed)
	}
	var fixed [8]byte
	binary.BigEndian.PutUint16(fixed[:], identification)
	binary.BigEndian.PutUint32(fixed[4:], uint32(p.Length))
	h.Write(fixed[:])
	return h.Sum64()
}
