package flow

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// batchLen is how many records a sink gets at once, at most.
	batchLen = 256
	// linger is how long the collector lets records gather after it has emptied
	// the rings: it bounds the wake-ups producers pay for to 200 a second, and
	// the delay of the log to something nobody sees.
	linger = 5 * time.Millisecond
	// tickEvery is how often a Ticker's Tick is called.
	tickEvery = time.Second
)

// Sink shows or forwards flow records. The collector calls it from one
// goroutine. A sink that blocks delays the others, then fills the rings; one
// that must wait for somebody keeps its own queue. Errors are the sink's to
// count and report: there is nobody on the packet path to hand them to.
type Sink interface {
	// Flows gets records of one ring, oldest first. The slice is the
	// collector's and changes after the call returns.
	Flows(records []Record)
	// Lost says that n records were lost since it was last told, before now.
	Lost(n uint64, now time.Time)
}

// Ticker is a Sink with something to do when time passes. Calls come from the
// collector's goroutine, as all others do.
type Ticker interface {
	// Tick is called every second, also while nothing comes.
	Tick(now time.Time)
	// Finish is called after everything else, when the collector is closed.
	Finish(now time.Time)
}

// Collector moves records from the workers' rings to the sinks.
type Collector struct {
	sinks   []Sink
	tickers []Ticker         // those of the sinks that are
	ticks   <-chan time.Time // nil without tickers
	wake    *waker

	mu    sync.Mutex
	rings []*Ring
	late  *Ring // nil until NewLateRing

	// Owned by the goroutine.
	batch    [batchLen]Record
	lostSeen uint64
	begun    begun // what workers allowed lately
	latest   [batchLen]Record
	lateEnd  uint64 // how much of the late ring is to be shown

	records atomic.Uint64
	stop    chan struct{}
	once    sync.Once
	abandon atomic.Bool // stop even though records are left
	done    chan struct{}
}

