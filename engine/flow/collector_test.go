package flow

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// memory is a sink that remembers.
type memory struct {
	mu      sync.Mutex
	records []Record
	lost    uint64
	block   chan struct{} // when set, Flows waits for it
}

func (m *memory) Flows(records []Record) {
	if m.block != nil {
		<-m.block
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records = append(m.records, records...)
}

func (m *memory) Lost(n uint64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost += n
}

func (m *memory) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.records)
}

func closeCollector(t *testing.T, c *Collector) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		t.Error(err)
	}
}

// eventually waits for something another goroutine is about to do.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestCollectorAccounting has several workers push flat out into small rings:
// shown + lost == offered, each worker's records in order, and both sinks agree.
func TestCollectorAccounting(t *testing.T) {
	const workers, offered = 3, 40_000
	first, second := &memory{}, &memory{}
	c := NewCollector(first, second)
	var wg sync.WaitGroup
	for w := range workers {
		r := c.NewRing(128)
		wg.Go(func() {
			for i := range int64(offered) {
				r.Push(&Record{Revision: uint64(w), Time: i + 1})
				if i%61 == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	wg.Wait()
	closeCollector(t, c)
	for _, m := range []*memory{first, second} {
		if got := uint64(len(m.records)) + m.lost; got != workers*offered {
			t.Errorf("%d shown + %d lost = %d, offered %d", len(m.records), m.lost, got, workers*offered)
		}
		var last [workers]int64
		for _, rec := range m.records {
			if rec.Time <= last[rec.Revision] {
				t.Fatalf("worker %d: record %d after %d", rec.Revision, rec.Time, last[rec.Revision])
			}
			last[rec.Revision] = rec.Time
		}
	}
	if s := c.Stats(); s.Records != uint64(len(first.records)) || s.Lost != first.lost {
		t.Errorf("stats %+v, sink has %d records and %d lost", s, len(first.records), first.lost)
	}
}

// TestCollectorWakes checks that a record pushed to a sleeping collector is
// shown, again and again: a lost wake-up would hang here.
func TestCollectorWakes(t *testing.T) {
	m := &memory{}
	c := NewCollector(m)
	defer closeCollector(t, c)
	r := c.NewRing(4)
	for i := range 20 {
		eventually(t, "the collector to sleep", c.wake.asleep.Load)
		r.Push(&Record{})
		eventually(t, "the record to be shown", func() bool { return m.len() == i+1 })
	}
	late := c.NewRing(4) // made while the collector sleeps
	eventually(t, "the collector to sleep", c.wake.asleep.Load)
	late.Push(&Record{})
	eventually(t, "a late ring's record", func() bool { return m.len() == 21 })
}

// TestBlockedSink: a sink that blocks costs records, never the producer's time,
// and does not keep Close from returning.
func TestBlockedSink(t *testing.T) {
	m := &memory{block: make(chan struct{})}
	c := NewCollector(m)
	r := c.NewRing(8)
	r.Push(&Record{Time: 1})
	eventually(t, "the sink to block", func() bool { return r.Len() == 0 })
	for i := range int64(100) { // hangs here if Push waits
		r.Push(&Record{Time: 2 + i})
	}
	if r.Lost() != 92 {
		t.Errorf("%d lost, want 92", r.Lost())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	err := c.Close(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "8 records") {
		t.Errorf("Close of a blocked collector: %v, want a timeout that names 8 records", err)
	}
	close(m.block)
	<-c.done // the goroutine ends once the sink returns, without showing the rest
	if len(m.records) != 1 {
		t.Errorf("%d records shown, want the one the sink was blocked on", len(m.records))
	}
}

// TestCloseDrains: everything accepted before Close is shown, and the losses
// are reported.
func TestCloseDrains(t *testing.T) {
	m := &memory{}
	c := NewCollector(m)
	r := c.NewRing(1024)
	for range 3000 {
		r.Push(&Record{Revision: 1})
	}
	closeCollector(t, c)
	closeCollector(t, c) // twice is fine
	if c.batch != [batchLen]Record{} {
		t.Error("the collector still refers to records it has handed on")
	}
	if uint64(len(m.records)) != r.Accepted() || m.lost != r.Lost() || len(m.records)+int(m.lost) != 3000 {
		t.Errorf("shown %d of %d, lost %d of %d", len(m.records), r.Accepted(), m.lost, r.Lost())
	}
}

// echo is a sink that makes a new record of each it is given, so that its ring
// never runs empty.
type echo struct {
	ring  *Ring
	calls atomic.Uint64
}

func (e *echo) Flows([]Record) {
	e.calls.Add(1)
	e.ring.Push(&Record{})
}
func (e *echo) Lost(uint64, time.Time) {}

// TestCloseWhilePushing: a producer that never stops cannot keep Close waiting.
func TestCloseWhilePushing(t *testing.T) {
	e := &echo{}
	c := NewCollector(e)
	e.ring = c.NewRing(64)
	e.ring.Push(&Record{})
	eventually(t, "the ring to be kept busy", func() bool { return e.calls.Load() > 100 })
	closeCollector(t, c)
	if e.ring.Len() != 1 {
		t.Errorf("%d records left, want the last echo", e.ring.Len())
	}
}

// ticking is a sink that counts its ticks.
type ticking struct {
	memory
	ticks, finished atomic.Uint64
}

func (s *ticking) Tick(time.Time)   { s.ticks.Add(1) }
func (s *ticking) Finish(time.Time) { s.finished.Add(1) }

// TestTicks: a Ticker is called while nothing comes, while the rings never run
// empty, and at the end.
func TestTicks(t *testing.T) {
	idle := &ticking{}
	c := NewCollector(idle)
	eventually(t, "a tick in an idle collector", func() bool { return idle.ticks.Load() > 0 })
	closeCollector(t, c)
	if n := idle.finished.Load(); n != 1 {
		t.Errorf("finished %d times", n)
	}
	busy, e := &ticking{}, &echo{}
	c = NewCollector(e, busy)
	e.ring = c.NewRing(64)
	e.ring.Push(&Record{})
	eventually(t, "a tick in a busy collector", func() bool { return busy.ticks.Load() > 0 })
	closeCollector(t, c)
}
