package hook

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// nfnetlink is a socket to one of netfilter's subsystems. Its answers are read
// where they arrive and not kept: a connection table or a set may have a million
// entries, and the netlink libraries collect all of them first.
type nfnetlink struct {
	fd  int
	seq uint32
	buf []byte
}

// answerTime bounds the wait for each datagram of an answer; the kernel sends
// them while it is asked.
const answerTime = 10 * time.Second

// dumpBuffer is twice what the kernel puts into one datagram of a dump
// (netlink_dump in net/netlink/af_netlink.c allocates up to 32 KiB).
const dumpBuffer = 64 << 10

func dialNfnetlink() (*nfnetlink, error) {
	wait := unix.NsecToTimeval(answerTime.Nanoseconds())
	fd, err := openNetfilter(0, func(fd int) error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait) })
	if err != nil {
		return nil, err
	}
	return &nfnetlink{fd: fd, buf: make([]byte, dumpBuffer)}, nil
}

// openNetfilter opens and binds a socket in the namespace of the calling thread. flags
// are more ones of socket(2); prepare sets options.
func openNetfilter(flags int, prepare func(fd int) error) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, fmt.Errorf("open a netfilter netlink socket: %w (kernel option CONFIG_NETFILTER_NETLINK)", err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}), prepare(fd)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("prepare a netfilter netlink socket: %w", err)
	}
	return fd, nil
}

func (n *nfnetlink) close() error { return unix.Close(n.fd) }

// execute sends a request and waits for its acknowledgement or, if it dumps, for
// the end. each gets the attributes of one message, valid until it returns; an
// error of its ends the dump.
func (n *nfnetlink) execute(typ, flags uint16, af uint8, attrs attributes, each func(attrs []byte) error) error {
	n.seq++
	if err := n.send(typ, flags, af, attrs); err != nil {
		return err
	}
	var failed error
	for {
		size, _, err := unix.Recvfrom(n.fd, n.buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("read the answer of netfilter: %w", err)
		}
		done, err := n.read(n.buf[:size], func(attrs []byte) {
			if each != nil && failed == nil {
				failed = each(attrs)
			}
		})
		if done || err != nil {
			return errors.Join(failed, err)
		}
	}
}

func (n *nfnetlink) send(typ, flags uint16, af uint8, attrs attributes) error {
	msg := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+sizeofNfgenmsg+len(attrs))
	binary.NativeEndian.PutUint32(msg[0:], uint32(cap(msg)))
	binary.NativeEndian.PutUint16(msg[4:], typ)
	binary.NativeEndian.PutUint16(msg[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(msg[8:], n.seq)
	msg = append(msg, af, unix.NFNETLINK_V0, 0, 0)
	msg = append(msg, attrs...)
	for {
		err := unix.Sendto(n.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// read takes one datagram apart. Answers to an earlier request, whose end an
// error kept us from reading, are passed over.
func (n *nfnetlink) read(b []byte, each func(attrs []byte)) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		var m message
		if m, b, err = cutMessage(b); err != nil {
			return true, err
		}
		switch {
		case m.seq != n.seq:
		case m.typ == unix.NLMSG_DONE, m.typ == unix.NLMSG_ERROR:
			return true, errnoIn(m.body)
		case len(m.body) >= sizeofNfgenmsg:
			each(m.body[sizeofNfgenmsg:])
		}
	}
	return false, nil
}

// message is one of a datagram.
type message struct {
	typ  uint16
	seq  uint32 // of the request, as its sender chose it
	body []byte
}

// cutMessage takes the first message off a datagram that is long enough for a header.
func cutMessage(b []byte) (m message, rest []byte, err error) {
	size := int(binary.NativeEndian.Uint32(b))
	if size < unix.NLMSG_HDRLEN || size > len(b) {
		return m, nil, fmt.Errorf("netfilter sent a message of %d bytes in %d", size, len(b))
	}
	m = message{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.NLMSG_HDRLEN:size]}
	return m, b[min(aligned(size), len(b)):], nil
}

// errnoIn reads the error that begins an acknowledgement or the end of a dump.
func errnoIn(body []byte) error {
	if len(body) < 4 {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

func aligned(n int) int { return (n + 3) &^ 3 }

// attributes are netlink attributes, one behind the other.
type attributes []byte

// with appends an attribute; typ includes the flags for nesting and byte order.
func (a attributes) with(typ uint16, data []byte) attributes {
	a = binary.NativeEndian.AppendUint16(a, uint16(4+len(data)))
	a = binary.NativeEndian.AppendUint16(a, typ)
	a = append(a, data...)
	return append(a, make([]byte, aligned(len(data))-len(data))...)
}

// be32 is a number in network byte order.
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// native32 is a number in the byte order of this machine.
func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// typeMask removes NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const typeMask = 0x3fff

// eachAttribute calls f for each attribute that is whole.
func eachAttribute(b []byte, f func(typ uint16, data []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&typeMask, b[4:size])
		b = b[min(aligned(size), len(b)):]
	}
}
