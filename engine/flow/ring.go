package flow

import (
	"math/bits"
	"sync/atomic"

	"golang.org/x/sys/cpu"
)

// Ring is a bounded queue of records between one producer (a worker) and one
// consumer (the Collector). The producer never waits: into a full ring nothing
// goes, and the loss is counted. Every record offered is either delivered once,
// in order, or counted as lost.
type Ring struct {
	slots []Record // a power of two of them
	mask  uint64
	wake  *waker // may be nil

	_ cpu.CacheLinePad // the producer's line
	// head counts the records ever accepted; slot head&mask is the next to fill.
	head atomic.Uint64
	// tailSeen is the producer's last look at tail: it reads the consumer's cache
	// line only when the ring seems full.
	tailSeen uint64
	lost     atomic.Uint64

	_ cpu.CacheLinePad // the consumer's line
	// tail counts the records ever consumed.
	tail atomic.Uint64
	_    cpu.CacheLinePad
}

// NewRing returns a ring of at least size records, rounded up to a power of
// two. Rings that a Collector drains come from Collector.NewRing.
func NewRing(size int) *Ring { return newRing(size, nil) }

func newRing(size int, w *waker) *Ring {
	n := uint64(1) << bits.Len64(uint64(max(size, 1)-1))
	return &Ring{slots: make([]Record, n), mask: n - 1, wake: w}
}

// Push offers a copy of rec and reports whether it was accepted. Only one
// goroutine may push.
func (r *Ring) Push(rec *Record) bool {
	slot := r.Reserve()
	if slot == nil {
		return false
	}
	*slot = *rec
	r.Publish()
	return true
}

// Reserve returns the place of the next record, zero, to be filled in and then
// published; that spares the packet path a copy. It is nil if the ring is full, and
// that record is lost. Only the goroutine that pushes may reserve.
func (r *Ring) Reserve() *Record {
	head := r.head.Load()
	if head-r.tailSeen == uint64(len(r.slots)) {
		r.tailSeen = r.tail.Load()
		if head-r.tailSeen == uint64(len(r.slots)) {
			r.lost.Add(1)
			return nil
		}
	}
	return &r.slots[head&r.mask]
}

// Publish hands over the record that was reserved last.
func (r *Ring) Publish() {
	r.head.Store(r.head.Load() + 1)
	r.wake.notify()
}

// Lose counts n records that the producer itself has lost.
func (r *Ring) Lose(n uint64) {
	r.lost.Add(n)
	r.wake.notify()
}

// Pop moves up to len(dst) of the oldest records to dst and returns how many.
// Only one goroutine may pop.
func (r *Ring) Pop(dst []Record) int {
	tail := r.tail.Load()
	n := min(r.head.Load()-tail, uint64(len(dst)))
	for i := range n {
		slot := &r.slots[(tail+i)&r.mask]
		dst[i] = *slot
		*slot = Record{} // a quiet ring must not keep an old tree alive
	}
	r.tail.Store(tail + n)
	return int(n)
}

// Len returns how many records wait in the ring.
func (r *Ring) Len() int {
	tail := r.tail.Load() // before head, which only grows: never negative
	return int(r.head.Load() - tail)
}

// Cap returns how many records fit in the ring.
func (r *Ring) Cap() int { return len(r.slots) }

// Accepted returns how many records were ever accepted.
func (r *Ring) Accepted() uint64 { return r.head.Load() }

// Lost returns how many records were ever refused because the ring was full.
func (r *Ring) Lost() uint64 { return r.lost.Load() }

// waker lets producers wake the collector. While it is awake, the usual case
// under load, that costs them one load of a cache line nobody writes.
type waker struct {
	asleep atomic.Bool
	c      chan struct{} // capacity 1
}

func newWaker() *waker { return &waker{c: make(chan struct{}, 1)} }

// notify wakes the collector if it sleeps. It never blocks.
//
// No wake-up is lost: the producer stores head and then loads asleep, the
// collector stores asleep and then loads head, and Go's atomics are
// sequentially consistent, so at least one of them sees the other's store.
func (w *waker) notify() {
	if w == nil || !w.asleep.Load() || !w.asleep.CompareAndSwap(true, false) {
		return
	}
	select {
	case w.c <- struct{}{}:
	default:
	}
}
