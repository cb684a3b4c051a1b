//go:build linux

package netlab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// Echo message types: RFC 792 (ICMP) and RFC 4443 section 4 (ICMPv6).
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// Ping sends one ICMP or ICMPv6 echo request over a raw socket and waits for
// its reply. It does not repeat a lost request. Bound it with ctx.
func (h *Host) Ping(ctx context.Context, to netip.Addr) error {
	ctx, cancel := h.bound(ctx)
	defer cancel()
	network, unspecified, request, reply := "ip4:icmp", "0.0.0.0", byte(echoRequest4), byte(echoReply4)
	if to.Is6() {
		network, unspecified, request, reply = "ip6:ipv6-icmp", "::", echoRequest6, echoReply6
	}
	c, err := h.ListenPacket(network, unspecified)
	if err != nil {
		return err
	}
	defer c.Close()
	defer interrupt(ctx, c)()
	msg := echoMessage(request)
	if _, err := c.WriteTo(msg, &net.IPAddr{IP: to.AsSlice(), Zone: to.Zone()}); err != nil {
		return fmt.Errorf("host %s: ping %s: %w", h.name, to, because(ctx, err))
	}
	if err := awaitEcho(c, to, reply, msg); err != nil {
		return fmt.Errorf("host %s: ping %s: wait for the reply: %w", h.name, to, because(ctx, err))
	}
	return nil
}

// echoMessage makes an echo request whose identifier and data no other has:
// raw sockets receive everybody's replies.
func echoMessage(kind byte) []byte {
	msg := make([]byte, 24) // type, code, checksum (2), identifier (2), sequence (2), data
	rand.Read(msg[4:])
	msg[0] = kind
	if kind == echoRequest4 { // the kernel fills in ICMPv6 checksums (RFC 3542 section 3.1)
		binary.BigEndian.PutUint16(msg[2:], internetChecksum(msg))
	}
	return msg
}

// awaitEcho reads until the reply to the request sent arrives. Go strips the
// IPv4 header; the kernel strips the IPv6 one.
func awaitEcho(c net.PacketConn, from netip.Addr, kind byte, sent []byte) error {
	buf := make([]byte, 2048)
	for {
		n, peer, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if n != len(sent) || buf[0] != kind || !bytes.Equal(buf[4:n], sent[4:]) {
			continue
		}
		if ip, ok := netip.AddrFromSlice(peer.(*net.IPAddr).IP); ok && ip.Unmap() == from.WithZone("") {
			return nil
		}
	}
}

// internetChecksum is RFC 1071's over an even number of bytes, in host order.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
