package queue

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Sizes in bytes. linux/netlink.h: struct nlmsghdr, struct nlattr, NLMSG_ALIGNTO
// and NLA_ALIGNTO; linux/netfilter/nfnetlink.h: struct nfgenmsg.
const (
	sizeofNlmsghdr = 16
	sizeofNfgenmsg = 4
	sizeofNlattr   = 4
	alignTo        = 4
)

// linux/netlink.h: bits of nlattr.nla_type that do not belong to the type.
const nlaTypeMask = 0xffff &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)

// linux/netfilter/nfnetlink.h: NFNL_SUBSYS_QUEUE, in the high byte of
// nlmsg_type; linux/netfilter/nfnetlink_queue.h: enum nfqnl_msg_types in the low.
const (
	subsysQueue = 3 << 8

	msgPacket       = subsysQueue | 0
	msgVerdict      = subsysQueue | 1
	msgConfig       = subsysQueue | 2
	msgVerdictBatch = subsysQueue | 3
)

// linux/netfilter/nfnetlink_queue.h: enum nfqnl_attr_type.
const (
	attrPacketHdr  = 1
	attrVerdictHdr = 2
	attrMark       = 3
	attrInDev      = 5
	attrOutDev     = 6
	attrPayload    = 10
	attrCapLen     = 13
)

// linux/netfilter/nfnetlink_queue.h: enum nfqnl_attr_config,
// nfqnl_msg_config_cmds and the flags of NFQA_CFG_FLAGS; the copy mode is
// go-nfqueue's NfQnlCopyPacket.
const (
	cfgCmd         = 1
	cfgParams      = 2
	cfgQueueMaxLen = 3
	cfgMask        = 4
	cfgFlags       = 5

	cfgCmdBind = 1
)

// linux/netfilter.h: verdicts.
const (
	nfDrop   = 0
	nfAccept = 1
	nfRepeat = 4
)

// linux/if_ether.h, for queue messages whose nfgenmsg does not name the family.
const (
	etherTypeIPv4 = 0x0800
	etherTypeIPv6 = 0x86dd
)

// align rounds a length up to the alignment of netlink messages and attributes.
func align(n int) int { return (n + alignTo - 1) &^ (alignTo - 1) }

// kind is what a message turned out to be.
type kind uint8

const (
	// ignorable needs no answer: a control message, or none that we know.
	ignorable kind = iota
	// packetMessage is a whole packet, to be judged.
	packetMessage
	// malformedPacket has an id, to be answered, and nothing else that is sound.
	malformedPacket
	// unidentified is a fragment of a message, or a packet without an id.
	unidentified
	// errorMessage is NLMSG_ERROR: the kernel's reply to the message with the
	// same sequence number. errno 0 acknowledges it.
	errorMessage
)

// message is the outcome of parsing one netlink message.
type message struct {
	kind  kind
	errno unix.Errno // of errorMessage
	seq   uint32     // of errorMessage: nlmsg_seq of the message it is about
}

// parse reads the first netlink message of b. p is overwritten when it is about
// a packet: Payload points into b, and only the ID is set when it is malformed.
// rest is what follows the message; it is shorter than b.
func parse(b []byte, p *Packet) (m message, rest []byte) {
	if len(b) < sizeofNlmsghdr {
		return message{kind: unidentified}, nil
	}
	length := int(binary.NativeEndian.Uint32(b))
	if length < sizeofNlmsghdr {
		return message{kind: unidentified}, nil
	}
	cut := length > len(b) // the receive buffer was too small: MSG_TRUNC
	if cut {
		length = len(b)
	}
	body := b[sizeofNlmsghdr:length]
	rest = b[min(align(length), len(b)):]

	switch binary.NativeEndian.Uint16(b[4:]) {
	case msgPacket:
		return message{kind: parsePacket(body, cut, p)}, rest
	case unix.NLMSG_ERROR:
		return parseError(body), rest
	}
	return message{}, rest
}

// parseError reads struct nlmsgerr: a negative errno, then the header of the
// message it is about.
func parseError(body []byte) message {
	if len(body) < 4+sizeofNlmsghdr {
		return message{kind: unidentified}
	}
	return message{
		kind:  errorMessage,
		errno: unix.Errno(-int32(binary.NativeEndian.Uint32(body))),
		seq:   binary.NativeEndian.Uint32(body[4+8:]),
	}
}

// parsePacket reads nfgenmsg and the attributes of NFQNL_MSG_PACKET.
func parsePacket(body []byte, cut bool, p *Packet) kind {
	*p = Packet{}
	if len(body) < sizeofNfgenmsg {
		return unidentified
	}
	var f fields
	sound := f.read(body[sizeofNfgenmsg:], p) && !cut
	if !f.identified {
		*p = Packet{}
		return unidentified
	}
	if !sound {
		*p = Packet{ID: p.ID}
		return malformedPacket
	}
	p.Family = family(body[0], f.etherType)
	p.Length = max(f.capLen, uint32(len(p.Payload)))
	return packetMessage
}

// family prefers what the hook said (nfgenmsg.nfgen_family) to the EtherType,
// which is all that a bridge hook has.
func family(nfgen uint8, etherType uint16) uint8 {
	switch {
	case nfgen == unix.AF_INET || nfgen == unix.AF_INET6:
		return nfgen
	case etherType == etherTypeIPv4:
		return unix.AF_INET
	case etherType == etherTypeIPv6:
		return unix.AF_INET6
	}
	return 0
}

// fields is what the attributes say beside what Packet keeps.
type fields struct {
	identified bool
	etherType  uint16
	capLen     uint32
}

// read walks the attributes of one packet message. False means that they are
// damaged; what was read before the damage stays. Their values are big endian,
// their headers are in host order.
func (f *fields) read(b []byte, p *Packet) bool {
	for len(b) >= sizeofNlattr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < sizeofNlattr || n > len(b) {
			return false
		}
		if !f.set(binary.NativeEndian.Uint16(b[2:])&nlaTypeMask, b[sizeofNlattr:n], p) {
			return false
		}
		b = b[min(align(n), len(b)):]
	}
	return len(b) == 0
}

// set takes over one attribute. False means that it is too short for its type.
func (f *fields) set(typ uint16, v []byte, p *Packet) bool {
	switch typ {
	case attrPacketHdr:
		return f.setHeader(v, p)
	case attrMark:
		return setUint32(&p.Mark, v)
	case attrInDev:
		return setUint32(&p.InDev, v)
	case attrOutDev:
		return setUint32(&p.OutDev, v)
	case attrCapLen:
		return setUint32(&f.capLen, v)
	case attrPayload:
		p.Payload = v
	}
	return true
}

// setHeader reads struct nfqnl_msg_packet_hdr. The id is taken even if the rest
// is missing: it is what an answer needs.
func (f *fields) setHeader(v []byte, p *Packet) bool {
	if !setUint32(&p.ID, v) {
		return false
	}
	f.identified = true
	if len(v) < 7 {
		return false
	}
	f.etherType = binary.BigEndian.Uint16(v[4:])
	p.Hook = v[6]
	return true
}

func setUint32(to *uint32, v []byte) bool {
	if len(v) < 4 {
		return false
	}
	*to = binary.BigEndian.Uint32(v)
	return true
}
