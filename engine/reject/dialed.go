//go:build linux

package reject

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// linux/netfilter/nfnetlink.h: NFNL_SUBSYS_ULOG, in the high byte of nlmsg_type;
// linux/netfilter/nfnetlink_log.h: enum nfulnl_msg_types in the low one, enum
// nfulnl_attr_type, enum nfulnl_attr_config, nfulnl_msg_config_cmds, and the copy
// mode NFULNL_COPY_PACKET.
const (
	subsysLog = 4 << 8

	msgLogged    = subsysLog | 0
	msgLogConfig = subsysLog | 1

	attrLoggedPayload = 9

	cfgCommand   = 1
	cfgMode      = 2
	cfgThreshold = 5

	commandBind = 1
	copyPacket  = 2
)

const (
	// loggedSize is how many bytes of a packet are wanted.
	loggedSize = 128
	// dialedKept is how many of the last connections are remembered: those that are
	// between PREROUTING and an answer.
	dialedKept = 8192
	// dialedBuffer is the socket's receive buffer in bytes: some thousand packets.
	dialedBuffer = 4 << 20
)

// dialed knows where the last connections were addressed before DNAT.
type dialed struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	seed maphash.Seed

	mu      sync.Mutex
	decoder *packet.Decoder
	buf     []byte
	byMark  map[dialMark]netip.AddrPort
	oldest  []dialMark // a ring
	next    int
}

// dialMark is by what a packet is recognized behind DNAT.
type dialMark struct {
	src      netip.AddrPort
	protocol policy.Protocol
	print    uint64
}

func newDialed() *dialed {
	return &dialed{
		seed: maphash.MakeSeed(), decoder: packet.NewDecoder(), buf: make([]byte, 1<<16),
		byMark: map[dialMark]netip.AddrPort{}, oldest: make([]dialMark, dialedKept),
	}
}

// openDialed takes an NFLOG group of the network namespace of the calling thread.
func openDialed(group uint16) (*dialed, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open a socket for NFLOG group %d: %w", group, err)
	}
	d := newDialed()
	d.conn = conn
	err = errors.Join(conn.SetReadBuffer(dialedBuffer), conn.SetOption(netlink.NoENOBUFS, true), bindGroup(conn, group))
	if err == nil {
		d.raw, err = conn.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen to NFLOG group %d: %w (need CAP_NET_ADMIN and the module nfnetlink_log, kernel option CONFIG_NETFILTER_NETLINK_LOG)", group, err), conn.Close())
	}
	return d, nil
}

// bindGroup waits for the acknowledgement itself: packets may come before it, if
// rules that name the group are in force already.
func bindGroup(conn *netlink.Conn, group uint16) error {
	mode := append(binary.BigEndian.AppendUint32(nil, loggedSize), copyPacket, 0)
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: cfgCommand, Data: []byte{commandBind}},
		{Type: cfgMode, Data: mode},
		{Type: cfgThreshold, Data: binary.BigEndian.AppendUint32(nil, 1)}, // no packet waits for others
	})
	if err != nil {
		return err
	}
	data := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}
	binary.BigEndian.PutUint16(data[2:], group) // res_id
	sent, err := conn.Send(netlink.Message{
		Header: netlink.Header{Type: msgLogConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(data, attrs...),
	})
	if err != nil {
		return err
	}
	for {
		replies, err := conn.Receive() // reports an error that is one
		if err != nil {
			return err
		}
		for _, m := range replies {
			if m.Header.Type == netlink.Error && m.Header.Sequence == sent.Header.Sequence {
				return nil
			}
		}
	}
}

// read takes note of packets until the socket is closed.
func (d *dialed) read() {
	_ = d.raw.Read(func(fd uintptr) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.drain(int(fd))
		return false // wait for more
	})
}

// find returns where the sender of a packet that is being judged had addressed it.
// Its copy is in the socket, if not yet here.
func (d *dialed) find(b []byte, at int, p *packet.Packet) (netip.AddrPort, bool) {
	if d == nil {
		return netip.AddrPort{}, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.raw != nil {
		_ = d.raw.Control(func(fd uintptr) { d.drain(int(fd)) })
	}
	to, ok := d.byMark[d.markOf(b, at, p)]
	return to, ok
}

// drain reads what is there.
func (d *dialed) drain(fd int) {
	for {
		n, _, err := unix.Recvfrom(fd, d.buf, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return
		default:
			d.take(d.buf[:n])
		}
	}
}

// take remembers the packets of one datagram; what it cannot parse it ignores.
func (d *dialed) take(b []byte) {
	for len(b) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return
		}
		if binary.NativeEndian.Uint16(b[4:]) == msgLogged {
			d.note(loggedPayload(b[unix.SizeofNlMsghdr:length]))
		}
		b = b[min((length+3)&^3, len(b)):] // NLMSG_ALIGNTO
	}
}

// loggedPayload finds the packet behind struct nfgenmsg.
func loggedPayload(b []byte) []byte {
	const sizeofNfgenmsg = 4
	if len(b) < sizeofNfgenmsg {
		return nil
	}
	attrs, err := netlink.NewAttributeDecoder(b[sizeofNfgenmsg:])
	if err != nil {
		return nil
	}
	for attrs.Next() {
		if attrs.Type() == attrLoggedPayload {
			return attrs.Bytes()
		}
	}
	return nil
}

// note remembers one packet, and forgets the oldest.
func (d *dialed) note(b []byte) {
	var p packet.Packet
	d.decoder.Decode(b, &p)
	at, ok := packet.TransportAt(b)
	if p.State.Malformed() || !ok {
		return
	}
	mark := d.markOf(b, at, &p)
	if _, known := d.byMark[mark]; !known {
		delete(d.byMark, d.oldest[d.next])
		d.oldest[d.next] = mark
		d.next = (d.next + 1) % len(d.oldest)
	}
	d.byMark[mark] = netip.AddrPortFrom(p.Dst, p.DstPort)
}

func (d *dialed) markOf(b []byte, at int, p *packet.Packet) dialMark {
	return dialMark{netip.AddrPortFrom(p.Src, p.SrcPort), p.Protocol, fingerprint(d.seed, b, at, p.Protocol)}
}

func (d *dialed) close() error {
	if d == nil {
		return nil
	}
	return d.conn.Close()
}
