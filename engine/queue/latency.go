package queue

import (
	"math"
	"sync/atomic"
	"time"
)

// Latency is a histogram of how long packets waited for their answer in user space:
// from the moment their batch was read until its answers were written. All packets
// of a batch count as the last one, and one batch in eight is timed. The time before, in the kernel's queue, is not
// in it, nor what packets on hold wait.
type Latency struct {
	// Counts are packets up to each of LatencyBounds and over the one before; the
	// last are those over all bounds.
	Counts [len(LatencyBounds) + 1]uint64
	// Native are packets by bucket of a Prometheus native histogram of seconds with
	// schema LatencySchema: bucket i ends at 2^(i/8). It has every packet that Counts
	// has, and perhaps some that came since.
	Native map[int]int64
	Sum    time.Duration
}

// LatencyBounds are the upper bounds of Latency.Counts.
var LatencyBounds = [...]time.Duration{
	10 * time.Microsecond, 25 * time.Microsecond, 50 * time.Microsecond,
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, time.Second,
}

// LatencySchema divides each power of two into eight buckets.
const LatencySchema = 3

const perOctave = 1 << LatencySchema

// octaves are the powers of two of seconds that have buckets: from 2^-24 s, 60 ns,
// less than one system call takes, to 2^10 s.
const (
	firstOctave = -24
	octaves     = 34
)

// octaveBounds divide [0.5, 1), the fractions that math.Frexp returns.
var octaveBounds = func() (b [perOctave]float64) {
	for i := range b {
		b[i] = math.Exp2(float64(i)/perOctave - 1)
	}
	return b
}()

// timedBatches is how many batches there are for one that is timed: two looks at the
// clock cost as much as judging two packets, and under little load a batch is one.
const timedBatches = 8

// latencies is Latency while it is counted: by one thread, read by anyone.
type latencies struct {
	counts [len(LatencyBounds) + 1]atomic.Uint64
	native [octaves * perOctave]atomic.Uint64
	sum    atomic.Int64 // nanoseconds
}

// observe counts n packets that were answered after d.
func (l *latencies) observe(d time.Duration, n uint64) {
	at := 0
	for at < len(LatencyBounds) && d > LatencyBounds[at] {
		at++
	}
	l.native[nativeSlot(d)].Add(n) // first, and read last: it is never behind
	l.counts[at].Add(n)
	l.sum.Add(int64(d) * int64(n))
}

// nativeSlot is the bucket of a duration, numbered from the first that there is.
func nativeSlot(d time.Duration) int {
	frac, exp := math.Frexp(max(d, 1).Seconds())
	at := 0
	for at < perOctave && octaveBounds[at] < frac {
		at++
	}
	slot := (exp-1-firstOctave)*perOctave + at
	return min(max(slot, 0), octaves*perOctave-1)
}

func (l *latencies) stats() Latency {
	s := Latency{Native: map[int]int64{}, Sum: time.Duration(l.sum.Load())}
	for i := range l.counts {
		s.Counts[i] = l.counts[i].Load()
	}
	for i := range l.native {
		if n := l.native[i].Load(); n > 0 {
			s.Native[firstOctave*perOctave+i] = int64(n)
		}
	}
	return s
}
