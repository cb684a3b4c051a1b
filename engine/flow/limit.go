package flow

import (
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/netverdict/netverdict/policy"
)

// Limit is the Stage that bounds lines per second with token buckets, one for
// denied and one for allowed flows. What it leaves out it counts, and says so at
// most once a tick; it gathers losses likewise, which otherwise are a line for
// each batch when it is worst.
type Limit struct {
	next    Stage
	now     func() time.Time
	buckets [2]*rate.Limiter // 0: denied and audited, 1: allowed

	flows, lines uint64 // withheld since the last withheld line
	missing      uint64 // lost since the last lost line

	withheld, lost atomic.Uint64 // in all
}

var (
	_ Stage  = (*Limit)(nil)
	_ Ticker = (*Limit)(nil)
)

// NewLimit lets perSecond lines a second through to next, and up to burst at
// once; perSecond 0 lets all.
func NewLimit(next Stage, perSecond float64, burst int, now func() time.Time) *Limit {
	limit := rate.Limit(perSecond)
	if perSecond == 0 {
		limit = rate.Inf
	}
	return &Limit{next: next, now: now, buckets: [2]*rate.Limiter{rate.NewLimiter(limit, burst), rate.NewLimiter(limit, burst)}}
}

// Flow implements Stage.
func (l *Limit) Flow(r *Record, folded *Folded) {
	bucket := l.buckets[0]
	if r.Decision.Reported() == policy.Allow {
		bucket = l.buckets[1]
	}
	// The time is the clock's: that of records goes back and forth between
	// workers, which the bucket would take for time passing.
	if bucket.AllowN(l.now(), 1) {
		l.next.Flow(r, folded)
		return
	}
	n := uint64(1)
	if folded != nil {
		n = folded.Count
	}
	l.hold(n, 1)
}

// Withheld implements Stage.
func (l *Limit) Withheld(flows, lines uint64, _ time.Time) { l.hold(flows, lines) }

func (l *Limit) hold(flows, lines uint64) {
	l.flows += flows
	l.lines += lines
	l.withheld.Add(flows)
}

// Lost implements Stage.
func (l *Limit) Lost(n uint64, _ time.Time) {
	l.missing += n
	l.lost.Add(n)
}

// Flush implements Stage.
func (l *Limit) Flush() { l.next.Flush() }

// Tick says what was left out since the last one.
func (l *Limit) Tick(now time.Time) {
	if l.missing > 0 {
		l.next.Lost(l.missing, now)
		l.missing = 0
	}
	if l.flows > 0 {
		l.next.Withheld(l.flows, l.lines, now)
		l.flows, l.lines = 0, 0
	}
	l.next.Flush()
}

// Finish is the last Tick.
func (l *Limit) Finish(now time.Time) { l.Tick(now) }
