package flow

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/netverdict/netverdict/policy"
)

// begins is the record of an allowed connection, told apart by its source port.
func begins(port uint16, time int64) Record {
	return Record{
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), SrcPort: port, DstPort: 80,
		Protocol: policy.TCP, Time: time, Decision: policy.Decision{Verdict: policy.Allow},
	}
}

func TestBegun(t *testing.T) {
	var b begun
	known := func(r Record) bool { return len(b.unknown([]Record{r})) == 0 }
	denied := begins(3, 1)
	denied.Decision.Verdict = policy.Deny
	b.note([]Record{begins(1, 1), begins(2, 1), begins(2, 1), denied})
	for i, want := range []struct {
		port  uint16
		known bool
	}{{1, true}, {1, false}, {2, true}, {2, true}, {2, false}, {3, false}} {
		if got := known(begins(want.port, 2)); got != want.known {
			t.Errorf("%d: port %d known: %t", i, want.port, got)
		}
	}
	b.note([]Record{begins(4, 10)})
	b.note([]Record{begins(5, 10+begunTime+1)})
	if !known(begins(4, 0)) {
		t.Error("forgotten after one turn")
	}
	b.note([]Record{begins(6, 10)})
	b.note([]Record{begins(7, 10+2*begunTime+2)})
	b.note([]Record{begins(8, 10+3*begunTime+3)})
	if known(begins(6, 0)) {
		t.Error("remembered after two turns")
	}
	for i := range 5 * begunLen {
		b.note([]Record{begins(uint16(i), int64(i>>16))})
		if len(b.recent)+len(b.older) > 2*begunLen {
			t.Fatalf("%d connections remembered", len(b.recent)+len(b.older))
		}
	}
}

// TestLateRing: of connections that both a worker and the kernel tell of, each is
// shown once, whatever the timing, and of the others each is shown as well.
func TestLateRing(t *testing.T) {
	const connections = 20_000
	m := &memory{}
	c := NewCollector(m)
	worker, late := c.NewRing(256), c.NewLateRing(256)
	told := make(chan Record, 64)
	lost := map[uint16]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(told)
		for i := range connections {
			r := begins(uint16(i), 1)
			if i%3 != 0 && !worker.Push(&r) { // as a worker does, before its verdict
				lost[r.SrcPort] = true
			}
			told <- r
		}
	})
	wg.Go(func() {
		for r := range told {
			for !late.Push(&r) { // the test wants them all
				continue
			}
		}
	})
	wg.Wait()
	closeCollector(t, c)
	seen := map[uint16]int{}
	for _, r := range m.records {
		seen[r.SrcPort]++
	}
	for i := range connections {
		if n := seen[uint16(i)]; n != 1 {
			t.Fatalf("connection %d is shown %d times (its record was lost: %t)", i, n, lost[uint16(i)])
		}
	}
}

// TestLose: what a producer lost before the ring is reported like what the ring
// had no room for.
func TestLose(t *testing.T) {
	m := &memory{}
	c := NewCollector(m)
	c.NewLateRing(8).Lose(3)
	eventually(t, "the loss to be reported", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.lost == 3
	})
	closeCollector(t, c)
}
