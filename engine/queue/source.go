package queue

import (
	"context"
	"time"
)

// Packet is one queued packet. It and everything it refers to is valid until
// Handle returns.
type Packet struct {
	// ID names the packet until it is answered. The kernel counts from 1 and
	// wraps after 2³² packets.
	ID uint32
	// Mark is the skb mark in host byte order, zero when none is set.
	Mark uint32
	// Length is the length in bytes of the packet at layer 3 before it was cut
	// to the copy range. A GSO packet counts as one and may exceed the MTU.
	Length uint32
	// InDev and OutDev are interface indexes, zero when the hook has none.
	InDev, OutDev uint32
	// Family is unix.AF_INET or unix.AF_INET6, or zero for anything else.
	Family uint8
	// Hook is the netfilter hook number (NF_INET_* in linux/netfilter.h) that
	// queued the packet.
	Hook uint8
	// Payload starts at the layer 3 header and is at most the copy range long.
	Payload []byte
}

// Action is what becomes of a packet. The zero Action drops it, and so does
// one that is not listed here.
type Action uint8

const (
	// Drop discards the packet (NF_DROP).
	Drop Action = iota
	// Accept lets the packet go on after the hook (NF_ACCEPT). Rules of the same
	// hook that come after the NFQUEUE rule do not see it.
	Accept
	// Repeat sends the packet through the same hook again (NF_REPEAT), with the
	// mark of the answer, so that rules can act on it.
	Repeat
	// Hold leaves the packet in the kernel until Release answers it. Its place in
	// the queue stays taken: whoever holds packets bounds their number.
	Hold

	actions = iota
)

func (a Action) String() string {
	switch a {
	case Accept:
		return "accept"
	case Repeat:
		return "repeat"
	case Hold:
		return "hold"
	}
	return "drop"
}

// Answer is what the kernel is told about one packet. The zero Answer drops it.
type Answer struct {
	Action Action
	// SetMark replaces the whole skb mark by Mark (host byte order). Whoever
	// owns only some bits of the mark copies the others from Packet.Mark.
	SetMark bool
	Mark    uint32
}

// Handler decides about packets. All its methods, also those of Waker and
// Ticker, are called on the one locked OS thread of the source.
type Handler interface {
	// Handle answers one packet. It must not block and must not keep p.
	Handle(p *Packet) Answer
	// BatchEnd is called after the answers to a batch of packets were written:
	// the place for work that no packet should wait for.
	BatchEnd()
}

// Waker is implemented by handlers that want to be called after Source.Wake.
type Waker interface {
	// OnWake is called once or more after each Wake; wakes that come in quick
	// succession may share one call.
	OnWake()
}

// Ticker is implemented by handlers with deadlines; see Config.Tick.
type Ticker interface {
	OnTick(now time.Time)
}

// Source is where an engine gets packets from: Queue is the kernel's, Memory
// stands in for it in tests.
type Source interface {
	// Run reads and answers packets until ctx ends or Close is called, then
	// returns nil; any other end is an error. When Run returns the source is
	// closed and no packet is left unanswered. It can be called once.
	Run(ctx context.Context, h Handler) error
	// Release answers a packet that is on hold. Only the handler may call it,
	// from within its methods. An Answer of Hold changes nothing.
	Release(id uint32, a Answer)
	// Wake makes Run call the handler's OnWake soon, whether packets arrive or
	// not. It may be called from any goroutine, at any time; it does not wait.
	Wake()
	// Stats may be called from any goroutine at any time.
	Stats() Stats
	// Close ends Run, waits for it and frees everything. It may be called more
	// than once, but not by the handler.
	Close() error
}

var (
	_ Source = (*Queue)(nil)
	_ Source = (*Memory)(nil)
)
