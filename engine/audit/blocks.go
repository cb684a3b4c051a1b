package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// blocks passes on a pcapng file block by block, when what a block says of its own
// size and of the packet in it is possible: gopacket's reader allocates, and skips,
// what it is told.
type blocks struct {
	r     io.Reader
	order binary.ByteOrder // of the section at hand
	snap  uint32           // of its first interface: bytes of a packet in a simple block; 0 no bound
	first bool             // that interface is yet to come
	block []byte
	left  []byte // of block, to be read
}

// Block types and sizes, draft-ietf-opsawg-pcapng sections 3.1 and 4.
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 2
	blockSimple    = 3
	blockStats     = 5
	blockEnhanced  = 6
	blockFrame     = 12 // type and two lengths
)

// least is the size in bytes of a block's fixed part.
func least(kind uint32) int {
	switch kind {
	case blockSection:
		return blockFrame + 16
	case blockInterface:
		return blockFrame + 8
	case blockSimple:
		return blockFrame + 4
	case blockStats:
		return blockFrame + 12
	case blockPacket, blockEnhanced:
		return blockFrame + 20
	}
	return blockFrame
}

// Read implements io.Reader.
func (b *blocks) Read(p []byte) (int, error) {
	if len(b.left) == 0 {
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.left)
	b.left = b.left[n:]
	return n, nil
}

func (b *blocks) next() error {
	var head [12]byte
	if _, err := io.ReadFull(b.r, head[:]); err != nil {
		return err // io.EOF between blocks is the end
	}
	if binary.LittleEndian.Uint32(head[:]) == blockSection { // the same in both orders
		if b.order = byteOrder(head[8:12]); b.order == nil {
			return errors.New("a section has no byte order")
		}
		b.first = true
	}
	if b.order == nil {
		return errors.New("the file does not start with a section")
	}
	kind, size := b.order.Uint32(head[:]), b.order.Uint32(head[4:])
	if size < uint32(least(kind)) || size > maxBlock || size%4 != 0 {
		return fmt.Errorf("a block of type %#x says that it has %d bytes", kind, size)
	}
	if cap(b.block) < int(size) {
		b.block = make([]byte, size)
	}
	b.block = b.block[:size]
	copy(b.block, head[:])
	if _, err := io.ReadFull(b.r, b.block[len(head):]); err != nil {
		return noEOF(err)
	}
	if err := b.check(kind); err != nil {
		return err
	}
	b.left = b.block
	return nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// byteOrder reads the byte-order magic of a section.
func byteOrder(magic []byte) binary.ByteOrder {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if order.Uint32(magic) == 0x1a2b3c4d {
			return order
		}
	}
	return nil
}

// check compares a block's lengths with each other.
func (b *blocks) check(kind uint32) error {
	end := b.block[len(b.block)-4:]
	if !bytes.Equal(end, b.block[4:8]) {
		return fmt.Errorf("a block of type %#x ends with another length than it starts with", kind)
	}
	var captured uint32
	switch kind {
	case blockInterface:
		if b.first {
			b.snap, b.first = b.order.Uint32(b.block[12:]), false
		}
	case blockSimple:
		if captured = b.order.Uint32(b.block[8:]); b.snap != 0 {
			captured = min(captured, b.snap)
		}
	case blockPacket, blockEnhanced:
		captured = b.order.Uint32(b.block[20:])
	}
	if room := len(b.block) - least(kind); int64(captured) > int64(room) {
		return fmt.Errorf("a packet of %d bytes is in a block with room for %d", captured, room)
	}
	return nil
}
