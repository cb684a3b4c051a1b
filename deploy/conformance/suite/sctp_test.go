//go:build linux

package suite

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
)

// Another decoder sees in our packets what we mean.
func TestInitChunk(t *testing.T) {
	for _, addrs := range [][2]string{{"10.0.0.1", "10.0.0.2"}, {"fd00::1", "fd00::2"}} {
		from, to := netip.MustParseAddr(addrs[0]), netip.MustParseAddr(addrs[1])
		packet := ipPacket(unix.IPPROTO_SCTP, from, to, initChunk(80))
		first := layers.LayerTypeIPv4
		if from.Is6() {
			first = layers.LayerTypeIPv6
		} else {
			packet[3] = byte(len(packet)) // the kernel's part
		}
		decoded := gopacket.NewPacket(packet, first, gopacket.Default)
		sctp, _ := decoded.Layer(layers.LayerTypeSCTP).(*layers.SCTP)
		if sctp == nil || sctp.DstPort != 80 || decoded.Layer(layers.LayerTypeSCTPInit) == nil {
			t.Errorf("%s: decoded as %v", from, decoded)
		}
		if !isInit(packet, 80) || isInit(packet, 81) {
			t.Errorf("%s: isInit does not know its own packet", from)
		}
	}
}
