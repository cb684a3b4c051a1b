package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/netverdict/netverdict/engine/pause"
	"github.com/netverdict/netverdict/engine/queue"
)

// Turn is the right to change the rules, which engines of different processes pass
// on to each other; *turn.Turn is one. See there for what each call does.
type Turn interface {
	Wanted() (bool, error)
	Yield() error
	Lost() (bool, error)
	Reclaim() (bool, error)
}

// ErrPaused is returned by Apply while another process is about to take over. The
// tree is to be applied again if it does not.
var ErrPaused = errors.New("another agent is taking over")

const (
	wantedEvery = 100 * time.Millisecond // how often the engine looks whether somebody wants to take over
	lostEvery   = 20 * time.Millisecond  // and whether it has
	// takeoverTime is how long the next process may take before the engine looks
	// whether it is still there.
	takeoverTime = 2 * time.Second
	// drainTime bounds the wait for the last packets of the queues, and quietTime is
	// how long there must be none: a packet that has seen the old rules is in its
	// queue after microseconds.
	drainTime = 10 * time.Second
	quietTime = 200 * time.Millisecond
)

// Passed reports whether Run has ended because another process has taken over: the
// rules are its, and so is every packet.
func (e *Engine) Passed() bool { return e.passed.Load() }

// wanted reports whether another process asks for the turn.
func (e *Engine) wanted() bool {
	if e.cfg.Turn == nil {
		return false
	}
	wanted, err := e.cfg.Turn.Wanted()
	if err != nil {
		e.cfg.Logger.Warn("cannot see whether another agent wants to take over", "error", err)
	}
	return wanted
}

// yield lets another process replace the rules; until it has, the packets are judged
// by the last tree. back is true if the other has gone and this one goes on. If this
// one ends meanwhile the rules stay, for the other to find.
func (e *Engine) yield(ctx, alive context.Context) (back bool, err error) {
	e.pause(true)
	e.cfg.Logger.Info("another agent is taking over")
	if err := e.cfg.Turn.Yield(); err != nil {
		return false, fmt.Errorf("hand over the rules: %w", err)
	}
	for start := time.Now(); ; {
		lost, err := e.cfg.Turn.Lost()
		if lost || ctx.Err() != nil || alive.Err() != nil {
			e.passed.Store(true)
			if lost {
				e.drain(alive)
			}
			return false, nil
		}
		if err != nil {
			e.cfg.Logger.Warn("cannot see yet whether another agent has taken over", "error", err)
		}
		if time.Since(start) > takeoverTime {
			back, err := e.cfg.Turn.Reclaim()
			if err != nil {
				return false, fmt.Errorf("take the rules back: %w", err)
			}
			if back {
				e.cfg.Logger.Warn("the agent that was taking over has gone; this one goes on")
				e.pause(false)
				return true, nil
			}
		}
		pause.For(ctx, lostEvery)
	}
}

// pause makes Apply refuse trees, or accept them again.
func (e *Engine) pause(paused bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.paused = paused
}

// drain sends every packet that is still in the queues through the rules again,
// which are another's: its agent judges them. It ends when none comes any more.
func (e *Engine) drain(alive context.Context) {
	for _, w := range e.workers {
		w.forward.Store(true)
		w.source.Wake()
	}
	quiet := time.Now()
	for deadline := quiet.Add(drainTime); time.Since(quiet) < quietTime && time.Now().Before(deadline); {
		if !pause.For(alive, lostEvery) {
			return
		}
		for _, w := range e.workers {
			if w.source.Stats().Kernel.Waiting > 0 {
				quiet = time.Now()
				w.source.Wake()
			}
		}
	}
}

// forwarded is the answer for a packet that another process is to judge: once more
// through the hook, as it came.
var forwarded = queue.Answer{Action: queue.Repeat}

// letGo forwards the packets on hold.
func (w *worker) letGo() {
	h := &w.hold
	for i := range h.waiting {
		h.count(&h.waiting[i], -1)
		w.source.Release(h.waiting[i].id, forwarded)
	}
	h.waiting = h.waiting[:0]
	w.counters.heldNow.Store(0)
}
