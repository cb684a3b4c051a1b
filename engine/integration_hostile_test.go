package engine_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/policy"
)

// TestGarbage sends what no sane sender would, below the IP layer so that the
// sender's kernel does not mend it. None of it arrives, none of it ends the
// engine, which enforces as before.
func TestGarbage(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.start(allow("client", "server"))
		capture, err := n.server.Capture(func(p []byte) bool { return from(p, n.other) && !neighbourDiscovery(p) })
		if err != nil {
			t.Fatal(err)
		}
		defer capture.Close()
		// This one is fine, and shows that such packets get as far as our rules.
		frames := [][]byte{tcpSYN(t, n.other.Addr4(), n.server.Addr4(), 1000, 1)}
		families(n.server, func(_ string, a netip.Addr) {
			frames = append(frames, garbage(t, source(n.other, a), a)...)
			frames = append(frames, noise(t, source(n.other, a), a)...)
		})
		sendFrames(t, n.node.Host, n.other, frames)
		if p, err := capture.Next(within(t, silence)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the server got % x, %v", p, err)
		}
		demand(t, slices.Concat(http(policy.Allow, n.client, n.server, 80), http(policy.Deny, n.other, n.server, 80))...)
		if n.queued() == 0 || n.matched(hook.PurposeInvalid) == 0 {
			t.Errorf("user space saw %d, conntrack refused %d: the garbage did not get here", n.queued(), n.matched(hook.PurposeInvalid))
		}
	})
}

// from recognizes packets of a host.
func from(p []byte, h *netlab.Host) bool {
	var src netip.Addr
	if transportAt(p) == 20 {
		src = netip.AddrFrom4([4]byte(p[12:16]))
	} else {
		src = netip.AddrFrom16([16]byte(p[8:24]))
	}
	return slices.Contains(h.Addrs(), src)
}

func neighbourDiscovery(p []byte) bool {
	return transportAt(p) == 40 && p[6] == byte(policy.ICMPv6) && len(p) > 40 && p[40] >= 133 && p[40] <= 137
}

// garbage is one packet for each way of lying that the decoder knows.
func garbage(t *testing.T, src, dst netip.Addr) [][]byte {
	t.Helper()
	tcp, udp := tcpSYN(t, src, dst, 1001, 80), udpDatagram(t, src, dst, 1001, 80, []byte("hello"))
	at := transportAt(tcp)
	changed := func(p []byte, at int, bytes ...byte) []byte {
		p = slices.Clone(p)
		copy(p[at:], bytes)
		return ipChecksum(p)
	}
	all := [][]byte{
		changed(tcp, at+12, 15<<4),           // TCP data offset beyond the packet
		changed(tcp, at+12, 0),               // TCP data offset within the fixed header
		changed(tcp, at+13, 0xff),            // every TCP flag at once
		changed(tcp, at+13, 0),               // none
		changed(udp, at+4, 0, 7),             // UDP length below its header
		changed(udp, at+4, 0xff, 0xff),       // UDP length beyond the packet
		changed(udp, at+4, 0, 0),             // UDP length 0
		sized(tcp[:at+8]), sized(udp[:at+3]), // ends inside the transport header
		sized(tcp[:at]),                     // ends at the transport header
		tcp[:at+8],                          // the IP header claims more than there is
		sized(append(slices.Clone(tcp), 1)), // trailing byte, wrong checksum
		changed(sized(tcp[:at+4]), protocolAt(tcp), 132), // SCTP of ports alone
		changed(sized(tcp[:at+2]), protocolAt(tcp), 58),  // ICMPv6 of type and code alone
		changed(sized(tcp[:at+2]), protocolAt(tcp), 1),   // ICMP, the same
		changed(tcp, protocolAt(tcp), 59),                // no next header, to IPv6
		changed(tcp, protocolAt(tcp), 0),                 // hop-by-hop options, to IPv6
		changed(tcp, protocolAt(tcp), 43),                // routing header
		changed(tcp, protocolAt(tcp), 44),                // fragment header
		changed(tcp, protocolAt(tcp), 255),
	}
	if at == 20 {
		all = append(all,
			changed(tcp, 0, 0x41), changed(tcp, 0, 0x4f), // header length too small, too large
			changed(tcp, 2, 0, 19),                             // total length below the header
			changed(tcp, 6, 0x20, 0),                           // first fragment of something that never comes
			changed(tcp, 6, 0, 1), changed(tcp, 6, 0x1f, 0xff)) // later fragments
	}
	return all
}

// noise is random bytes behind a good IP header.
func noise(t *testing.T, src, dst netip.Addr) (all [][]byte) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		payload := make([]byte, random.IntN(64))
		for j := range payload {
			payload[j] = byte(random.Uint32())
		}
		p := udpDatagram(t, src, dst, 1, 1, nil)
		at := transportAt(p)
		p = sized(append(p[:at:at], payload...))
		p[protocolAt(p)] = [...]byte{1, 6, 17, 58, 132, byte(random.Uint32())}[i%6]
		if neighbourDiscovery(p) {
			continue
		}
		all = append(all, ipChecksum(p))
	}
	return all
}

// sized makes the IP header agree with the length of the packet.
func sized(p []byte) []byte {
	p = slices.Clone(p)
	if transportAt(p) == 20 {
		p[2], p[3] = byte(len(p)>>8), byte(len(p))
	} else {
		p[4], p[5] = byte((len(p)-40)>>8), byte(len(p)-40)
	}
	return ipChecksum(p)
}

func protocolAt(p []byte) int {
	if transportAt(p) == 20 {
		return 9
	}
	return 6
}

// ipChecksum corrects the checksum of an IPv4 header.
func ipChecksum(p []byte) []byte {
	if transportAt(p) == 40 {
		return p
	}
	length := min(int(p[0]&15)*4, len(p))
	p[10], p[11] = 0, 0
	var sum uint32
	for i := 0; i+1 < length; i += 2 {
		sum += uint32(p[i])<<8 | uint32(p[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	p[10], p[11] = byte(^sum>>8), byte(^sum)
	return p
}

// sendFrames puts IP packets as they are on the link from a pod to its node.
func sendFrames(t *testing.T, node, pod *netlab.Host, packets [][]byte) {
	t.Helper()
	var gateway net.HardwareAddr
	err := node.Do(func() error {
		link, err := net.InterfaceByName(pod.Interface())
		if err == nil {
			gateway = link.HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = pod.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, p := range packets {
			to := unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: eth0.Index, Halen: 6} // ETH_P_IP, network order
			if transportAt(p) == 40 {
				to.Protocol = 0xdd86 // ETH_P_IPV6
			}
			copy(to.Addr[:], gateway)
			if err := unix.Sendto(fd, p, 0, &to); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
