package audit

import (
	"sync/atomic"

	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/policy"
)

const (
	reasons  = int(policy.ReasonMalformed) + 1
	verdicts = int(policy.Audit) + 1
)

// counters are written by one goroutine and read by anybody.
type counters struct {
	decisions [len(policy.Directions)][reasons][verdicts]atomic.Uint64
	malformed atomic.Uint64
	notIP     atomic.Uint64
	held      atomic.Uint64
	heldNow   atomic.Int64
	expired   atomic.Uint64
}

func (c *counters) decided(d *policy.Decision) {
	c.decisions[d.Direction][d.Outcome().Reason][d.Reported()].Add(1)
}

// Stats are running totals since the audit started.
type Stats struct {
	Copied        uint64 // copies of packets that the filter let pass
	KernelDropped uint64 // copies that found the socket's buffer full
	Malformed     uint64 // copies that cannot be decoded; they are not judged
	NotIP         uint64
}

// Stats counts decisions as an engine does: none is a denial, what would be is
// Audit. It may be called at any time from any goroutine.
func (a *Auditor) Stats() engine.Stats {
	s := engine.Stats{
		HeldNow: a.counters.heldNow.Load(), Held: a.counters.held.Load(), HoldExpired: a.counters.expired.Load(),
	}
	for _, d := range policy.Directions {
		for r := range reasons {
			for v := range verdicts {
				if n := a.counters.decisions[d][r][v].Load(); n > 0 {
					s.Decisions = append(s.Decisions, engine.Decisions{
						Direction: d, Reason: policy.Reason(r), Verdict: policy.Verdict(v), Count: n,
					})
				}
			}
		}
	}
	return s
}

// Copies counts packets. It may be called at any time from any goroutine.
func (a *Auditor) Copies() Stats {
	return Stats{
		Copied: a.cfg.Socket.copied.Load(), KernelDropped: a.cfg.Socket.dropped.Load(),
		Malformed: a.counters.malformed.Load(), NotIP: a.counters.notIP.Load(),
	}
}
