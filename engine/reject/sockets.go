//go:build linux

package reject

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// sockets are raw sockets of the network namespace in which they were opened. They
// only send.
//
//	raw4, raw6: whole packets, with whatever source
//	icmp6: the body; the kernel chooses the node's source address, as a router's
//	       answer has it, and computes the checksum. For IPv4 raw4 does that.
type sockets struct{ raw4, raw6, icmp6 int }

// openSockets makes them send with a mark.
func openSockets(ipv4, ipv6 bool, mark uint32) (s *sockets, err error) {
	s = &sockets{-1, -1, -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if ipv4 {
		if s.raw4, err = openRaw(unix.AF_INET, unix.IPPROTO_RAW, mark); err != nil {
			return nil, err
		}
	}
	if !ipv6 {
		return s, nil
	}
	if s.raw6, err = openRaw(unix.AF_INET6, unix.IPPROTO_RAW, mark); err != nil {
		return nil, err
	}
	if s.icmp6, err = openRaw(unix.AF_INET6, unix.IPPROTO_ICMPV6, mark); err != nil {
		return nil, err
	}
	return s, deafen(s.icmp6)
}

func openRaw(family, protocol int, mark uint32) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return -1, fmt.Errorf("open a raw socket: %w (need CAP_NET_RAW)", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return -1, errors.Join(fmt.Errorf("set the mark of a raw socket: %w (need CAP_NET_ADMIN)", err), unix.Close(fd))
	}
	return fd, nil
}

// deafen keeps ICMPv6 from gathering in the receive buffer: a filter with all bits
// set blocks every type (RFC 3542 section 3.2).
func deafen(fd int) error {
	var none unix.ICMPv6Filter
	for i := range none.Data {
		none.Data[i] = ^uint32(0)
	}
	if err := unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &none); err != nil {
		return fmt.Errorf("filter what a raw socket receives: %w", err)
	}
	return nil
}

// sendRaw sends a packet with its header.
func (s *sockets) sendRaw(packet []byte, to netip.Addr) error {
	if to.Is4() {
		return unix.Sendto(s.raw4, packet, 0, &unix.SockaddrInet4{Addr: to.As4()})
	}
	return unix.Sendto(s.raw6, packet, 0, &unix.SockaddrInet6{Addr: to.As16()})
}

// sendICMP sends what prohibited has made.
func (s *sockets) sendICMP(packet []byte, to netip.Addr) error {
	if to.Is4() {
		return s.sendRaw(packet, to)
	}
	return unix.Sendto(s.icmp6, packet, 0, &unix.SockaddrInet6{Addr: to.As16()})
}

func (s *sockets) close() error {
	var errs []error
	for _, fd := range [...]int{s.raw4, s.raw6, s.icmp6} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
