//go:build linux

package reject

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/policy"
)

// linux/netfilter/nfnetlink.h: NFNL_SUBSYS_CTNETLINK; linux/netfilter/
// nfnetlink_conntrack.h: IPCTNL_MSG_CT_GET, enum ctattr_type, ctattr_tuple,
// ctattr_ip, ctattr_l4proto.
const (
	msgGetConnection = 1<<8 | 1

	attrTupleReply = 2

	attrTupleIP, attrTupleProto      = 1, 2
	attrIPv4Src, attrIPv4Dst         = 1, 2
	attrIPv6Src, attrIPv6Dst         = 3, 4
	attrProtoNum                     = 1
	attrProtoSrcPort, attrProtoDstPt = 2, 3
)

// connections looks up entries of the connection table. The kernel marks its answer
// as one of several parts (ctnetlink_fill_info) and sends no end, for which the
// libraries would wait for ever; it is in the socket when the request has been sent.
type connections struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	buf  []byte
}

// openConnections looks at the network namespace of the calling thread.
func openConnections() (*connections, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("look at connections: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look at connections: %w", err), conn.Close())
	}
	return &connections{conn, raw, make([]byte, 8192)}, nil
}

func (c *connections) close() error { return c.conn.Close() }

// live returns the destination that the client of a live TCP connection knows, by a
// segment that was denied. ok is false unless conntrack has seen both ends: a
// segment that belongs to nothing must not reset somebody else's connection.
func (c *connections) live(s *segment) (dialed netip.AddrPort, ok bool) {
	found, err := c.byReply(s.dst, s.src)
	if err != nil || !found.Status.SeenReply() {
		return netip.AddrPort{}, false
	}
	t := &found.TupleOrig
	if netip.AddrPortFrom(t.IP.SourceAddress.Unmap(), t.Proto.SourcePort) != s.src {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(t.IP.DestinationAddress, t.Proto.DestinationPort), true
}

// byReply finds the TCP connection whose replies have these addresses.
func (c *connections) byReply(src, dst netip.AddrPort) (*conntrack.Flow, error) {
	c.discard()
	request, err := requestByReply(src, dst)
	if err != nil {
		return nil, err
	}
	if _, err := c.conn.Send(request); err != nil {
		return nil, err
	}
	n, err := c.receive()
	if err != nil {
		return nil, err
	}
	return parseConnection(c.buf[:n])
}

func requestByReply(src, dst netip.AddrPort) (netlink.Message, error) {
	family, srcType, dstType := byte(unix.AF_INET), uint16(attrIPv4Src), uint16(attrIPv4Dst)
	if src.Addr().Is6() {
		family, srcType, dstType = unix.AF_INET6, attrIPv6Src, attrIPv6Dst
	}
	attrs := netlink.NewAttributeEncoder()
	attrs.ByteOrder = binary.BigEndian
	attrs.Nested(attrTupleReply, func(tuple *netlink.AttributeEncoder) error {
		tuple.Nested(attrTupleIP, func(ip *netlink.AttributeEncoder) error {
			ip.Bytes(srcType, src.Addr().AsSlice())
			ip.Bytes(dstType, dst.Addr().AsSlice())
			return nil
		})
		tuple.Nested(attrTupleProto, func(proto *netlink.AttributeEncoder) error {
			proto.Uint8(attrProtoNum, uint8(policy.TCP))
			proto.Uint16(attrProtoSrcPort, src.Port())
			proto.Uint16(attrProtoDstPt, dst.Port())
			return nil
		})
		return nil
	})
	data, err := attrs.Encode()
	return netlink.Message{
		Header: netlink.Header{Type: msgGetConnection, Flags: netlink.Request},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, data...),
	}, err
}

// discard empties the socket of what an earlier request may have left.
func (c *connections) discard() {
	for {
		if _, err := c.receive(); err != nil {
			return
		}
	}
}

// receive does not wait.
func (c *connections) receive() (n int, err error) {
	if ctl := c.raw.Control(func(fd uintptr) {
		n, _, err = unix.Recvfrom(int(fd), c.buf, unix.MSG_DONTWAIT)
	}); ctl != nil {
		return 0, ctl
	}
	return n, err
}

// parseConnection reads the one message of an answer; an error in it has no flow.
func parseConnection(b []byte) (*conntrack.Flow, error) {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil || len(messages) == 0 {
		return nil, errors.Join(errNoConnection, err)
	}
	m := &messages[0]
	var e conntrack.Event
	if m.Header.Type>>8 != msgGetConnection>>8 {
		return nil, errNoConnection
	}
	if err := e.Unmarshal(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(m.Header.Type)}, Data: m.Data}); err != nil {
		return nil, err
	}
	if e.Flow == nil {
		return nil, errNoConnection
	}
	return e.Flow, nil
}

var errNoConnection = errors.New("no such connection")
