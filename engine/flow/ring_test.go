package flow

import (
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"github.com/netverdict/netverdict/policy"
)

func TestRingSizes(t *testing.T) {
	for size, want := range map[int]int{-1: 1, 0: 1, 1: 1, 2: 2, 3: 4, 4: 4, 1000: 1024, 8192: 8192} {
		if got := NewRing(size).Cap(); got != want {
			t.Errorf("NewRing(%d) holds %d records, want %d", size, got, want)
		}
	}
	// Collector.NewRing tells people how much memory a ring takes.
	if size := unsafe.Sizeof(Record{}); size > 128 {
		t.Errorf("a Record takes %d bytes, documented as 120-odd", size)
	}
}

func TestRingFillsAndWraps(t *testing.T) {
	r := NewRing(4)
	var dst [8]Record
	next, popped := int64(0), int64(0)
	for round := range 5 {
		for i := range 6 {
			if ok := r.Push(&Record{Time: next}); ok != (i < 4) {
				t.Fatalf("round %d: push %d accepted: %v", round, i, ok)
			} else if ok {
				next++
			}
		}
		if r.Len() != 4 || r.Pop(dst[:3]) != 3 || r.Pop(dst[3:]) != 1 || r.Pop(dst[:]) != 0 || r.Len() != 0 {
			t.Fatalf("round %d: a full ring of 4 did not pop 3, then 1, then none", round)
		}
		for _, rec := range dst[:4] {
			if rec.Time != popped {
				t.Fatalf("round %d: popped record %d, want %d", round, rec.Time, popped)
			}
			popped++
		}
	}
	if r.Lost() != 10 || r.Accepted() != 20 {
		t.Errorf("lost %d and accepted %d, want 10 and 20", r.Lost(), r.Accepted())
	}
}

// TestRingUsesEverySlot: one free slot is enough for one record.
func TestRingUsesEverySlot(t *testing.T) {
	r := NewRing(4)
	for range 5 {
		r.Push(&Record{})
	}
	var dst [1]Record
	if r.Pop(dst[:]); !r.Push(&Record{}) || r.Push(&Record{}) || r.Len() != 4 {
		t.Errorf("a ring with one free slot did not take exactly one record; it holds %d", r.Len())
	}
}

// TestRingLetsGo: a popped record's pointers must not stay in the ring, or an
// idle worker would keep a whole old tree in memory.
func TestRingLetsGo(t *testing.T) {
	r := NewRing(2)
	r.Push(&Record{Names: podNames{}, Decision: policy.Decision{Egress: &policy.Outcome{}}})
	var dst [1]Record
	r.Pop(dst[:])
	if dst[0].Names == nil || r.slots[0] != (Record{}) {
		t.Errorf("after Pop the slot holds %+v", r.slots[0])
	}
}

// TestRingConcurrent runs one producer and one consumer flat out: every record
// offered comes out once and in order, or is counted as lost.
func TestRingConcurrent(t *testing.T) {
	const offered = 300_000
	r := NewRing(64)
	var wg sync.WaitGroup
	done := make(chan struct{})
	accepted := 0
	wg.Go(func() {
		defer close(done)
		for i := range int64(offered) {
			if r.Push(&Record{Time: i + 1, Revision: uint64(i + 1)}) {
				accepted++
			}
			if i%97 == 0 {
				runtime.Gosched()
			}
		}
	})
	got, last := 0, int64(0)
	var dst [50]Record
	for finished := false; ; {
		n := r.Pop(dst[:])
		for _, rec := range dst[:n] {
			if rec.Time <= last || rec.Revision != uint64(rec.Time) {
				t.Fatalf("record %d/%d came after %d: out of order or torn", rec.Time, rec.Revision, last)
			}
			last = rec.Time
		}
		got += n
		if n == 0 && finished {
			break
		}
		select {
		case <-done:
			finished = true
		default:
			runtime.Gosched()
		}
	}
	wg.Wait()
	if got != accepted || uint64(got) != r.Accepted() || uint64(got)+r.Lost() != offered {
		t.Errorf("popped %d, push accepted %d, counted %d accepted and %d lost of %d", got, accepted, r.Accepted(), r.Lost(), offered)
	}
	if got == 0 {
		t.Error("nothing came through")
	}
}

func TestPushAllocs(t *testing.T) {
	c := NewCollector(&memory{})
	defer closeCollector(t, c)
	rec := Record{Src: netip.MustParseAddr("10.0.0.1"), Names: podNames{}}
	for name, r := range map[string]*Ring{"alone": NewRing(8), "collected": c.NewRing(8)} {
		if n := testing.AllocsPerRun(1000, func() { r.Push(&rec) }); n != 0 {
			t.Errorf("%s: Push allocates %v times", name, n)
		}
		if r.Accepted() == 0 || name == "alone" && r.Lost() == 0 {
			t.Errorf("%s: the test must have seen both outcomes of Push", name)
		}
	}
}

func BenchmarkPush(b *testing.B) {
	r := NewRing(1024)
	var dst [1024]Record
	rec, accepted := Record{Revision: 1}, 0
	b.ReportAllocs()
	for b.Loop() {
		if r.Push(&rec) {
			accepted++
		} else {
			r.Pop(dst[:])
		}
	}
	if uint64(accepted) != r.Accepted() {
		b.Fatalf("%d accepted, %d counted", accepted, r.Accepted())
	}
}
