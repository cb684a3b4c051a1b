// Package packet reads the few header fields a decision needs from the bytes
// of one packet, which start at the IPv4 or IPv6 header and may stop early:
// NFQUEUE copies only a prefix (the copy range) of what is often a much longer
// packet, up to a GSO super-packet of 64 KiB and more.
//
// A packet is bad when its own length fields leave no room for the headers it
// announces, and merely cut short when the copy range hides them. Both are
// states of the packet, told apart by State, and never an error or a panic.
//
// Where headers can be read in more than one way, this package reads them as
// the kernel's conntrack and ipset do (ipv6_skip_exthdr in
// net/ipv6/exthdrs_core.c, nf_conntrack_proto_*.c): the engine and the rules in
// the kernel must mean the same protocol and port, or one of them can be fooled.
package packet

import (
	"net/netip"

	"github.com/netverdict/netverdict/policy"
)

// Packet is what Decode found. The caller owns it and reuses it; each Decode
// overwrites every field, and a field that Decode did not reach is zero. It
// refers to nothing in the decoded bytes.
type Packet struct {
	// Src and Dst are valid when State is OK, and in every malformed state that
	// was found after the fixed IP header was read (check IsValid). An IPv4
	// header gives 4-byte addresses. An IPv6 header gives 16-byte addresses
	// always: ::ffff:10.0.0.1 on the wire stays the IPv6 address it is to the
	// kernel's routing and sets, and is never unmapped to 10.0.0.1.
	Src, Dst netip.Addr
	// Protocol is the IPv4 protocol field, or the first IPv6 next header that
	// is no extension header; 59 (no next header) is a protocol like any other.
	// In an IPv6 fragment without transport header it is what the fragment
	// header names. Zero (also the number of the hop-by-hop header, hence never
	// a protocol of IPv6) when Decode did not get that far.
	Protocol policy.Protocol
	// SrcPort and DstPort are in host byte order, valid when State is OK and
	// Protocol is TCP, UDP or SCTP; otherwise 0.
	SrcPort, DstPort uint16
	// TCPFlags is byte 13 of the TCP header (RFC 9293: CWR ECE URG ACK PSH RST
	// SYN FIN from the highest bit), valid when State is OK and Protocol is TCP.
	TCPFlags uint8
	// ICMPType and ICMPCode are valid when State is OK and Protocol is ICMP in
	// an IPv4 packet or ICMPv6 in an IPv6 packet.
	ICMPType, ICMPCode uint8
	// State is OK, or why the packet cannot be trusted.
	State State
	// Length is the length in bytes of the whole packet as its IP header claims
	// it, header included; it may be larger than what was captured. It is 0 when
	// the header does not say, which is legal only for BIG TCP (see unsaidLength).
	Length int
}
