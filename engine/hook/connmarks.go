package hook

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/policy"
)

// Messages and attributes of linux/netfilter/nfnetlink_conntrack.h. The
// conntrack library can write a mark neither under a mask nor of zero, so the
// few messages needed are made here.
const (
	ctNew = unix.NFNL_SUBSYS_CTNETLINK<<8 | 0 // IPCTNL_MSG_CT_NEW, also changes
	ctGet = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET

	ctaTupleOrig = 1
	ctaMark      = 8
	ctaZone      = 18
	ctaMarkMask  = 21
)

// sizeofNfgenmsg is the size of struct nfgenmsg in linux/netfilter/nfnetlink.h.
const sizeofNfgenmsg = 4

// connmarks writes our bits of the connection marks of one family.
type connmarks struct {
	family family
	marks  Marks
}

// clear zeroes our bits in every connection of the family that has a verdict,
// except those of the generation keep, if it is not nil. The other bits stay as
// they are, even if somebody changes them meanwhile.
func (c connmarks) clear(keep *uint32) (err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open a netlink socket for conntrack: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	for _, v := range [...]policy.Verdict{policy.Allow, policy.Deny} {
		if err := c.clearVerdict(conn, v, keep); err != nil {
			return fmt.Errorf("clear the %v connection marks under %#x: %w", c.family, c.marks.mask, err)
		}
	}
	return nil
}

// try does what clear does, but for the changes.
func (c connmarks) try() error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open a netlink socket for conntrack: %w", err)
	}
	_, err = c.marked(conn, policy.Allow)
	return errors.Join(err, conn.Close())
}

// marked returns the connections with a verdict.
func (c connmarks) marked(conn *netlink.Conn, v policy.Verdict) ([]netlink.Message, error) {
	flows, err := conn.Execute(c.dump(v))
	if err != nil {
		return nil, fmt.Errorf("dump conntrack: %w (need CAP_NET_ADMIN and the module nf_conntrack_netlink, kernel option CONFIG_NF_CT_NETLINK)", err)
	}
	return flows, nil
}

func (c connmarks) clearVerdict(conn *netlink.Conn, v policy.Verdict, keep *uint32) error {
	flows, err := c.marked(conn, v)
	if err != nil {
		return err
	}
	for _, flow := range flows {
		update, needed, err := c.update(flow, keep)
		if err != nil {
			return err
		}
		if !needed {
			continue
		}
		// ENOENT: the connection has ended meanwhile.
		if _, err := conn.Execute(update); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("update a connection: %w", err)
		}
	}
	return nil
}

// dump asks for the connections with a verdict; the kernel does the filtering
// (ctnetlink_filter_match in net/netfilter/nf_conntrack_netlink.c).
func (c connmarks) dump(v policy.Verdict) netlink.Message {
	value, mask := c.marks.carrying(v)
	return c.message(ctGet, netlink.Request|netlink.Dump, []netlink.Attribute{
		{Type: ctaMark, Data: binary.BigEndian.AppendUint32(nil, value)},
		{Type: ctaMarkMask, Data: binary.BigEndian.AppendUint32(nil, mask)},
	})
}

// update returns the message that zeroes our bits in a dumped connection. Its
// tuple is sent back as it came, so any protocol will do.
func (c connmarks) update(flow netlink.Message, keep *uint32) (m netlink.Message, ok bool, err error) {
	if len(flow.Data) < sizeofNfgenmsg {
		return m, false, fmt.Errorf("conntrack sent a message of %d bytes", len(flow.Data))
	}
	attrs, err := netlink.UnmarshalAttributes(flow.Data[sizeofNfgenmsg:])
	if err != nil {
		return m, false, fmt.Errorf("conntrack sent a message that cannot be read: %w", err)
	}
	var mark uint32
	out := make([]netlink.Attribute, 0, 4)
	for _, a := range attrs {
		switch a.Type &^ (netlink.Nested | netlink.NetByteOrder) {
		case ctaTupleOrig, ctaZone:
			out = append(out, a)
		case ctaMark:
			if len(a.Data) == 4 {
				mark = binary.BigEndian.Uint32(a.Data)
			}
		}
	}
	if !c.marks.Decided(mark) || keep != nil && c.marks.numberIn(mark) == *keep {
		return m, false, nil
	}
	// The kernel computes mark = mark &^ CTA_MARK_MASK ^ CTA_MARK
	// (ctnetlink_change_mark).
	out = append(out,
		netlink.Attribute{Type: ctaMark, Data: binary.BigEndian.AppendUint32(nil, 0)},
		netlink.Attribute{Type: ctaMarkMask, Data: binary.BigEndian.AppendUint32(nil, c.marks.mask)})
	return c.message(ctNew, netlink.Request|netlink.Acknowledge, out), true, nil
}

func (c connmarks) message(typ netlink.HeaderType, flags netlink.HeaderFlags, attrs []netlink.Attribute) netlink.Message {
	body, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		panic(err) // only for attributes of 64 KiB
	}
	return netlink.Message{
		Header: netlink.Header{Type: typ, Flags: flags},
		Data:   append([]byte{c.family.af(), unix.NFNETLINK_V0, 0, 0}, body...),
	}
}
