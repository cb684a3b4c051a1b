package audit_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/engine/audit"
	"github.com/netverdict/netverdict/engine/packet"
)

// TestEveryLink: what the filter and the socket make of frames on the interfaces of
// a real kernel that are newer than the socket: with and without a VLAN tag, on both
// ends of a veth, and on the loopback. The kernel takes the tag out of what comes in.
func TestEveryLink(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	var socket *audit.Socket
	var want []string
	err := n.node.Do(func() (err error) {
		if socket, err = audit.Open(); err != nil {
			return err
		}
		index, err := makeVeth()
		if err != nil {
			return err
		}
		for i, ends := range [][2]string{{"10.9.0.1", "10.9.0.2"}, {"fd00:9::1", "fd00:9::2"}} {
			for tags := range 2 {
				dst := netip.AddrPortFrom(netip.MustParseAddr(ends[1]), uint16(100*i+tags+1))
				if err := sendFrame(index, udpFrame(t, netip.MustParseAddr(ends[0]), dst, make([]uint16, tags))); err != nil {
					return err
				}
				want = append(want, dst.String()+" in", dst.String()+" out")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for _, to := range []string{"127.0.0.1:80", "[::1]:80"} {
		c, err := n.node.DialContext(t.Context(), "udp", to)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	got := copies(t, socket, len(want))
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("copies %q, want %q", got, want)
	}
}

// makeVeth links two veth ends in the namespace of this thread.
func makeVeth() (index int, err error) {
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}); err != nil {
		return 0, err
	}
	for _, name := range []string{"b", "a"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return 0, err
		}
		index = l.Attrs().Index
	}
	return index, nil
}

func udpFrame(t *testing.T, src netip.Addr, dst netip.AddrPort, tags []uint16) []byte {
	t.Helper()
	e := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeIPv4}
	var ip gopacket.SerializableLayer = &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.Addr().AsSlice()}
	if src.Is6() {
		e.EthernetType = layers.EthernetTypeIPv6
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.Addr().AsSlice()}
	}
	all := []gopacket.SerializableLayer{e}
	for range tags {
		all = append(all, &layers.Dot1Q{VLANIdentifier: 5, Type: e.EthernetType})
		e.EthernetType = layers.EthernetTypeDot1Q
	}
	all = append(all, ip, &layers.UDP{SrcPort: 40000, DstPort: layers.UDPPort(dst.Port())}, gopacket.Payload("hello"))
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, all...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// sendFrame sends a frame on an interface of this thread's namespace.
func sendFrame(index int, frame []byte) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	protocol := uint16(frame[13])<<8 | uint16(frame[12]) // network byte order
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index, Protocol: protocol})
}

// copies reads what has been sent, as "destination way", until there are so many and a
// while longer. There is more than that on new interfaces: what the kernel itself sends
// there is no unicast.
func copies(t *testing.T, s *audit.Socket, least int) (got []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	longer := 10
	decoder := packet.NewDecoder()
	err := s.Read(ctx, 50*time.Millisecond, func(frame []byte, _ uint16, way audit.Way) {
		if len(frame) < 15 {
			t.Errorf("a frame of %d bytes", len(frame))
			return
		}
		ip := frame[14:] // the tag is beside the frame
		if frame[12] == 0x81 {
			ip = frame[18:]
		}
		var p packet.Packet
		decoder.Decode(ip, &p)
		if p.State != packet.OK {
			t.Errorf("% x: %v", frame, p.State)
		}
		if !p.Dst.IsMulticast() {
			got = append(got, fmt.Sprintf("%v %s", netip.AddrPortFrom(p.Dst, p.DstPort), map[audit.Way]string{audit.WayIn: "in", audit.WayOut: "out"}[way]))
		}
	}, func() {
		if len(got) < least {
			return
		}
		if longer--; longer == 0 {
			cancel()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}
