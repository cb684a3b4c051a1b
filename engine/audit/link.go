package audit

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Sizes of link headers in bytes.
const (
	ethernetLen = 14
	vlanLen     = 4
)

// maxTags bounds the VLAN tags of one frame: 802.1ad has two, and some add one.
const maxTags = 4

// ethernet finds the IP packet in an Ethernet frame, behind VLAN tags.
func ethernet(frame []byte) (ip []byte, ok bool) {
	if len(frame) < ethernetLen {
		return nil, false
	}
	return tagged(binary.BigEndian.Uint16(frame[12:14]), frame[ethernetLen:])
}

// tagged finds the IP packet in what follows an EtherType.
func tagged(etherType uint16, rest []byte) (ip []byte, ok bool) {
	for range maxTags {
		if etherType != unix.ETH_P_8021Q && etherType != unix.ETH_P_8021AD {
			break
		}
		if len(rest) < vlanLen {
			return nil, false
		}
		etherType, rest = binary.BigEndian.Uint16(rest[2:4]), rest[vlanLen:]
	}
	if etherType != unix.ETH_P_IP && etherType != unix.ETH_P_IPV6 {
		return nil, false
	}
	return bare(rest)
}

// bare takes a packet without link header.
func bare(b []byte) (ip []byte, ok bool) {
	return b, len(b) > 0 && (b[0]>>4 == 4 || b[0]>>4 == 6)
}

// byHardware finds the IP packet in a frame of an interface with this ARPHRD type.
// Those without a link header (TUN, WireGuard, IP in IP) show the packet itself
// (packet_rcv in net/packet/af_packet.c).
func byHardware(hatype uint16, frame []byte) (ip []byte, ok bool) {
	if hatype == unix.ARPHRD_ETHER {
		return ethernet(frame)
	}
	return bare(frame)
}
