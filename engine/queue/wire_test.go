package queue

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// attr encodes one netlink attribute, padded.
func attr(typ uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(sizeofNlattr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, typ), value...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

// nlmsg encodes one netlink message around its body.
func nlmsg(typ uint16, parts ...[]byte) []byte {
	body := bytes.Join(parts, nil)
	b := binary.NativeEndian.AppendUint32(nil, uint32(sizeofNlmsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, make([]byte, 10)...)
	return append(b, body...)
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// genmsg is struct nfgenmsg.
func genmsg(family uint8) []byte { return []byte{family, 0, 0, 5} }

// packetHdr is NFQA_PACKET_HDR of packet 0x01020304.
func packetHdr(etherType uint16, hook uint8) []byte {
	v := append(be32(0x01020304), byte(etherType>>8), byte(etherType), hook)
	return attr(attrPacketHdr, v...)
}

// errorMsg is NLMSG_ERROR about a message with a sequence number.
func errorMsg(errno int32, seq uint32) []byte {
	about := nlmsg(msgVerdict)
	binary.NativeEndian.PutUint32(about[8:], seq)
	return nlmsg(unix.NLMSG_ERROR, binary.NativeEndian.AppendUint32(nil, uint32(-errno)), about)
}

func full() []byte {
	return nlmsg(msgPacket, genmsg(unix.AF_INET), packetHdr(etherTypeIPv4, 4),
		attr(attrOutDev, be32(7)...), attr(attrInDev, be32(6)...), attr(attrMark, be32(0xcafe0001)...),
		attr(attrCapLen, be32(1500)...), attr(99, 1, 2, 3), attr(attrPayload, 0x45, 0, 0))
}

func TestParse(t *testing.T) {
	const id = 0x01020304
	lone := Packet{ID: id}
	withPayload := func(family uint8) Packet {
		return Packet{ID: id, Family: family, Hook: 4, Length: 2, Payload: []byte{0x60, 1}}
	}
	payload := attr(attrPayload, 0x60, 1)
	tests := map[string]struct {
		in   []byte
		want message
		pkt  Packet
	}{
		"all attributes": {full(), message{kind: packetMessage}, Packet{
			ID: id, Mark: 0xcafe0001, Length: 1500, InDev: 6, OutDev: 7, Family: unix.AF_INET, Hook: 4, Payload: []byte{0x45, 0, 0},
		}},
		"ipv6":                 {nlmsg(msgPacket, genmsg(unix.AF_INET6), packetHdr(etherTypeIPv6, 4), payload), message{kind: packetMessage}, withPayload(unix.AF_INET6)},
		"family of a bridge":   {nlmsg(msgPacket, genmsg(unix.AF_BRIDGE), packetHdr(etherTypeIPv6, 4), payload), message{kind: packetMessage}, withPayload(unix.AF_INET6)},
		"family of bridge v4":  {nlmsg(msgPacket, genmsg(unix.AF_BRIDGE), packetHdr(etherTypeIPv4, 4), payload), message{kind: packetMessage}, withPayload(unix.AF_INET)},
		"unknown family":       {nlmsg(msgPacket, genmsg(unix.AF_BRIDGE), packetHdr(0x0806, 4), payload), message{kind: packetMessage}, withPayload(0)},
		"flag bits in types":   {nlmsg(msgPacket, genmsg(2), packetHdr(etherTypeIPv4, 4), attr(attrPayload|unix.NLA_F_NET_BYTEORDER|unix.NLA_F_NESTED, 0x60, 1)), message{kind: packetMessage}, withPayload(unix.AF_INET)},
		"payload unpadded":     {full()[:len(full())-1], message{kind: malformedPacket}, lone}, // nlmsg_len still counts the pad
		"no payload":           {nlmsg(msgPacket, genmsg(2), packetHdr(etherTypeIPv4, 4)), message{kind: packetMessage}, Packet{ID: id, Family: 2, Hook: 4}},
		"cut in the payload":   {full()[:len(full())-3], message{kind: malformedPacket}, lone},
		"cut in an attribute":  {full()[:40], message{kind: malformedPacket}, lone},
		"short header attr":    {nlmsg(msgPacket, genmsg(2), attr(attrPacketHdr, be32(id)...)), message{kind: malformedPacket}, lone},
		"short mark":           {nlmsg(msgPacket, genmsg(2), packetHdr(etherTypeIPv4, 4), attr(attrMark, 1, 2)), message{kind: malformedPacket}, lone},
		"attribute too long":   {nlmsg(msgPacket, genmsg(2), packetHdr(etherTypeIPv4, 4), []byte{200, 0, 10, 0}), message{kind: malformedPacket}, lone},
		"attribute of size 0":  {nlmsg(msgPacket, genmsg(2), packetHdr(etherTypeIPv4, 4), []byte{0, 0, 10, 0}), message{kind: malformedPacket}, lone},
		"trailing bytes":       {nlmsg(msgPacket, genmsg(2), packetHdr(etherTypeIPv4, 4), []byte{1, 2}), message{kind: malformedPacket}, lone},
		"no id":                {nlmsg(msgPacket, genmsg(2), payload), message{kind: unidentified}, Packet{}},
		"id too short":         {nlmsg(msgPacket, genmsg(2), attr(attrPacketHdr, 1, 2, 3)), message{kind: unidentified}, Packet{}},
		"no nfgenmsg":          {nlmsg(msgPacket), message{kind: unidentified}, Packet{}},
		"no header":            {[]byte{1, 2, 3}, message{kind: unidentified}, Packet{}},
		"length below header":  {make([]byte, 16), message{kind: unidentified}, Packet{}},
		"error":                {errorMsg(int32(unix.ENOENT), 9), message{kind: errorMessage, errno: unix.ENOENT, seq: 9}, Packet{}},
		"acknowledgement":      {errorMsg(0, 9), message{kind: errorMessage, seq: 9}, Packet{}},
		"error cut":            {errorMsg(2, 9)[:30], message{kind: unidentified}, Packet{}},
		"noop":                 {nlmsg(unix.NLMSG_NOOP), message{}, Packet{}},
		"message we know not":  {nlmsg(msgConfig, genmsg(2)), message{}, Packet{}},
		"of another subsystem": {nlmsg(1<<8, genmsg(2), packetHdr(etherTypeIPv4, 4)), message{}, Packet{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var p Packet
			m, rest := parse(test.in, &p)
			if m != test.want {
				t.Errorf("message %+v, want %+v", m, test.want)
			}
			if diff := cmp.Diff(test.pkt, p); diff != "" {
				t.Errorf("packet (-want +got):\n%s", diff)
			}
			if len(rest) != 0 {
				t.Errorf("%d bytes left over", len(rest))
			}
		})
	}
}

// Several messages in a datagram, the first one not a multiple of 4 bytes long.
func TestParseSeveral(t *testing.T) {
	odd := nlmsg(msgPacket, genmsg(2), packetHdr(etherTypeIPv4, 4), attr(attrPayload, 0x45, 0, 0))
	binary.NativeEndian.PutUint32(odd, uint32(len(odd)-1)) // without the pad of the last attribute
	in := append(odd, errorMsg(2, 0)...)

	var p Packet
	m, rest := parse(in, &p)
	if m.kind != packetMessage || len(p.Payload) != 3 {
		t.Fatalf("first message: %+v, %+v", m, p)
	}
	if m, rest = parse(rest, &p); m.errno != unix.ENOENT || len(rest) != 0 {
		t.Fatalf("second message: %+v, %d bytes left", m, len(rest))
	}
}

// A packet leaves nothing behind in the next.
func TestParseOverwrites(t *testing.T) {
	var p Packet
	parse(full(), &p)
	parse(nlmsg(msgPacket, genmsg(0), packetHdr(0, 0)), &p)
	if diff := cmp.Diff(Packet{ID: 0x01020304}, p); diff != "" {
		t.Error(diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(full())
	f.Add(errorMsg(int32(unix.ENOENT), 1))
	f.Add(full()[:50])
	f.Add(append(full(), full()...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Packet
		for steps := len(b); len(b) > 0; steps-- {
			if steps < 0 {
				t.Fatal("parse does not advance")
			}
			whole := b
			var m message
			m, b = parse(b, &p)
			if len(b) >= len(whole) {
				t.Fatalf("%d of %d bytes left", len(b), len(whole))
			}
			if m.kind == malformedPacket && p.Payload != nil {
				t.Fatal("a malformed packet shows a payload")
			}
			if m.kind == packetMessage && int(p.Length) < len(p.Payload) {
				t.Fatalf("length %d, payload %d", p.Length, len(p.Payload))
			}
			if m.kind == packetMessage && cap(p.Payload) > cap(whole) {
				t.Fatal("payload reaches out of the message")
			}
			bytes.Count(p.Payload, []byte{0}) // touch every byte
		}
	})
}
