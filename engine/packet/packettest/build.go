// Package packettest builds packets for tests.
package packettest

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// Build makes an IP packet of the addresses' family, without options, with correct
// lengths and checksums. The first part is the transport header.
func Build(t testing.TB, src, dst netip.Addr, protocol layers.IPProtocol, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	var ip interface {
		gopacket.SerializableLayer
		gopacket.NetworkLayer
	} = &layers.IPv4{Version: 4, TTL: 64, Id: 1, Protocol: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	if dst.Is6() {
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	if c, ok := parts[0].(interface {
		SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
	}); ok {
		if err := c.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		append([]gopacket.SerializableLayer{ip}, parts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
