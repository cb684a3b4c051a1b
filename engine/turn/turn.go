// Package turn decides which process may change the rules of a network namespace,
// and passes that right on without a moment in which nobody judges.
//
//	          the next process                    the kernel                 the one before
//
//	Take      asks ──────────────────────▶ set PREFIX-handover ──▶ Wanted
//	                                                                 stops changing the rules,
//	          gets the lock ◀────────────── lock (a queue number) ◀── Yield
//	          binds other queues
//	          replaces the rules ────────▶ rules name those queues ─▶ Lost
//	Done      takes the request back                                 sends what is left in its
//	                                                                 queues through the rules
//	                                                                 again, and leaves
//
// If the next process does not get through, its end frees the lock, the one before
// notices (Reclaim), and goes on.
//
// The lock is a queue number that is bound and unused, the request an empty ipset:
// both take CAP_NET_ADMIN in the namespace, which is what owning the rules takes, and
// both work between containers that share nothing but that namespace. A socket with
// a name would be open to every process on the host network.
package turn

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/pause"
	"github.com/netverdict/netverdict/engine/queue"
)

// ErrTaken is returned by Take when another process owns the rules.
var ErrTaken = errors.New("another agent owns the rules of this network namespace")

const (
	// exitTime is how long Take waits for a process that is just ending.
	exitTime = 3 * time.Second
	// handoverTime is how long Take waits for an owner that it asked; it looks for
	// requests ten times a second, unless iptables keeps it busy.
	handoverTime = 45 * time.Second
	pollTime     = 20 * time.Millisecond
)

// Turn is the right to change the rules.
type Turn struct {
	hook *hook.Hook
	num  uint16
	lock *queue.Reservation // nil when it is another's turn
}

// Take waits for the lock on the rules with a prefix. If replace is set and another
// process has it, that one is asked to pass it on.
func Take(ctx context.Context, h *hook.Hook, prefix string, replace bool) (*Turn, error) {
	t := &Turn{hook: h, num: queue.ReservedFor(prefix)}
	wait := exitTime
	if replace {
		wait = handoverTime
	}
	asked := false
	for deadline := time.Now().Add(wait); ; {
		err := t.reserve()
		if err == nil {
			return t, nil
		}
		if !errors.Is(err, queue.ErrTaken) {
			return nil, errors.Join(err, t.withdraw(asked))
		}
		if replace && !asked {
			if err := h.RequestHandover(); err != nil {
				return nil, err
			}
			asked = true
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return nil, errors.Join(taken(err, replace), t.withdraw(asked), ctx.Err())
		}
		pause.For(ctx, pollTime)
	}
}

// taken explains why Take gave up.
func taken(err error, replace bool) error {
	if replace {
		return fmt.Errorf("%w and does not pass them on: %w", ErrTaken, err)
	}
	return fmt.Errorf("%w: stop it, or take over from it without a gap, with --replace", ErrTaken)
}

func (t *Turn) withdraw(asked bool) error {
	if !asked {
		return nil
	}
	return t.hook.EndHandover()
}

func (t *Turn) reserve() error {
	return t.hook.Do(func() (err error) {
		t.lock, err = queue.Reserve(t.num)
		return err
	})
}

// Done tells the process before, and whoever looks, that the rules are ours.
func (t *Turn) Done() error { return t.hook.EndHandover() }

// Wanted reports whether another process asks for the turn.
func (t *Turn) Wanted() (bool, error) { return t.hook.HandoverRequested() }

// Yield lets the other process have it.
func (t *Turn) Yield() error {
	if t.lock == nil {
		return nil
	}
	lock := t.lock
	t.lock = nil
	return lock.Release()
}

// Lost reports whether the other process has replaced the rules.
func (t *Turn) Lost() (bool, error) { return t.hook.Superseded() }

// Reclaim takes the turn back if nobody has it: the other process has gone without
// having replaced the rules. ok is false if it is still at it.
func (t *Turn) Reclaim() (ok bool, err error) {
	if err := t.reserve(); errors.Is(err, queue.ErrTaken) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return true, t.hook.EndHandover()
}

// AwaitFree waits until nobody has had the turn for a time, in which a process that
// crashed would be back.
func AwaitFree(ctx context.Context, h *hook.Hook, prefix string, idle time.Duration) error {
	t := &Turn{hook: h, num: queue.ReservedFor(prefix)}
	for since := time.Now(); time.Since(since) < idle; {
		switch err := t.reserve(); {
		case errors.Is(err, queue.ErrTaken):
			since = time.Now()
		case err != nil:
			return err
		default:
			if err := t.Yield(); err != nil {
				return err
			}
		}
		if !pause.For(ctx, idle/10) {
			return ctx.Err()
		}
	}
	return nil
}
