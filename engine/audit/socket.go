package audit

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

// Socket copies the packets of all interfaces of a network namespace, those that
// appear later too. It needs CAP_NET_RAW.
//
// gopacket's handle opens, filters and counts. It knows one interface, and does not
// say which way a packet went; here its socket is bound to all of them, and read
// with recvmmsg, which tells. One socket for all keeps the copies of a packet in
// the order in which they were taken.
type Socket struct {
	handle  *pcapgo.EthernetHandle
	fd      int
	buffers buffers

	copied  atomic.Uint64
	dropped atomic.Uint64
}

// receiveBuffer is the size in bytes that is asked for; without CAP_NET_ADMIN the
// kernel gives at most net.core.rmem_max.
const receiveBuffer = 8 << 20

// Open starts copying in the network namespace of the calling thread. What arrives
// after it returns is kept until Read, as far as the buffer goes.
func Open() (*Socket, error) {
	filter, err := beginnings()
	if err != nil {
		return nil, fmt.Errorf("build the packet filter: %w", err)
	}
	// Every network namespace has a loopback. The handle is moved on before anything is read.
	handle, err := pcapgo.NewEthernetHandle("lo")
	if err != nil {
		return nil, fmt.Errorf("copy packets: %w (need CAP_NET_RAW)", err)
	}
	s := &Socket{handle: handle, buffers: newBuffers()}
	if s.fd, err = descriptor(handle); err == nil {
		err = s.bind()
	}
	if err == nil {
		err = handle.SetBPF(filter)
	}
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("copy packets of all interfaces: %w", err)
	}
	return s, nil
}

// descriptor reads the handle's file descriptor, which it keeps to itself.
func descriptor(h *pcapgo.EthernetHandle) (int, error) {
	fd := reflect.ValueOf(h).Elem().FieldByName("fd")
	if !fd.IsValid() || fd.Kind() != reflect.Int {
		return 0, errors.New("this version of gopacket's pcapgo.EthernetHandle has no descriptor that could be used; build with v1.1.19")
	}
	return int(fd.Int()), nil
}

// bind moves the socket from one interface to all, with nothing of the one left.
func (s *Socket) bind() error {
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing[0]}); err != nil {
		return fmt.Errorf("attach a packet filter: %w", err)
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer) // then as much as may be
	}
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return err
	}
	if err := unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL)}); err != nil {
		return fmt.Errorf("bind to all interfaces: %w", err)
	}
	// The error of a loopback that is down, which the first bind left behind.
	if _, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
		return err
	}
	for {
		switch n, err := s.buffers.receive(s.fd); {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.EINTR):
			return err
		case n == 0 && err == nil:
			return nil
		}
	}
}

// networkOrder stores v in network byte order, as sockaddr_ll wants it.
func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

// Close stops copying. Read must have returned.
func (s *Socket) Close() { s.handle.Close() }

// Read gives copies to look until ctx ends, and calls rest after each batch of
// them and at least every tick. The bytes are valid until look returns.
func (s *Socket) Read(ctx context.Context, tick time.Duration, look func(frame []byte, hatype uint16, way Way), rest func()) error {
	for ctx.Err() == nil {
		n, err := s.buffers.receive(s.fd)
		switch {
		case errors.Is(err, unix.EAGAIN):
			rest()
			if err := s.wait(tick); err != nil {
				return err
			}
			continue
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN): // an interface went down
			continue
		case err != nil:
			return fmt.Errorf("receive copies of packets: %w", err)
		}
		s.copied.Add(uint64(n))
		for i := range n {
			frame, hatype, way := s.buffers.at(i)
			look(frame, hatype, way)
		}
		rest()
	}
	return nil
}

func (s *Socket) wait(atMost time.Duration) error {
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, int(atMost.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for copies of packets: %w", err)
	}
	return nil
}

// count adds what the kernel had no room for. Its counter starts anew when read.
func (s *Socket) count() {
	if stats, err := s.handle.Stats(); err == nil {
		s.dropped.Add(uint64(stats.Drops))
	}
}

// batch is how many copies are taken at once, at most.
const batch = 64

// buffers are those of one recvmmsg(2).
type buffers struct {
	hdrs  []mmsghdr
	names []unix.RawSockaddrLinklayer
	data  []byte
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

func newBuffers() buffers {
	b := buffers{
		hdrs: make([]mmsghdr, batch), names: make([]unix.RawSockaddrLinklayer, batch), data: make([]byte, batch*snapLength),
	}
	for i := range b.hdrs {
		iov := &unix.Iovec{Base: &b.data[i*snapLength]}
		iov.SetLen(snapLength)
		b.hdrs[i].hdr.Iov = iov
		b.hdrs[i].hdr.SetIovlen(1)
		b.hdrs[i].hdr.Name = (*byte)(unsafe.Pointer(&b.names[i]))
	}
	return b
}

func (b *buffers) receive(fd int) (int, error) {
	for i := range b.hdrs {
		b.hdrs[i].hdr.Namelen = uint32(unsafe.Sizeof(b.names[i]))
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&b.hdrs[0])), uintptr(len(b.hdrs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// at returns the i-th copy of the last receive.
func (b *buffers) at(i int) (frame []byte, hatype uint16, way Way) {
	from := &b.names[i]
	way = WayIn
	if from.Pkttype == unix.PACKET_OUTGOING {
		way = WayOut
	}
	n := min(int(b.hdrs[i].len), snapLength)
	return b.data[i*snapLength : i*snapLength+n], from.Hatype, way
}
