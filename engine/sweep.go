package engine

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/pause"
	"github.com/netverdict/netverdict/policy"
)

// sweeper asks the tree about live connections, behind a change:
//
//	a flow that goes on sending in its original direction   the kernel asks about its
//	                                                        next packet by itself
//	one on which only the other end sends                   nothing would ever be asked:
//	                                                        the sweep cuts it, or frees it
//
// It judges by the tree that is in force when it comes to a connection, so what it
// does is as new as what the workers do; when the tree changes meanwhile it goes
// round again.
type sweeper struct {
	rules    Rules
	by       *atomic.Pointer[judgement]
	kick     chan struct{}
	all      atomic.Bool // the next round is about all connections, not only those that were cut
	busy     atomic.Bool
	counts   sweepCounters
	answered func() // returns when no verdict of an earlier tree is on its way
	report   func(hook.Reviewed, error)
	wait     time.Duration // how long pods may stay unknown; then their connections are judged as such
}

// sweepCounters are running totals.
type sweepCounters struct{ seen, cut, freed atomic.Uint64 }

// Sweeps counts what the sweeps through the connection table have done since the
// engine started: the connections that they asked the tree about, those that they
// cut, and those that may go on.
type Sweeps struct{ Seen, Cut, Freed uint64 }

func (c *sweepCounters) add(r hook.Reviewed) {
	c.seen.Add(uint64(r.Seen))
	c.cut.Add(uint64(r.Cut))
	c.freed.Add(uint64(r.Freed))
}

// want starts a round soon: about all connections, or only about those that were
// cut and may be allowed now.
func (s *sweeper) want(all bool) {
	if all {
		s.all.Store(true)
	}
	select {
	case s.kick <- struct{}{}:
	default: // one is about to start
	}
}

// after is the pause after a round, by how long that took: rounds take at most a
// quarter of a core, however fast policies change.
const afterFactor = 3

// run goes round whenever it is told to, until ctx ends. Where connections were
// spared because a pod may only not be known yet, one more round follows when it
// has had time to become known.
func (s *sweeper) run(ctx context.Context) {
	var spared <-chan time.Time
	for {
		patient := true
		select {
		case <-ctx.Done():
			return
		case <-spared:
			patient = false
			s.all.Store(true)
			spared = nil
		case <-s.kick:
		}
		start := time.Now()
		if n := s.round(hook.Scope{Denied: !s.all.Swap(false)}, patient); n > 0 && patient && spared == nil {
			spared = time.After(s.wait)
		}
		if !pause.For(ctx, afterFactor*time.Since(start)) {
			return
		}
	}
}

// round judges the connections in a scope, and returns how many were spared.
func (s *sweeper) round(scope hook.Scope, patient bool) (spared int) {
	s.busy.Store(true)
	defer s.busy.Store(false)
	s.answered()
	r, err := s.rules.Review(scope, func(f *hook.Flow) hook.Fate {
		fate, unsure := fateOf(s.by.Load().tree, f)
		if unsure && patient {
			spared++
			return hook.Leave
		}
		return fate
	})
	s.counts.add(r)
	s.report(r, err)
	return spared
}

// fateOf asks the tree about a live connection. unsure: it would be cut, but the
// pod that is missing may become known.
func fateOf(tree *policy.Tree, f *hook.Flow) (fate hook.Fate, unsure bool) {
	d := tree.Decide(f.Src, f.Dst, f.Protocol, f.Port)
	switch {
	case d.Verdict == policy.Allow && f.Cut:
		return hook.Free, false
	case d.Verdict == policy.Allow || f.Cut:
		return hook.Leave, false
	}
	return hook.Cut, tree.Missing(f.Src) || tree.Missing(f.Dst)
}
