package audit

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

var captured = time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)

func info(data []byte, i int) gopacket.CaptureInfo {
	return gopacket.CaptureInfo{Timestamp: captured.Add(time.Duration(i) * time.Second), CaptureLength: len(data), Length: len(data)}
}

func pcap(tb testing.TB, link layers.LinkType, packets ...[]byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := pcapgo.NewWriterNanos(&out)
	if err := w.WriteFileHeader(262144, link); err != nil {
		tb.Fatal(err)
	}
	for i, p := range packets {
		if err := w.WritePacket(info(p, i), p); err != nil {
			tb.Fatal(err)
		}
	}
	return out.Bytes()
}

func pcapng(tb testing.TB, link layers.LinkType, packets ...[]byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	w, err := pcapgo.NewNgWriter(&out, link)
	if err != nil {
		tb.Fatal(err)
	}
	for i, p := range packets {
		if err := w.WritePacket(info(p, i), p); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func gzipped(tb testing.TB, b []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// cooked1 and cooked2 are the link headers of tcpdump -i any.
func cooked1(pkttype uint16, ip []byte) []byte {
	h := make([]byte, 16)
	binary.BigEndian.PutUint16(h, pkttype)
	binary.BigEndian.PutUint16(h[14:], etherType(ip))
	return append(h, ip...)
}

func cooked2(pkttype byte, ip []byte) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, etherType(ip))
	h[10] = pkttype
	return append(h, ip...)
}

func etherType(ip []byte) uint16 {
	if ip[0]>>4 == 6 {
		return 0x86dd
	}
	return 0x0800
}

func readAll(b []byte) (found []string, stats FileStats, err error) {
	stats, err = ReadFile(bytes.NewReader(b), func(b Begun) error {
		found = append(found, fmt.Sprintf("%d %v %v→%v:%d", b.Number, b.Packet.Protocol, b.Packet.Src, b.Packet.Dst, b.Packet.DstPort))
		return nil
	})
	return found, stats, err
}

// TestReadFile reads the same packets from each format and link type.
func TestReadFile(t *testing.T) {
	t.Parallel()
	syn := wire{src: pod4, dst: peer4, sp: 40000, dp: 80, seq: 1, flags: "S"}.tcp(t)
	ack := wire{src: peer4, dst: pod4, sp: 80, dp: 40000, seq: 1, flags: "SA"}.tcp(t)
	query := wire{src: pod6, dst: peer6, sp: 40000, dp: 53, payload: "query"}.udp(t)
	answer := wire{src: peer6, dst: pod6, sp: 53, dp: 40000, payload: "answer"}.udp(t)
	ping := wire{src: pod4, dst: peer4}.icmp(t, 8, 1)
	want := []string{"1 TCP 10.1.0.1→10.1.0.2:80", "3 UDP fd00:1::1→fd00:1::2:53", "5 ICMP 10.1.0.1→10.1.0.2:0"}
	each := func(link func([]byte) []byte) (all [][]byte) {
		for _, ip := range [][]byte{syn, ack, query, answer, ping} {
			all = append(all, link(ip))
		}
		return all
	}
	plain := func(ip []byte) []byte { return ip }
	ethernet := each(func(ip []byte) []byte { return framed(t, ip) })
	bsd := each(func(ip []byte) []byte { return append(make([]byte, 4), ip...) })
	sll2 := pcap(t, layers.LinkTypeEthernet, each(func(ip []byte) []byte { return cooked2(4, ip) })...)
	binary.LittleEndian.PutUint32(sll2[20:], 276)
	for name, file := range map[string][]byte{
		"pcap Ethernet":      pcap(t, layers.LinkTypeEthernet, ethernet...),
		"pcapng Ethernet":    pcapng(t, layers.LinkTypeEthernet, ethernet...),
		"gzip":               gzipped(t, pcap(t, layers.LinkTypeEthernet, ethernet...)),
		"gzip of pcapng":     gzipped(t, pcapng(t, layers.LinkTypeEthernet, ethernet...)),
		"VLAN":               pcap(t, layers.LinkTypeEthernet, each(func(ip []byte) []byte { return framed(t, ip, 5) })...),
		"QinQ":               pcap(t, layers.LinkTypeEthernet, each(func(ip []byte) []byte { return framed(t, ip, 5, 6) })...),
		"raw":                pcap(t, layers.LinkTypeRaw, each(plain)...),
		"raw of Linux":       pcap(t, 12, each(plain)...),
		"null":               pcap(t, layers.LinkTypeNull, bsd...),
		"loop":               pcap(t, layers.LinkTypeLoop, bsd...),
		"cooked":             pcap(t, layers.LinkTypeLinuxSLL, each(func(ip []byte) []byte { return cooked1(4, ip) })...),
		"cooked 2":           sll2,
		"cooked, inbound":    pcap(t, layers.LinkTypeLinuxSLL, each(func(ip []byte) []byte { return cooked1(0, ip) })...),
		"cooked 1 of pcapng": pcapng(t, layers.LinkTypeLinuxSLL, each(func(ip []byte) []byte { return cooked1(4, ip) })...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, stats, err := readAll(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("flows (-want +got):\n%s", diff)
			}
			if stats.Packets != 5 || stats.Flows != 3 || stats.Older+stats.Malformed+stats.NotIP != 0 {
				t.Errorf("%+v", stats)
			}
		})
	}
}

