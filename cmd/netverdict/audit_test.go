package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// writeCapture is the command of scripts that makes a capture file of lines:
//
//	capture ethernet|any FILE < packets
//	syn|synack|data|udp|ping SOURCE DESTINATION [in|out]
//
// "any" is what tcpdump -i any writes: the way that a packet went is part of it.
func writeCapture(in io.Reader, args []string) int {
	if err := capturePackets(in, args); err != nil {
		fmt.Fprintln(os.Stderr, "capture:", err)
		return 1
	}
	return 0
}

func capturePackets(in io.Reader, args []string) error {
	if len(args) != 2 {
		return errors.New("want a link type and a file")
	}
	file, err := os.Create(args[1])
	if err != nil {
		return err
	}
	defer file.Close()
	link := map[string]layers.LinkType{"ethernet": layers.LinkTypeEthernet, "any": layers.LinkTypeLinuxSLL}[args[0]]
	w := pcapgo.NewWriter(file)
	if err := w.WriteFileHeader(65536, link); err != nil {
		return err
	}
	at := time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		frame, err := frameOf(strings.Fields(lines.Text()), link)
		if err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(frame), Length: len(frame)}, frame); err != nil {
			return err
		}
		at = at.Add(100 * time.Millisecond)
	}
	return lines.Err()
}

func frameOf(words []string, link layers.LinkType) ([]byte, error) {
	if len(words) < 3 {
		return nil, errors.New("want a kind, a source and a destination")
	}
	src, err := netip.ParseAddrPort(words[1])
	if err != nil {
		return nil, err
	}
	dst, err := netip.ParseAddrPort(words[2])
	if err != nil {
		return nil, err
	}
	ip, err := packetOf(words[0], src, dst)
	if err != nil || link == layers.LinkTypeEthernet {
		header := make([]byte, 14)
		binary.BigEndian.PutUint16(header[12:], etherTypeOf(src))
		return append(header, ip...), err
	}
	header := make([]byte, 16)
	binary.BigEndian.PutUint16(header[14:], etherTypeOf(src))
	if len(words) > 3 && words[3] == "out" {
		header[1] = 4
	}
	return append(header, ip...), nil
}

func etherTypeOf(a netip.AddrPort) uint16 {
	if a.Addr().Is6() {
		return 0x86dd
	}
	return 0x0800
}

func packetOf(kind string, src, dst netip.AddrPort) ([]byte, error) {
	var transport gopacket.SerializableLayer
	protocol := layers.IPProtocolTCP
	switch kind {
	case "syn", "synack", "data":
		transport = &layers.TCP{SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), Seq: 7, SYN: kind != "data", ACK: kind != "syn"}
	case "udp":
		protocol, transport = layers.IPProtocolUDP, &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
	case "ping":
		protocol, transport = layers.IPProtocolICMPv4, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 1}
	default:
		return nil, fmt.Errorf("%q is no kind of packet", kind)
	}
	var ip gopacket.SerializableLayer = &layers.IPv4{Version: 4, TTL: 64, Protocol: protocol, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	if src.Addr().Is6() {
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: protocol, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, ip, transport, gopacket.Payload("hello"))
	return buf.Bytes(), err
}
