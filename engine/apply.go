package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/policy"
)

// ErrNotRunning is returned by Apply before Run has installed the rules and
// after it has begun to end.
var ErrNotRunning = errors.New("the engine is not running")

// Apply replaces the tree. When it returns nil every packet from then on is
// judged by the new one, and connections that it no longer allows are asked
// about again with their next packet. On an error Apply may be called again; the
// old tree stays in force, unless only the clean-up at the end failed. It must
// not be called by several goroutines with trees of different age: the last one wins.
//
// The order makes it exact. First the sets learn the new addresses. Then one
// atomic rule change starts a new epoch: verdicts of the old tree, still on their
// way, count for their own packet, but the kernel no longer remembers them. Only
// then the tree is swapped, so what the kernel does remember comes from the new
// one alone. What it remembers from before is dealt with in one of two ways:
//
//	the change concerns    what the kernel knows of them       everybody else
//	a few addresses: pods  is searched and removed, after      notices nothing
//	that come or go        the swap
//	many, or the world, or is out of date with the new epoch:  is asked about again
//	what a pod may do      fresh sets, a new generation
//
// Behind either, when the last verdict by the old tree has been given, comes a sweep
// through the live connections.
func (e *Engine) Apply(t *policy.Tree) (policy.Change, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.running {
		return policy.Change{}, ErrNotRunning
	}
	if e.paused {
		return policy.Change{}, ErrPaused
	}
	change := policy.Compare(e.by.Load().tree, t)
	if err := e.cfg.Rules.Prepare(e.policed(t)); err != nil {
		return change, fmt.Errorf("prepare rules: %w", err)
	}
	if addrs, ok := e.confined(t, change); ok {
		return change, e.applyFor(t, addrs)
	}
	return change, e.applyToAll(t, change)
}

// confined returns the addresses that a change concerns, if they are few, and if
// there is time to search for what the kernel knows of them: a live flow of a pod
// that stays is cut at once, with its next packet, which only a new generation does.
func (e *Engine) confined(t *policy.Tree, change policy.Change) ([]netip.Addr, bool) {
	if e.owed || e.cfg.ConfineTo == 0 || change.Denies || change == (policy.Change{}) {
		return nil, false
	}
	old := e.by.Load().tree
	addrs, ok := policy.Affected(old, t)
	if !ok || len(addrs) > e.cfg.ConfineTo || (change.Revokes || change.Audits) && slices.ContainsFunc(addrs, func(a netip.Addr) bool { return stays(old, t, a) }) {
		return nil, false
	}
	return addrs, true
}

// stays reports whether the same pod holds an address in both trees.
func stays(old, now *policy.Tree, a netip.Addr) bool {
	before, held := old.Pod(a)
	after, holds := now.Pod(a)
	return held && holds && before.NamespacedName == after.NamespacedName
}

func (e *Engine) applyToAll(t *policy.Tree, change policy.Change) error {
	revokes := change.Revokes || change.Audits || e.owed
	adds := change.Adds || change.Denies || e.owed // what is remembered as denied is asked again
	if err := e.cfg.Rules.Switch(revokes, adds); err != nil {
		return fmt.Errorf("switch rules: %w", err)
	}
	e.owed = false
	e.publish(t)
	if revokes || adds {
		e.sweeper.want(revokes)
	}
	if err := e.cfg.Rules.Finish(); err != nil {
		return fmt.Errorf("clean up after the switch: %w", err)
	}
	return nil
}

// applyFor swaps the tree for a change that concerns few addresses. If what the
// kernel knows of them cannot be removed, the next switch forgets everything.
func (e *Engine) applyFor(t *policy.Tree, addrs []netip.Addr) error {
	if err := e.cfg.Rules.SwitchFor(addrs); err != nil {
		return fmt.Errorf("switch rules: %w", err)
	}
	e.publish(t)
	e.owed = true
	e.awaitAnswers()
	if err := e.cfg.Rules.Forget(addrs); err != nil {
		return e.settle(fmt.Errorf("clean up after the switch: %w", err))
	}
	scope := hook.Scope{Addrs: addrs}
	r, err := e.cfg.Rules.Review(scope, func(f *hook.Flow) hook.Fate {
		fate, _ := fateOf(t, f)
		return fate
	})
	e.sweeper.counts.add(r)
	if err != nil {
		return e.settle(err)
	}
	e.owed = false
	if e.sweeper.busy.Load() {
		e.sweeper.want(true) // it may have judged one of them by the old tree
	}
	if err := e.cfg.Rules.Finish(); err != nil {
		return fmt.Errorf("clean up after the switch: %w", err)
	}
	return nil
}

// settle makes good for a change that could not be confined.
func (e *Engine) settle(err error) error {
	if again := e.applyToAll(e.by.Load().tree, policy.Change{}); again != nil {
		return errors.Join(err, again)
	}
	e.cfg.Logger.Warn("a change that concerns few addresses was made for all", "error", err)
	return nil
}
