package audit

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/engine/packet"
)

// Begun is a flow that begins in a capture file.
type Begun struct {
	Number int           // of the packet that shows it, counted from 1
	Time   int64         // Unix nanoseconds
	Packet packet.Packet // with the ends that a policy would judge it by
}

// FileStats are about the packets of a capture file.
type FileStats struct {
	Packets   int
	Flows     int
	Older     int // TCP and SCTP connections that the file does not show the beginning of
	Malformed int // packets that cannot be decoded, fragments but the first among them
	NotIP     int
}

// fileFlows is how many flows of a file are remembered: 100 MiB at most.
const fileFlows = 1 << 18

// ReadFile calls found with the flows that begin in a capture file (pcap or pcapng,
// perhaps compressed by gzip), in the order of the packets that show them. An error
// of found ends it. Any other error names the packet; the flows before it have been
// found.
func ReadFile(r io.Reader, found func(Begun) error) (FileStats, error) {
	f := &file{looker: newLooker(), found: found}
	var err error
	if f.flows, err = newFlows(fileFlows, 0); err != nil {
		return f.stats, err
	}
	frames, err := openCapture(r)
	if err != nil {
		return f.stats, err
	}
	err = f.read(frames)
	f.stats.Older = f.flows.unborn
	return f.stats, err
}

// frames yields the packets of a capture file, or io.EOF.
type frames func() (data []byte, at time.Time, link layers.LinkType, err error)

// file reads one capture file.
type file struct {
	looker looker
	flows  *flows
	found  func(Begun) error
	stats  FileStats
	newest int64
	// inbound are packets that came in and have not gone out yet. Some never do:
	// they were for the host that was captured on, so they are judged as they are.
	inbound []numbered
}

type numbered struct {
	number int
	sight  sight
}

func (f *file) read(next frames) error {
	for {
		data, at, link, err := next()
		if errors.Is(err, io.EOF) {
			return f.arrive(math.MaxInt64)
		}
		f.stats.Packets++
		if err != nil {
			return fmt.Errorf("packet %d: %w", f.stats.Packets, err)
		}
		if err := f.frame(data, at.UnixNano(), link); err != nil {
			return err
		}
	}
}

func (f *file) frame(data []byte, at int64, link layers.LinkType) error {
	ip, way, ok := byLinkType(link, data)
	if !ok {
		f.stats.NotIP++
		return nil
	}
	n := numbered{number: f.stats.Packets}
	f.looker.look(ip, way, at, &n.sight)
	if n.sight.packet.State.Malformed() {
		f.stats.Malformed++
		return nil
	}
	f.newest = max(f.newest, at)
	if err := f.arrive(f.newest - int64(inTransit)); err != nil {
		return err
	}
	if way == WayIn {
		f.inbound = append(f.inbound, n)
	}
	return f.enter(&n)
}

// arrive judges what came in before a time and did not go out.
func (f *file) arrive(before int64) error {
	for len(f.inbound) > 0 && f.inbound[0].sight.at < before {
		n := f.inbound[0]
		f.inbound = f.inbound[1:]
		n.sight.way = WayUnknown
		if err := f.enter(&n); err != nil {
			return err
		}
	}
	return nil
}

func (f *file) enter(n *numbered) error {
	from, judge := f.flows.enter(&n.sight, 0)
	if !judge {
		return nil
	}
	f.stats.Flows++
	return f.found(Begun{n.number, n.sight.at, from.of(&n.sight)})
}

// linkSLL2 is LINKTYPE_LINUX_SLL2 (276), what tcpdump -i any writes, in the 8 bits
// that gopacket v1.1.19 keeps of it; no other link type has this number.
const linkSLL2 = layers.LinkType(276 & 0xff)

