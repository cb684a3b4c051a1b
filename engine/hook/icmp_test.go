package hook

import (
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/policy"
)

// An ICMP error comes with the connection of the flow that it quotes, but is
// judged by its own addresses: whatever becomes of it, that flow stays as it is.
func TestICMPErrorLeavesQuotedFlowAlone(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		l := newLab(t, testConfig(b))
		l.client.run(t, "ip addr add 10.1.0.9/24 dev eth0")
		to := netip.AddrPortFrom(server4, serverPort)
		srv, cut, free := l.udp(l.server, to.String()), l.udp(l.client, "10.1.0.2:0"), l.udp(l.client, "10.1.0.2:0")
		l.flowsBefore(srv, cut, free)

		l.judge.says(policy.Allow, l.hook.Epoch())
		l.quote(pod4, cut)
		l.awaitCount(PurposeICMPError, 1)
		l.expectAsked("allowed error about a flow that was cut", 1)
		l.expectArrival("reply of that flow", srv, cut, netip.AddrPortFrom(pod4, port(cut)), false)

		l.quote(other, cut)
		l.awaitCount(PurposeICMPError, 2)
		l.expectArrival("reply of a flow that an unpoliced host complained about", srv, cut, netip.AddrPortFrom(pod4, port(cut)), false)

		l.switchTo(true, true)
		l.judge.says(policy.Deny, l.hook.Epoch())
		dropped := l.count(PurposeDrop)
		l.quote(pod4, free)
		l.awaitCount(PurposeDrop, dropped+1)
		l.expectAsked("denied error about a flow that nobody judged", 1)
		l.expectArrival("reply of that flow", srv, free, netip.AddrPortFrom(pod4, port(free)), true)
	})
}

// flowsBefore makes a flow that was cut, and one from before any policy.
func (l *lab) flowsBefore(srv, cut, free *net.UDPConn) {
	l.t.Helper()
	to := netip.AddrPortFrom(server4, serverPort)
	l.police(Policed{})
	l.expectArrival("request before any policy", free, srv, to, true)
	l.police(Policed{Egress: []netip.Addr{pod4, pod6}})
	l.expectArrival("allowed request", cut, srv, to, true)
	l.switchTo(true, false)
	l.judge.says(policy.Deny, l.hook.Epoch())
	l.expectArrival("denied request", cut, srv, to, false)
}

func (l *lab) police(p Policed) {
	l.t.Helper()
	if err := l.hook.Prepare(p); err != nil {
		l.t.Fatal(err)
	}
	if err := l.hook.Finish(); err != nil {
		l.t.Fatal(err)
	}
}

// quote sends the server an ICMP error about its reply to a client's socket.
func (l *lab) quote(from netip.Addr, flow *net.UDPConn) {
	l.t.Helper()
	l.client.sendRaw(l.t, from, server4, syscall.IPPROTO_ICMP, hostUnreachable(server4, pod4, serverPort, port(flow)))
}

// hostUnreachable is the ICMP error (RFC 792) about an empty datagram.
func hostUnreachable(src, dst netip.Addr, srcPort, dstPort uint16) []byte {
	ip := []byte{0x45, 0, 0, 28, 0, 1, 0, 0, 64, syscall.IPPROTO_UDP, 0, 0}
	ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	udp := binary.BigEndian.AppendUint16(nil, srcPort)
	udp = append(binary.BigEndian.AppendUint16(udp, dstPort), 0, 8, 0, 0)
	icmp := append(append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, ip...), udp...)
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	return icmp
}

// checksum is that of RFC 1071, for an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum>>16 + sum)
}

// sendRaw sends what follows the IP header.
func (n *namespace) sendRaw(t testing.TB, from, to netip.Addr, protocol int, payload []byte) {
	t.Helper()
	n.in(t, func() error {
		family, src, dst := unix.AF_INET6, sockaddr(from), sockaddr(to)
		if to.Is4() {
			family = unix.AF_INET
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, src); err != nil {
			return err
		}
		return unix.Sendto(fd, payload, 0, dst)
	})
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// awaitCount waits until the rules of a purpose have matched so many packets.
func (l *lab) awaitCount(p Purpose, want uint64) {
	l.t.Helper()
	eventually(func() bool { return l.count(p) >= want })
	if got := l.count(p); got != want {
		l.t.Errorf("the rules %s matched %d packets, want %d", p, got, want)
	}
}

// Neighbour discovery never crosses a router (RFC 4861): what does is data.
func TestRoutedNeighbourDiscoveryIsAsked(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		l := newLab(t, testConfig(b))
		l.judge.says(policy.Deny, l.hook.Epoch())
		advert := append([]byte{136, 0, 0, 0, 0, 0, 0, 0}, server6.AsSlice()...)
		before := l.count(PurposeNeighbour)
		l.client.sendRaw(t, pod6, server6, syscall.IPPROTO_ICMPV6, advert)
		l.awaitCount(PurposeDenied, 1)
		l.expectAsked("routed neighbour advertisement", 1)
		l.awaitCount(PurposeNeighbour, before)
		// As if it had come over a bridge.
		l.router.run(t, "ip6tables-"+b.String()+" -t mangle -A FORWARD -d "+server6.String()+" -j HL --hl-set 255")
		l.client.sendRaw(t, pod6, server6, syscall.IPPROTO_ICMPV6, advert)
		l.awaitCount(PurposeNeighbour, before+1)
		l.expectAsked("bridged neighbour advertisement", 1)
	})
}
