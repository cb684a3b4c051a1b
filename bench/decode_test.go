package bench

import (
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// BenchmarkDecode measures the first packets of flows, from bytes to the fields
// that a decision needs.
func BenchmarkDecode(b *testing.B) {
	ip4 := &layers.IPv4{Version: 4, TTL: 64, SrcIP: net.IP{10, 0, 0, 1}, DstIP: net.IP{10, 0, 0, 2}}
	ip6 := &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: net.ParseIP("fd00::1"), DstIP: net.ParseIP("fd00::2")}
	tcp := &layers.TCP{SrcPort: 40000, DstPort: 8080, SYN: true, Window: 64240}
	udp := &layers.UDP{SrcPort: 40000, DstPort: 53}
	for _, c := range []struct {
		name     string
		protocol policy.Protocol
		port     uint16
		layers   []gopacket.SerializableLayer
	}{
		{"IPv4/TCP", policy.TCP, 8080, []gopacket.SerializableLayer{ip4, tcp}},
		{"IPv6/TCP", policy.TCP, 8080, []gopacket.SerializableLayer{ip6, tcp}},
		{"IPv4/UDP", policy.UDP, 53, []gopacket.SerializableLayer{ip4, udp, gopacket.Payload("question")}},
		{"IPv6/UDP", policy.UDP, 53, []gopacket.SerializableLayer{ip6, udp, gopacket.Payload("question")}},
	} {
		ip4.Protocol, ip6.NextHeader = layers.IPProtocol(c.protocol), layers.IPProtocol(c.protocol)
		bytes := serialize(b, c.layers)
		b.Run(c.name, func(b *testing.B) {
			d, p := packet.NewDecoder(), packet.Packet{}
			b.ReportAllocs()
			for b.Loop() {
				d.Decode(bytes, &p)
				if p.State != packet.OK || p.Protocol != c.protocol || p.DstPort != c.port {
					b.Fatalf("decoded %+v, want %v to port %d", p, c.protocol, c.port)
				}
			}
		})
	}
}

func serialize(b *testing.B, ls []gopacket.SerializableLayer) []byte {
	b.Helper()
	for _, l := range ls {
		if t, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := t.SetNetworkLayerForChecksum(ls[0].(gopacket.NetworkLayer)); err != nil {
				b.Fatal(err)
			}
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}
