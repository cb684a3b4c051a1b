//go:build linux

package reject

import (
	"net/netip"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// answerable reports whether a packet may be answered at all. A broadcast of a
// subnet cannot be told from other addresses; it is not forwarded.
func answerable(p *packet.Packet) bool {
	if p.State.Malformed() || !oneHost(p.Src) || !oneHost(p.Dst) {
		return false
	}
	switch {
	case p.Protocol == policy.TCP:
		return p.TCPFlags&flagRST == 0
	case p.Protocol == policy.ICMP && p.Src.Is4():
		return isQuery(p.ICMPType)
	case p.Protocol == policy.ICMPv6 && p.Src.Is6():
		// RFC 4443 section 2.1: errors are below 128. 130 to 137 are between neighbours.
		return p.ICMPType >= 128 && (p.ICMPType < 130 || p.ICMPType > 137)
	}
	return true
}

// isQuery lists the ICMP messages that are no errors (RFC 1122 section 3.2.2).
func isQuery(icmpType uint8) bool {
	switch icmpType {
	case 0, 8, 9, 10, 13, 14, 15, 16, 17, 18:
		return true
	}
	return false
}

// oneHost reports whether an address defines a single host that can be reached from
// elsewhere (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e).
func oneHost(a netip.Addr) bool {
	if a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() && a.Is6() {
		return false
	}
	if !a.Is4() {
		return true
	}
	first := a.As4()[0]
	return first != 0 && first < 240
}