// byLinkType finds the IP packet in a frame of a capture file. The link types are
// those of https://www.tcpdump.org/linktypes.html.
func byLinkType(link layers.LinkType, data []byte) (ip []byte, way Way, ok bool) {
	switch link {
	case layers.LinkTypeEthernet:
		ip, ok = ethernet(data)
	case layers.LinkTypeRaw, layers.LinkTypeIPv4, layers.LinkTypeIPv6, 12, 14: // two systems' DLT_RAW
		ip, ok = bare(data)
	case layers.LinkTypeNull, layers.LinkTypeLoop:
		if len(data) > 4 {
			ip, ok = bare(data[4:])
		}
	case layers.LinkTypeLinuxSLL:
		if len(data) >= 16 {
			ip, ok = tagged(binary.BigEndian.Uint16(data[14:16]), data[16:])
			way = wayOf(binary.BigEndian.Uint16(data[0:2]))
		}
	case linkSLL2:
		if len(data) >= 20 {
			ip, ok = tagged(binary.BigEndian.Uint16(data[0:2]), data[20:])
			way = wayOf(uint16(data[10]))
		}
	}
	return ip, way, ok
}

// wayOf reads the packet type of a cooked capture (sll_pkttype, packet(7)).
func wayOf(pkttype uint16) Way {
	if pkttype == unix.PACKET_OUTGOING {
		return WayOut
	}
	return WayIn
}

// Bounds of capture files. Their readers allocate what the file says.
const (
	maxFrame = 1 << 20  // bytes of one packet; tcpdump's largest is 262144
	maxBlock = 16 << 20 // bytes of one pcapng block
)

// The first bytes of the formats.
var (
	magicGzip = []byte{0x1f, 0x8b}
	magicNG   = []byte{0x0a, 0x0d, 0x0d, 0x0a} // a section header block
)

func openCapture(r io.Reader) (frames, error) {
	b := bufio.NewReader(r)
	if start, _ := b.Peek(len(magicGzip)); bytes.Equal(start, magicGzip) {
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("decompress: %w", err)
		}
		b = bufio.NewReader(z)
	}
	start, err := b.Peek(len(magicNG))
	switch {
	case len(start) == 0 && errors.Is(err, io.EOF):
		return nil, errors.New("the file is empty")
	case len(start) < len(magicNG):
		return nil, fmt.Errorf("not a capture file: %w", err)
	case bytes.Equal(start, magicNG):
		return openNG(b)
	case bytes.Equal(start[:2], magicGzip):
		return nil, errors.New("not a capture file: compressed twice")
	}
	return openClassic(b)
}

func openClassic(r io.Reader) (frames, error) {
	p, err := pcapgo.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("not a pcap or pcapng file: %w", err)
	}
	if p.Snaplen() == 0 || p.Snaplen() > maxFrame {
		p.SetSnaplen(maxFrame) // some writers say 0 for "no limit"
	}
	return func() ([]byte, time.Time, layers.LinkType, error) {
		data, ci, err := p.ReadPacketData()
		return data, ci.Timestamp, p.LinkType(), cut(err)
	}, nil
}

func openNG(r io.Reader) (frames, error) {
	p, err := guarded(func() (*pcapgo.NgReader, error) {
		return pcapgo.NewNgReader(&blocks{r: r}, pcapgo.NgReaderOptions{WantMixedLinkType: true})
	})
	if err != nil {
		return nil, fmt.Errorf("not a usable pcapng file: %w", cut(err))
	}
	type read struct {
		data []byte
		ci   gopacket.CaptureInfo
	}
	return func() ([]byte, time.Time, layers.LinkType, error) {
		one, err := guarded(func() (read, error) {
			data, ci, err := p.ReadPacketData()
			return read{data, ci}, err
		})
		if err != nil {
			return nil, time.Time{}, 0, cut(err)
		}
		link, _ := one.ci.AncillaryData[0].(layers.LinkType)
		return one.data, one.ci.Timestamp, link, nil
	}, nil
}

// guarded turns a panic of gopacket's reader into an error: v1.1.19 trusts some
// numbers of the file.
func guarded[T any](read func() (T, error)) (result T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed: %v", p)
		}
	}()
	return read()
}

// cut says what an end in the middle of a packet means.
func cut(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the file ends in the middle of it (was the capture still being written?)")
	}
	return err
}
