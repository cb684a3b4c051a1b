package engine

import (
	"sync/atomic"

	"github.com/netverdict/netverdict/policy"
)

const (
	reasons    = int(policy.ReasonMalformed) + 1
	verdicts   = int(policy.Audit) + 1
	directions = 2
)

// counters are written by one worker and read by anybody.
type counters struct {
	decisions [directions][reasons][verdicts]atomic.Uint64
	hits      atomic.Uint64 // flow cache
	misses    atomic.Uint64
	heldNow   atomic.Int64
	held      atomic.Uint64
	expired   atomic.Uint64 // held packets that were decided by their deadline
}

func (c *counters) decided(d *policy.Decision) {
	o := d.Outcome()
	c.decisions[d.Direction][o.Reason][d.Reported()].Add(1)
}

// Decisions counts decisions with one direction, reason and reported verdict:
// what was audited is not counted as allowed.
type Decisions struct {
	Direction policy.Direction
	Reason    policy.Reason
	Verdict   policy.Verdict
	Count     uint64
}

// Stats are running totals over all workers since the engine started.
type Stats struct {
	// Decisions that occurred, by direction, reason and verdict.
	Decisions []Decisions
	// CacheHits and CacheMisses of the flow cache.
	CacheHits, CacheMisses uint64
	// HeldNow is how many packets wait for their pod to become known; Held how
	// many ever did; HoldExpired how many were decided without it.
	HeldNow           int64
	Held, HoldExpired uint64
	// Epoch is in the marks of the verdicts that are given now: it changes, and
	// comes round, with every replacement of the rules.
	Epoch uint32
	// Repairs counts the times that somebody else had changed the rules and they were
	// put back.
	Repairs uint64
	// Sweeps is what was done about live connections.
	Sweeps Sweeps
}

// Decided returns how many decisions had a reported verdict.
func (s Stats) Decided(v policy.Verdict) (n uint64) {
	for _, d := range s.Decisions {
		if d.Verdict == v {
			n += d.Count
		}
	}
	return n
}

// Stats may be called at any time from any goroutine.
func (e *Engine) Stats() Stats {
	c := &e.sweeper.counts
	s := Stats{Sweeps: Sweeps{Seen: c.seen.Load(), Cut: c.cut.Load(), Freed: c.freed.Load()}, Repairs: e.repairs.Load()}
	for _, d := range policy.Directions {
		for r := range reasons {
			for v := range verdicts {
				if n := e.count(d, r, v); n > 0 {
					s.Decisions = append(s.Decisions, Decisions{d, policy.Reason(r), policy.Verdict(v), n})
				}
			}
		}
	}
	for _, w := range e.workers {
		s.CacheHits += w.counters.hits.Load()
		s.CacheMisses += w.counters.misses.Load()
		s.HeldNow += w.counters.heldNow.Load()
		s.Held += w.counters.held.Load()
		s.HoldExpired += w.counters.expired.Load()
	}
	if by := e.by.Load(); by != nil {
		s.Epoch = by.epoch
	}
	return s
}

func (e *Engine) count(d policy.Direction, reason, verdict int) (n uint64) {
	for _, w := range e.workers {
		n += w.counters.decisions[d][reason][verdict].Load()
	}
	return n
}
