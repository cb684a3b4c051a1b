//go:build linux

package suite

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/bench/netlab"
)

// The kernel here may have no SCTP sockets. Policies are about packets, so a raw
// INIT chunk, the first packet of an association, is sent and looked for at the
// other end.

const sctpClientPort = 4711

// initChunk is an SCTP packet with an INIT chunk (RFC 9260 sections 3.1 and 3.3.2).
func initChunk(port uint16) []byte {
	p := make([]byte, 12+20)
	binary.BigEndian.PutUint16(p[0:], sctpClientPort)
	binary.BigEndian.PutUint16(p[2:], port)
	p[12] = 1 // INIT; flags are 0, and so is the verification tag of its packet
	binary.BigEndian.PutUint16(p[14:], 20)
	binary.BigEndian.PutUint32(p[16:], rand.Uint32()|1) // initiate tag, not 0
	binary.BigEndian.PutUint32(p[20:], 65536)           // receiver window, bytes
	binary.BigEndian.PutUint16(p[24:], 1)               // outbound streams
	binary.BigEndian.PutUint16(p[26:], 1)               // inbound streams
	binary.BigEndian.PutUint32(p[28:], rand.Uint32())   // TSN
	// CRC32c, least significant byte first (RFC 9260 appendix A).
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}

// ipPacket puts a header before a payload.
func ipPacket(protocol byte, from, to netip.Addr, payload []byte) []byte {
	if to.Is4() {
		h := make([]byte, 20, 20+len(payload))
		h[0], h[8], h[9] = 0x45, 64, protocol // length and checksum: the kernel's (raw(7))
		copy(h[12:], from.AsSlice())
		copy(h[16:], to.AsSlice())
		return append(h, payload...)
	}
	h := make([]byte, 40, 40+len(payload))
	h[0], h[6], h[7] = 0x60, protocol, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], from.AsSlice())
	copy(h[24:], to.AsSlice())
	return append(h, payload...)
}

// isInit tells whether a captured IP packet is an INIT to a port.
func isInit(packet []byte, port uint16) bool {
	header, protocol := 20, byte(0)
	switch {
	case len(packet) > 20 && packet[0]>>4 == 4:
		header, protocol = int(packet[0]&15)*4, packet[9]
	case len(packet) > 40 && packet[0]>>4 == 6:
		header, protocol = 40, packet[6]
	}
	return protocol == unix.IPPROTO_SCTP && len(packet) >= header+13 &&
		binary.BigEndian.Uint16(packet[header+2:]) == port && packet[header+12] == 1
}

// sctp sends an INIT and looks whether it arrives.
func sctp(from, to *netlab.Host, src, dst netip.Addr, port uint16) attempt {
	return func(ctx context.Context) error {
		capture, err := to.Capture(func(packet []byte) bool { return isInit(packet, port) })
		if err != nil {
			return err
		}
		defer capture.Close()
		if err := from.SendIP(ipPacket(unix.IPPROTO_SCTP, src, dst, initChunk(port)), dst); err != nil {
			return err
		}
		_, err = capture.Next(ctx)
		return verdict(err)
	}
}

func (t *T) sctpPasses(from, to *peer, port uint16) {
	pairs(from, to, func(family string, src, dst netip.Addr) {
		t.passes(fmt.Sprintf("%s SCTP %s → %s:%d", family, from.name, to.name, port), sctp(from.host, to.host, src, dst, port))
	})
}

func (t *T) sctpBlocked(from, to *peer, port uint16) {
	pairs(from, to, func(family string, src, dst netip.Addr) {
		t.blocked(fmt.Sprintf("%s SCTP %s → %s:%d", family, from.name, to.name, port), sctp(from.host, to.host, src, dst, port))
	})
}

func sctpPort(t *T) {
	ns := t.namespace("a")
	server := t.pod(ns, pod{name: "server", node: 1, labels: "app=server", tcp: []int32{80}, udp: []int32{80}})
	near := t.pod(ns, pod{name: "near", node: 1})
	far := t.pod(ns, pod{name: "far", node: 2})
	t.policy(ns, "sctp-80", `
podSelector: {matchLabels: {app: server}}
ingress:
- ports: [{protocol: SCTP, port: 80}]`)
	for _, client := range []*peer{near, far} {
		t.sctpPasses(client, server, 80)
		t.sctpBlocked(client, server, 81)
		t.tcpBlocked(client, server, 80)
		t.udpBlocked(client, server, 80)
	}
}

func sctpIsNotTCP(t *T) {
	ns := t.namespace("a")
	server := t.pod(ns, pod{name: "server", node: 1, labels: "app=server", tcp: []int32{80}})
	client := t.pod(ns, pod{name: "client", node: 2})
	t.sctpPasses(client, server, 80)
	t.policy(ns, "tcp-80", `
podSelector: {matchLabels: {app: server}}
ingress:
- ports: [{port: 80}]`)
	t.sctpBlocked(client, server, 80)
	t.tcpPasses(client, server, 80)
}

func sctpRangesAndNames(t *T) {
	ns := t.namespace("a")
	server := t.pod(ns, pod{name: "server", node: 1, labels: "app=server", tcp: []int32{80}, sctp: []int32{9000}})
	client := t.pod(ns, pod{name: "client", node: 2})
	t.sctpPasses(client, server, 80)
	t.policy(ns, "range-and-names", `
podSelector: {matchLabels: {app: server}}
ingress:
- ports:
  - {protocol: SCTP, port: 8000, endPort: 8010}
  - {protocol: SCTP, port: sctp-9000}
  - {protocol: SCTP, port: tcp-80}`)
	for _, port := range []uint16{8000, 8010, 9000} {
		t.sctpPasses(client, server, port)
	}
	for _, port := range []uint16{80, 7999, 8011, 9001} {
		t.sctpBlocked(client, server, port)
	}
	t.tcpBlocked(client, server, 80)
}

func sctpEgress(t *T) {
	ns := t.namespace("a")
	server := t.pod(ns, pod{name: "server", node: 1, tcp: []int32{80}})
	client := t.pod(ns, pod{name: "client", node: 2, labels: "app=client"})
	t.tcpPasses(client, server, 80)
	t.policy(ns, "sctp-80", `
podSelector: {matchLabels: {app: client}}
policyTypes: [Egress]
egress:
- ports: [{protocol: SCTP, port: 80}]`)
	t.sctpPasses(client, server, 80)
	t.sctpBlocked(client, server, 81)
	t.tcpBlocked(client, server, 80)
}
