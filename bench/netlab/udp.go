//go:build linux

package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ServeUDP answers every datagram with the line that ServeHTTP answers with,
// followed by the datagram's payload. The reply comes from the address to which
// the datagram was sent. Port 0 picks a free port.
func (h *Host) ServeUDP(port uint16) (*Server, error) {
	c4, err := h.listenUDP("udp4", fmt.Sprintf("0.0.0.0:%d", port), unix.IPPROTO_IP, unix.IP_PKTINFO)
	if err != nil {
		return nil, err
	}
	port = c4.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	c6, err := h.listenUDP("udp6", fmt.Sprintf("[::]:%d", port), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO)
	if err != nil {
		c4.Close()
		return nil, err
	}
	conns := []*net.UDPConn{c4, c6}
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() { h.answerUDP(c) })
	}
	s := &Server{Port: port, host: h, close: func() error {
		err := closeAll(conns)
		wg.Wait()
		return err
	}}
	if err := h.attach(s); err != nil {
		return nil, err
	}
	return s, nil
}

// listenUDP makes a socket that reports each datagram's destination address.
func (h *Host) listenUDP(network, addr string, level, option int) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		ctlErr := rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
		return errors.Join(ctlErr, err)
	}}
	c, err := h.listenPacket(lc, network, addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func (h *Host) answerUDP(c *net.UDPConn) {
	payload := make([]byte, 64<<10)
	control := make([]byte, 256)
	for {
		n, cn, _, from, err := c.ReadMsgUDPAddrPort(payload, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of memory, at most: an unconnected socket gets no ICMP errors
			time.Sleep(time.Millisecond)
			continue
		}
		reply := append(Reply{Host: h.name, Remote: from}.header(), payload[:n]...)
		_, _, _ = c.WriteMsgUDPAddrPort(reply, sourceControl(control[:cn]), from) // lost replies are UDP's way
	}
}

// sourceControl turns the control message of a received datagram into the one
// that makes the reply leave from the same address (ip(7) IP_PKTINFO, ipv6(7)
// IPV6_PKTINFO). The interface is left to routing, except for link-local
// addresses, which need it.
func sourceControl(received []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(received)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			var info unix.Inet4Pktinfo // ifindex, spec_dst (the local address), addr
			copy(info.Spec_dst[:], m.Data[4:8])
			return unix.PktInfo4(&info)
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			var info unix.Inet6Pktinfo // addr, ifindex in host byte order
			copy(info.Addr[:], m.Data[:16])
			if net.IP(info.Addr[:]).IsLinkLocalUnicast() {
				info.Ifindex = binary.NativeEndian.Uint32(m.Data[16:20])
			}
			return unix.PktInfo6(&info)
		}
	}
	return nil
}
