package packet

import (
	"encoding/binary"
	"math"
	"net/netip"

	"github.com/netverdict/netverdict/policy"
)

// maxExtensions bounds the IPv6 extension headers Decode walks. The longest
// chain in the order that RFC 8200 section 4.1 recommends has six of them (ESP
// aside, which ends the walk); the kernel has no bound.
const maxExtensions = 8

// Extension headers, by next header number, that ipv6_ext_hdr in
// net/ipv6/exthdrs_core.c walks through. ESP (50), mobility (135), HIP (139)
// and shim6 (140) end its walk, hence ours, and count as protocols.
const (
	extHopByHop           = 0  // RFC 8200 section 4.3
	extRouting            = 43 // RFC 8200 section 4.4
	extFragment           = 44 // RFC 8200 section 4.5
	extAuthentication     = 51 // RFC 4302 section 2
	extDestinationOptions = 60 // RFC 8200 section 4.6
)

// minExtensionLen is the size in bytes of the smallest extension header.
const minExtensionLen = 8

// Jumbo payload option (RFC 2675 section 2).
const (
	optPad1        = 0
	optJumbo       = 0xc2
	optJumboLen    = 4
	minJumboLength = math.MaxUint16 + 1
	maxJumboLength = math.MaxInt32 - ipv6HeaderLen // keeps Length an int everywhere
)

func (d *Decoder) ipv6(b []byte, p *Packet) State {
	if len(b) < ipv6HeaderLen {
		return TruncatedHeader
	}
	p.Src = netip.AddrFrom16([16]byte(b[8:24]))
	p.Dst = netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := b[6], b[ipv6HeaderLen:]
	length := int(binary.BigEndian.Uint16(b[4:6]))
	p.Length = ipv6HeaderLen + length
	if length == 0 {
		switch {
		case next == extHopByHop:
			var state State
			if length, state = jumboLength(rest); state != OK {
				return state
			}
			p.Length = ipv6HeaderLen + length
		case next == uint8(policy.TCP) && len(rest) > 0:
			length, p.Length = unsaidLength, 0
		}
	}
	return d.extensions(next, newSpan(rest, length), p)
}

// extensions walks the extension headers at the start of s, the first of them
// being of kind next, and reads the transport header behind them.
func (d *Decoder) extensions(next uint8, s span, p *Packet) State {
	partial := false
	for n := 0; isExtension(next); n++ {
		if n == maxExtensions {
			return ExtensionChainTooLong
		}
		if state := s.need(minExtensionLen); state != OK {
			return state
		}
		if next == extFragment {
			offset := binary.BigEndian.Uint16(s.b[2:4])
			if offset>>3 != 0 {
				p.Protocol = policy.Protocol(s.b[0])
				return Fragment
			}
			partial = offset&1 != 0 // more fragments follow
		}
		size := extensionLen(next, s.b[1])
		if state := s.need(size); state != OK {
			return state
		}
		next, s = s.b[0], s.skip(size)
	}
	p.Protocol = policy.Protocol(next)
	return d.transport(s, partial, p)
}

func isExtension(next uint8) bool {
	switch next {
	case extHopByHop, extRouting, extFragment, extAuthentication, extDestinationOptions:
		return true
	}
	return false
}

// extensionLen returns the size in bytes of an extension header from its
// length field, which counts differently from kind to kind.
func extensionLen(kind, field uint8) int {
	switch kind {
	case extFragment:
		return 8 // no length field: the byte is reserved
	case extAuthentication:
		return (int(field) + 2) * 4 // 4-byte words beyond the second
	default:
		return (int(field) + 1) * 8 // 8-byte words beyond the first
	}
}

// jumboLength finds the payload length of a packet whose IPv6 header gives 0 in
// the jumbo payload option of its hop-by-hop header, at the start of b. The
// kernel writes that header on GSO packets above 65,535 bytes ("BIG TCP",
// struct hop_jumbo_hdr in include/net/ipv6.h).
func jumboLength(b []byte) (int, State) {
	if len(b) < minExtensionLen {
		return 0, TruncatedHeader
	}
	size := extensionLen(extHopByHop, b[1])
	captured := b[:min(len(b), size)]
	for i := 2; i < len(captured); {
		if captured[i] == optPad1 {
			i++
			continue
		}
		if i+1 == len(captured) {
			break
		}
		end := i + 2 + int(captured[i+1])
		if end > len(captured) {
			break
		}
		if captured[i] == optJumbo {
			return jumboOption(captured[i+2 : end])
		}
		i = end
	}
	if len(captured) < size {
		return 0, ShortCapture
	}
	return 0, BadJumboLength
}

// jumboOption reads the option's data.
func jumboOption(b []byte) (int, State) {
	if len(b) != optJumboLen {
		return 0, BadJumboLength
	}
	length := binary.BigEndian.Uint32(b)
	if length < minJumboLength || length > maxJumboLength {
		return 0, BadJumboLength
	}
	return int(length), OK
}