// TestReadFileOfANode: a cooked capture is judged behind DNAT and before SNAT.
func TestReadFileOfANode(t *testing.T) {
	t.Parallel()
	syn := wire{src: pod4, dst: vip4, sp: 40000, dp: 80, seq: 7, flags: "S"}
	sent := syn
	sent.src, sent.dst, sent.sp, sent.dp = node4, peer4, 1024, 8080
	toNode := wire{src: pod4, dst: node4, sp: 40001, dp: 10250, seq: 9, flags: "S"}
	got, _, err := readAll(pcap(t, layers.LinkTypeLinuxSLL, cooked1(0, syn.tcp(t)), cooked1(4, sent.tcp(t)), cooked1(0, toNode.tcp(t))))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"2 TCP 10.1.0.1→10.1.0.2:8080", "3 TCP 10.1.0.1→192.168.0.1:10250"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
}

// TestReadFileCounts what it does not judge.
func TestReadFileCounts(t *testing.T) {
	t.Parallel()
	arp := make([]byte, 42)
	arp[12], arp[13] = 8, 6
	fragment := wire{src: pod4, dst: peer4}.udp(t)
	fragment[7] = 1
	data := wire{src: pod4, dst: peer4, sp: 1, dp: 2, flags: "A"}.tcp(t)
	got, stats, err := readAll(pcap(t, layers.LinkTypeEthernet, arp, framed(t, fragment), framed(t, data), framed(t, data), []byte{1}))
	if want := (FileStats{Packets: 5, Older: 1, Malformed: 1, NotIP: 2}); err != nil || stats != want || len(got) != 0 {
		t.Errorf("%v %+v %v, want %+v", got, stats, err, want)
	}
}

// TestReadFileErrors name the packet, after the flows before it.
func TestReadFileErrors(t *testing.T) {
	t.Parallel()
	syn := framed(t, wire{src: pod4, dst: peer4, sp: 40000, dp: 80, seq: 1, flags: "S"}.tcp(t))
	next := framed(t, wire{src: pod4, dst: peer4, sp: 40001, dp: 80, seq: 2, flags: "S"}.tcp(t))
	classic, ng := pcap(t, layers.LinkTypeEthernet, syn, next), pcapng(t, layers.LinkTypeEthernet, syn, next)
	huge := bytes.Clone(classic)
	binary.LittleEndian.PutUint32(huge[len(classic)-len(next)-8:], 1<<31)
	liar := bytes.Clone(ng)
	binary.LittleEndian.PutUint32(liar[len(liar)-(len(next)+2+4+8)-4:], 1<<30)
	for _, c := range []struct {
		name  string
		file  []byte
		flows int
		want  string
	}{
		{"empty", nil, 0, "the file is empty"},
		{"short", []byte{0xd4}, 0, "not a capture file"},
		{"text", []byte("source,destination\n"), 0, "not a pcap or pcapng file"},
		{"header only", classic[:20], 0, "not a pcap or pcapng file"},
		{"cut in a packet", classic[:len(classic)-3], 1, "packet 2: the file ends in the middle of it"},
		{"cut in a header", classic[:len(classic)-len(next)-3], 1, "packet 2: the file ends in the middle of it"},
		{"pcapng cut", ng[:len(ng)-3], 1, "packet 2: the file ends in the middle of it"},
		{"a packet of 2 GiB", huge, 1, "packet 2: capture length exceeds"},
		{"gzip cut", gzipped(t, classic)[:60], 0, "packet"},
		{"bad gzip", []byte{0x1f, 0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0, "decompress"},
		{"gzip of gzip", gzipped(t, gzipped(t, classic)), 0, "compressed twice"},
		{"pcapng without a byte order", append(bytes.Clone(magicNG), make([]byte, 28)...), 0, "has no byte order"},
	} {
		got, _, err := readAll(c.file)
		if err == nil || !strings.Contains(err.Error(), c.want) || len(got) > c.flows {
			t.Errorf("%s: %v, %v; want %q after %d flows at most", c.name, got, err, c.want, c.flows)
		}
	}
	if _, _, err := readAll(liar); err != nil && !strings.Contains(err.Error(), "packet") {
		t.Errorf("a block that lies: %v", err)
	}
}

// TestFoundEndsReading with its own error.
func TestFoundEndsReading(t *testing.T) {
	t.Parallel()
	syn := framed(t, wire{src: pod4, dst: peer4, flags: "S"}.tcp(t))
	_, err := ReadFile(bytes.NewReader(pcap(t, layers.LinkTypeEthernet, syn)), func(Begun) error { return io.ErrClosedPipe })
	if err == nil || err.Error() != io.ErrClosedPipe.Error() {
		t.Errorf("%v, want %v", err, io.ErrClosedPipe)
	}
}

// FuzzReadFile: whatever a file says, reading it ends, without a panic.
func FuzzReadFile(f *testing.F) {
	syn := framed(f, wire{src: pod4, dst: peer4, sp: 40000, dp: 80, seq: 1, flags: "S"}.tcp(f))
	query := framed(f, wire{src: pod6, dst: peer6, sp: 40000, dp: 53, payload: "query"}.udp(f), 5)
	for _, file := range [][]byte{
		pcap(f, layers.LinkTypeEthernet, syn, query), pcapng(f, layers.LinkTypeEthernet, syn, query),
		pcap(f, layers.LinkTypeLinuxSLL, cooked1(4, syn[14:])), gzipped(f, pcap(f, layers.LinkTypeRaw, query[18:])),
	} {
		f.Add(file)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		if len(file) > 1<<16 {
			t.Skip("long files take long and show nothing new")
		}
		found, stats, _ := readAll(file)
		if len(found) != stats.Flows || stats.Flows > stats.Packets {
			t.Errorf("%d flows found, %+v", len(found), stats)
		}
	})
}