// NewCollector starts a collector that hands records to the sinks in the order
// given. Close stops it.
func NewCollector(sinks ...Sink) *Collector {
	c := &Collector{
		sinks:   sinks,
		wake:    newWaker(),
		lateEnd: math.MaxUint64,
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	for _, s := range sinks {
		if t, ok := s.(Ticker); ok {
			c.tickers = append(c.tickers, t)
		}
	}
	if len(c.tickers) > 0 {
		c.ticks = time.NewTicker(tickEvery).C // collected with the collector
	}
	go c.run()
	return c
}

// NewRing returns a ring of at least size records for one worker, drained until
// Close. At 120-odd bytes a record, 8192 of them are 1 MiB and carry a worker
// at 200,000 flows a second over a pause of 40 ms.
func (c *Collector) NewRing(size int) *Ring {
	r := newRing(size, c.wake)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rings = append(c.rings[:len(c.rings):len(c.rings)], r) // snapshots stay as they are
	return r
}

// NewLateRing returns the ring for connections that were allowed by the kernel
// alone, or by a worker before: a record that repeats one of a worker's ring is not
// shown. There is one such ring.
func (c *Collector) NewLateRing(size int) *Ring {
	r := newRing(size, c.wake)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late = r
	return r
}

// Stats are running totals, for metrics.
type Stats struct {
	Records uint64 // handed to the sinks
	Lost    uint64 // refused by full rings
}

// Stats may be called at any time from any goroutine.
func (c *Collector) Stats() Stats {
	return Stats{Records: c.records.Load(), Lost: c.lost()}
}

// Close hands what the rings still hold to the sinks and stops the collector.
// Call it after the workers have stopped: what is pushed meanwhile may stay
// behind. When ctx ends first, because a sink blocks, Close gives up and
// returns an error that says how many records were not shown. It may be called
// more than once.
func (c *Collector) Close(ctx context.Context) error {
	c.once.Do(func() { close(c.stop) })
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	c.abandon.Store(true)
	select {
	case <-c.done: // it may have finished at the same moment
		if c.waiting() == 0 {
			return nil
		}
	default:
	}
	return fmt.Errorf("close flow collector: %d records not handed to a sink that is too slow: %w", c.waiting(), ctx.Err())
}

func (c *Collector) run() {
	defer close(c.done)
	for c.sleep() {
		c.drain(nil)
		c.pause()
	}
	c.drain(c.heads())
	if c.abandon.Load() {
		return // nobody waits for it, and a sink is known to block
	}
	for _, t := range c.tickers {
		t.Finish(time.Now())
	}
}

// sleep waits until a ring has records; false means that Close was called.
func (c *Collector) sleep() bool {
	c.wake.asleep.Store(true)
	defer c.wake.asleep.Store(false)
	if c.waiting() > 0 || c.lost() != c.lostSeen {
		return !c.stopped()
	}
	select {
	case <-c.wake.c:
		return true
	case now := <-c.ticks:
		c.tick(now)
		return true
	case <-c.stop:
		return false
	}
}

func (c *Collector) tick(now time.Time) {
	for _, t := range c.tickers {
		t.Tick(now)
	}
}

// tickIfDue is for when there is no time to sleep.
func (c *Collector) tickIfDue() {
	select {
	case now := <-c.ticks:
		c.tick(now)
	default:
	}
}

// pause waits for linger or until Close is called.
func (c *Collector) pause() {
	select {
	case <-time.After(linger):
	case <-c.stop:
	}
}

// drain goes round the rings until they are empty. Before Close that ends as
// soon as Close is called, and until is nil. After Close, until bounds it: the
// records that each ring had accepted by then, so that a worker which goes on
// pushing cannot keep the process from ending.
func (c *Collector) drain(until []uint64) {
	for !c.abandon.Load() {
		moved := 0
		for i, r := range c.snapshot() {
			n := batchLen
			if until != nil {
				if i >= len(until) {
					break
				}
				n = int(min(until[i]-r.tail.Load(), batchLen))
			}
			moved += c.hand(r, n)
		}
		moved += c.handLate()
		c.reportLost()
		c.tickIfDue()
		if moved == 0 || (until == nil && c.stopped()) {
			return
		}
	}
}

// hand gives up to n records of r to the sinks and returns how many it gave.
func (c *Collector) hand(r *Ring, n int) int {
	n = r.Pop(c.batch[:n])
	if n == 0 {
		return 0
	}
	if c.lateRing() != nil {
		c.begun.note(c.batch[:n])
	}
	c.show(c.batch[:n])
	clear(c.batch[:n]) // let go of the trees the records refer to
	return n
}

func (c *Collector) show(records []Record) {
	if len(records) == 0 {
		return
	}
	for _, s := range c.sinks {
		s.Flows(records)
	}
	c.records.Add(uint64(len(records)))
}

// handLate shows those late records that repeat none of a worker's. A worker pushes
// its record before it answers, so when the kernel tells of the connection the
// record is in the worker's ring, or was: what the rings hold now is shown first.
func (c *Collector) handLate() int {
	late := c.lateRing()
	if late == nil || late.Len() == 0 {
		return 0
	}
	n := late.Pop(c.latest[:min(batchLen, c.lateEnd-late.tail.Load())])
	heads := c.heads()
	for i, r := range c.snapshot()[:len(heads)] {
		for tail := r.tail.Load(); tail < heads[i]; tail = r.tail.Load() {
			c.hand(r, int(min(heads[i]-tail, batchLen)))
		}
	}
	c.show(c.begun.unknown(c.latest[:n]))
	clear(c.latest[:n])
	return n
}

func (c *Collector) lateRing() *Ring {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.late
}

func (c *Collector) reportLost() {
	lost := c.lost()
	if lost == c.lostSeen {
		return
	}
	now := time.Now()
	for _, s := range c.sinks {
		s.Lost(lost-c.lostSeen, now)
	}
	c.lostSeen = lost
}

func (c *Collector) stopped() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

func (c *Collector) snapshot() []*Ring {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rings
}

// heads returns how many records each ring has accepted so far.
func (c *Collector) heads() []uint64 {
	heads := []uint64{}
	for _, r := range c.snapshot() {
		heads = append(heads, r.Accepted())
	}
	return heads
}

func (c *Collector) waiting() (n int) {
	for _, r := range c.all() {
		n += r.Len()
	}
	return n
}

func (c *Collector) lost() (n uint64) {
	for _, r := range c.all() {
		n += r.Lost()
	}
	return n
}

// all are the workers' rings and the late one.
func (c *Collector) all() []*Ring {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.late == nil {
		return c.rings
	}
	return append(c.rings[:len(c.rings):len(c.rings)], c.late)
}
