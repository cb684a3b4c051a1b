package hook

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/policy"
)

// Messages and attributes of linux/netfilter/nfnetlink_conntrack.h. The conntrack
// library can write a mark neither under a mask nor of zero, and keeps a whole
// table in memory, so the few messages needed are made here.
const (
	ctNew = unix.NFNL_SUBSYS_CTNETLINK<<8 | 0 // IPCTNL_MSG_CT_NEW, also changes
	ctGet = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET

	ctaTupleOrig   = 1
	ctaTupleReply  = 2
	ctaMark        = 8
	ctaTupleMaster = 14
	ctaZone        = 18
	ctaMarkMask    = 21
	ctaFilter      = 25

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src, ctaIPv4Dst = 1, 2
	ctaIPv6Src, ctaIPv6Dst = 3, 4

	ctaProtoNum, ctaProtoSrcPort = 1, 2

	ctaFilterOrigFlags, ctaFilterReplyFlags = 1, 2

	ctaFilterSrc = 1 << 0 // CTA_FILTER_F_CTA_IP_SRC in net/netfilter/nf_internals.h
)

// sizeofNfgenmsg is the size of struct nfgenmsg in linux/netfilter/nfnetlink.h.
const sizeofNfgenmsg = 4

// connmarks reads and writes our bits of the marks of connections, of one family
// or, with family 0, of both.
type connmarks struct {
	family family
	marks  Marks
}

// clear zeroes our bits in every connection of the family that has one of the
// verdicts, except those of the generation keep, if it is not nil. The other bits
// stay as they are, even if somebody changes them meanwhile.
func (c connmarks) clear(keep *uint32, verdicts ...policy.Verdict) error {
	for _, v := range verdicts {
		err := c.walk(c.carrying(v), func(f *tracked) Fate {
			if keep != nil && c.marks.numberIn(f.mark) == *keep || c.verdict(f.mark) != v {
				return Leave
			}
			return Free
		})
		if err != nil {
			return fmt.Errorf("clear the %v of connections under %#x: %w", v, c.marks.mask, err)
		}
	}
	return nil
}

// try does what clear does, but for the changes.
func (c connmarks) try() error {
	return c.walk(c.carrying(policy.Allow), func(*tracked) Fate { return Leave })
}

// verdict is what a mark says; no verdict is neither Allow nor Deny.
func (c connmarks) verdict(mark uint32) policy.Verdict {
	for _, v := range [...]policy.Verdict{policy.Deny, policy.Allow} {
		if value, mask := c.marks.carrying(v); mark&mask == value {
			return v
		}
	}
	return undecided
}

// undecided is no verdict.
const undecided = ^policy.Verdict(0)

// carrying asks for the connections with a verdict; the kernel does the filtering
// (ctnetlink_filter_match in net/netfilter/nf_conntrack_netlink.c).
func (c connmarks) carrying(v policy.Verdict) attributes {
	value, mask := c.marks.carrying(v)
	return attributes{}.with(ctaMark, be32(value)).with(ctaMarkMask, be32(mask))
}

// walk calls decide for the connections of the family that a filter lets through,
// and does what it says.
func (c connmarks) walk(filter attributes, decide func(*tracked) Fate) (err error) {
	read, err := dialNfnetlink()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, read.close()) }()
	// A dump is answered in parts, each when the one before has been read: changes
	// go by another socket.
	write, err := dialNfnetlink()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, write.close()) }()
	err = read.execute(ctGet, unix.NLM_F_DUMP, c.family.af(), filter, func(attrs []byte) error {
		var f tracked
		f.read(attrs)
		if fate := decide(&f); fate != Leave {
			return c.write(write, &f, fate)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("walk the connection table: %w (need CAP_NET_ADMIN and the module nf_conntrack_netlink, kernel option CONFIG_NF_CT_NETLINK)", err)
	}
	return nil
}

// write changes a connection. Its tuple is sent back as it came, so any protocol
// will do.
func (c connmarks) write(conn *nfnetlink, f *tracked, fate Fate) error {
	var mark uint32
	if fate == Cut {
		mark = c.marks.Verdict(0, policy.Deny, 0) // whichever generation, replies are dropped
	}
	// The kernel computes mark = mark &^ CTA_MARK_MASK ^ CTA_MARK (ctnetlink_change_mark).
	attrs := attributes{}.with(ctaTupleOrig|unix.NLA_F_NESTED, f.original)
	if f.zone != nil {
		attrs = attrs.with(ctaZone, f.zone)
	}
	attrs = attrs.with(ctaMark, be32(mark)).with(ctaMarkMask, be32(c.marks.mask))
	err := conn.execute(ctNew, unix.NLM_F_ACK, f.af(), attrs, nil)
	if err != nil && !errors.Is(err, unix.ENOENT) { // it may have ended meanwhile
		return fmt.Errorf("change a connection: %w", err)
	}
	return nil
}

// tracked is a connection as the kernel describes it.
type tracked struct {
	src      tupleEnd // of the original direction
	dst      tupleEnd // the source of replies: where DNAT sends the original direction
	protocol uint8
	mark     uint32
	child    bool // expected by a conntrack helper; it shares the mark of its parent
	// original and zone identify it; valid until the next one is read.
	original, zone []byte
}

func (f *tracked) af() uint8 {
	if len(f.src.addr) == net.IPv4len {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// tupleEnd is the source of a direction.
type tupleEnd struct {
	addr addrBytes
	port uint16 // 0 for protocols without ports
}

// addrBytes is an address in network byte order, 4 or 16 bytes.
type addrBytes []byte

func (f *tracked) read(attrs []byte) {
	eachAttribute(attrs, func(typ uint16, data []byte) {
		switch typ {
		case ctaTupleOrig:
			f.original = data
			f.protocol = f.src.read(data)
		case ctaTupleReply:
			f.dst.read(data)
		case ctaMark:
			if len(data) == 4 {
				f.mark = binary.BigEndian.Uint32(data)
			}
		case ctaTupleMaster:
			f.child = true
		case ctaZone:
			f.zone = data
		}
	})
}

// read takes the source out of a tuple.
func (e *tupleEnd) read(tuple []byte) (protocol uint8) {
	eachAttribute(tuple, func(typ uint16, data []byte) {
		eachAttribute(data, func(inner uint16, data []byte) {
			switch {
			case typ == ctaTupleIP && (inner == ctaIPv4Src || inner == ctaIPv6Src):
				e.addr = data
			case typ == ctaTupleProto && inner == ctaProtoNum && len(data) == 1:
				protocol = data[0]
			case typ == ctaTupleProto && inner == ctaProtoSrcPort && len(data) == 2:
				e.port = binary.BigEndian.Uint16(data)
			}
		})
	})
	return protocol
}
