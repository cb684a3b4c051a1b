//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// SendIP sends a complete IPv4 or IPv6 packet, header included, to dst through
// the host's routing and netfilter OUTPUT. Use it for protocols without
// sockets and for forged sources. In IPv4 headers the kernel fills in total
// length and checksum, and a zero identification or source (raw(7)); IPv6
// packets go out as they are. Packets above the MTU are refused.
func (h *Host) SendIP(packet []byte, dst netip.Addr) error {
	family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: as4(dst)})
	if dst.Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: dst.As16()}
	}
	err := h.Do(func() error {
		// IPPROTO_RAW implies IP_HDRINCL in both families (inet_create, inet6_create).
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return privilegeError("open a raw socket", err)
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, sa)
	})
	if err != nil {
		return fmt.Errorf("host %s: send a packet of %d bytes to %s: %w", h.name, len(packet), dst, err)
	}
	return nil
}

// as4 is As4 without its panic; a zero Addr becomes 0.0.0.0, which the kernel refuses.
func as4(a netip.Addr) (b [4]byte) {
	copy(b[:], a.AsSlice())
	return b
}

// Capture collects the IP packets that arrive at a host.
type Capture struct {
	host   *Host
	sock   *os.File // AF_PACKET, SOCK_DGRAM, non-blocking
	filter func([]byte) bool
	once   sync.Once
	closed atomic.Bool
	err    error

	mu  sync.Mutex // one reader at a time
	buf []byte
}

// captureBuffer is how many bytes of packets, with the kernel's overhead, a
// Capture holds between two calls of Next.
const captureBuffer = 8 << 20

// Capture starts collecting the packets that the host receives on any
// interface, from the IP header on, for which filter is true (all if nil). It
// sees them before netfilter's INPUT. Everything that arrives after Capture
// returns is kept until Next takes it. Checksums of packets from local sockets
// may be unfinished (offload). filter must not keep or change its argument.
func (h *Host) Capture(filter func(packet []byte) bool) (*Capture, error) {
	if filter == nil {
		filter = func([]byte) bool { return true }
	}
	c := &Capture{host: h, filter: filter, buf: make([]byte, 64<<10)}
	err := h.Do(func() (err error) {
		c.sock, err = openPacketSocket()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: capture packets: %w", h.name, err)
	}
	if err := h.attach(c); err != nil {
		return nil, err
	}
	return c, nil
}

// openPacketSocket opens a socket for every interface of the thread's
// namespace; SOCK_DGRAM makes the kernel remove link-layer headers (packet(7)).
func openPacketSocket() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, privilegeError("open a packet socket", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
		unix.Close(fd)
		return nil, privilegeError("enlarge the receive buffer", err)
	}
	// Bound last, so that no packet arrives before the buffer is large.
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL)}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind a packet socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "packet socket"), nil
}

// networkOrder stores v in network byte order, as sockaddr_ll wants it.
func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

// Next returns a copy of the next matching packet, or an error when ctx ends
// first or the capture is closed.
func (c *Capture) Next(ctx context.Context) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer interrupt(ctx, c.sock)()
	for {
		p, err := c.read()
		if err != nil {
			return nil, fmt.Errorf("host %s: wait for a packet: %w", c.host.name, because(ctx, err))
		}
		if p != nil && c.filter(p) {
			return slices.Clone(p), nil
		}
	}
}

// read returns a received IP packet in c.buf, or nil for anything else.
func (c *Capture) read() ([]byte, error) {
	rc, err := c.sock.SyscallConn()
	if err != nil {
		return nil, err
	}
	var n int
	var from unix.Sockaddr
	var recvErr error
	err = rc.Read(func(fd uintptr) bool {
		n, from, recvErr = unix.Recvfrom(int(fd), c.buf, 0)
		return !errors.Is(recvErr, syscall.EAGAIN)
	})
	if c.closed.Load() {
		return nil, net.ErrClosed // the raw connection's own error has no exported name
	}
	if err != nil {
		return nil, err
	}
	if recvErr != nil {
		return nil, fmt.Errorf("recvfrom: %w", recvErr)
	}
	ll, ok := from.(*unix.SockaddrLinklayer)
	if !ok || ll.Pkttype == unix.PACKET_OUTGOING {
		return nil, nil
	}
	if ll.Protocol != networkOrder(unix.ETH_P_IP) && ll.Protocol != networkOrder(unix.ETH_P_IPV6) {
		return nil, nil
	}
	return c.buf[:n], nil
}

// Close ends the capture and a waiting Next.
func (c *Capture) Close() error {
	c.once.Do(func() {
		c.host.detach(c)
		c.closed.Store(true)
		c.err = c.sock.Close()
	})
	return c.err
}
