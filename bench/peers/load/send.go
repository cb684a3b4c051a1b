package load

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flood says what Send sends.
type Flood struct {
	Src, Dst netip.Addr // IPv4
	SYN      bool       // TCP SYN segments instead of UDP datagrams
	// Source and destination ports go round in ranges of these sizes, source
	// ports first; 1 and 1 are a single flow.
	FirstSrcPort, FirstDstPort uint16
	SrcPorts, DstPorts         int
	// Packets to send at most, and for how long at most; 0 for no such bound.
	Packets int
	Lasting time.Duration
}

const (
	sendBatch = 64
	ipv4Len   = 20 // RFC 791, no options
	udpLen    = 8  // RFC 768
	tcpLen    = 20 // RFC 9293, no options
	payload   = 16 // bytes of a datagram
)

// mmsghdr is struct mmsghdr of sendmmsg(2) on 64-bit machines.
type mmsghdr struct {
	hdr unix.Msghdr
	_   uint32 // bytes sent, written by the kernel
	_   [4]byte
}

// batch is what one system call sends.
type batch struct {
	packets [sendBatch][ipv4Len + tcpLen + payload]byte
	iovecs  [sendBatch]unix.Iovec
	headers [sendBatch]mmsghdr
	to      unix.RawSockaddrInet4
	sum     uint32 // of the TCP header without ports
}

// Send sends packets as fast as one thread can, over a raw socket.
func Send(w io.Writer, f *Flood) error {
	runtime.LockOSThread()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return os.NewSyscallError("raw socket", err)
	}
	defer unix.Close(fd)
	b := newBatch(f)
	sent, start := 0, time.Now()
	for (f.Packets == 0 || sent < f.Packets) && (f.Lasting == 0 || time.Since(start) < f.Lasting) {
		b.renumber(f, sent)
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers)), sendBatch, 0, 0, 0) //nolint:gosec // a system call takes pointers
		switch errno {
		case 0:
			sent += int(n)
		case unix.ENOBUFS, unix.EAGAIN, unix.EINTR:
		case unix.EPERM: // netfilter dropped the first packet: it was sent as far as we are concerned
			sent++
		default:
			return fmt.Errorf("send to %v: %w", f.Dst, errno)
		}
	}
	return report(w, Sent{Packets: sent, Elapsed: time.Since(start)})
}

func newBatch(f *Flood) *batch {
	b := &batch{to: sockaddr4(netip.AddrPortFrom(f.Dst, 0))}
	size := ipv4Len + udpLen + payload
	if f.SYN {
		size = ipv4Len + tcpLen
	}
	for i := range b.packets {
		p := b.packets[i][:size]
		b.fill(p, f)
		b.iovecs[i] = unix.Iovec{Base: &p[0], Len: uint64(size)}
		h := &b.headers[i].hdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&b.to)), unix.SizeofSockaddrInet4 //nolint:gosec // as struct msghdr wants it
		h.Iov, h.Iovlen = &b.iovecs[i], 1
	}
	return b
}

// fill writes all but the ports. The kernel fills in the IPv4 total length and
// checksum (raw(7)); a UDP checksum of 0 is none.
func (b *batch) fill(p []byte, f *Flood) {
	src, dst := f.Src.As4(), f.Dst.As4()
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	l4 := p[ipv4Len:]
	if !f.SYN {
		binary.BigEndian.PutUint16(l4[4:], udpLen+payload)
		return
	}
	p[9] = unix.IPPROTO_TCP
	l4[12], l4[13] = tcpLen/4<<4, 0x02 // data offset; SYN
	binary.BigEndian.PutUint16(l4[14:], 64240)
	b.sum = unix.IPPROTO_TCP + tcpLen
	for _, part := range [][]byte{src[:], dst[:], l4} {
		for i := 0; i < len(part); i += 2 {
			b.sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
}

// renumber gives the packets of a batch the ports of the next flows.
func (b *batch) renumber(f *Flood, sent int) {
	for i := range b.packets {
		n := sent + i
		src := f.FirstSrcPort + uint16(n%f.SrcPorts)
		dst := f.FirstDstPort + uint16(n/f.SrcPorts%f.DstPorts)
		l4 := b.packets[i][ipv4Len:]
		binary.BigEndian.PutUint16(l4, src)
		binary.BigEndian.PutUint16(l4[2:], dst)
		if f.SYN {
			sum := b.sum + uint32(src) + uint32(dst)
			for sum>>16 != 0 {
				sum = sum&0xffff + sum>>16
			}
			binary.BigEndian.PutUint16(l4[16:], ^uint16(sum))
		}
	}
}
