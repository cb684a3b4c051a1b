package engine

import (
	"sync"
	"testing"
	"time"

	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// fakeTurn is a right that another process may ask for.
type fakeTurn struct {
	mu                 sync.Mutex
	asked, given, lost bool
	back               bool // nobody has it
}

func (f *fakeTurn) set(change func(*fakeTurn)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeTurn) Wanted() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked, nil
}

func (f *fakeTurn) Yield() error {
	f.set(func(f *fakeTurn) { f.given = true })
	return nil
}

func (f *fakeTurn) Lost() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost, nil
}

func (f *fakeTurn) Reclaim() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.back {
		f.asked, f.given = false, false
	}
	return f.back, nil
}

func (f *fakeTurn) has(cond func(*fakeTurn) bool) func() bool {
	return func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return cond(f)
	}
}

// TestHandover: until the rules are another's, packets are judged and no tree is
// taken; from then on every packet, also those on hold, goes through the rules
// again as it came, and the rules stay.
func TestHandover(t *testing.T) {
	t.Parallel()
	turn := &fakeTurn{}
	r := newRig(t, func(c *Config) { c.Turn, c.HoldLimit, c.HoldTime = turn, 4, time.Hour })
	r.run(sceneTree(t, isolate("db")))
	p := queue.Packet{Mark: foreign, Payload: packetOf(t, web4, db4, policy.TCP, tcpPort)}
	turn.set(func(f *fakeTurn) { f.asked = true })
	eventually(t, "the turn to be given", turn.has(func(f *fakeTurn) bool { return f.given }))
	if a, _ := r.judge(p); a.Mark != r.marks.Verdict(foreign, policy.Deny, 1) {
		t.Errorf("before the rules are another's: %s", describe(r.marks, a))
	}
	held := r.source.Inject(queue.Packet{Payload: packetOf(t, web4, late4, policy.TCP, tcpPort)})
	r.source.Settle()
	if _, err := r.engine.Apply(sceneTree(t)); err != ErrPaused {
		t.Errorf("Apply meanwhile: %v, want %v", err, ErrPaused)
	}
	turn.set(func(f *fakeTurn) { f.lost = true })
	eventually(t, "the engine to have passed the rules on", r.engine.Passed)
	eventually(t, "the packet on hold to be forwarded", func() bool {
		a, ok := r.answer(held)
		return ok && a == queue.Answer{Action: queue.Repeat}
	})
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	for _, call := range r.rules.taken() {
		if call == "remove" {
			t.Error("the rules were removed")
		}
	}
}

// TestForward: a worker whose rules are another's answers every packet alike.
func TestForward(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	w := r.judging(sceneTree(t, isolate("db")))
	w.forward.Store(true)
	for _, payload := range [][]byte{packetOf(t, web4, db4, policy.TCP, tcpPort), truncated(t)} {
		if a := w.Handle(&queue.Packet{Mark: foreign, Payload: payload}); a != (queue.Answer{Action: queue.Repeat}) {
			t.Errorf("%s", describe(r.marks, a))
		}
	}
}

// TestHandoverTakenBack: whoever asked has gone; the engine goes on, and takes trees.
func TestHandoverTakenBack(t *testing.T) {
	t.Parallel()
	turn := &fakeTurn{back: true}
	r := newRig(t, func(c *Config) { c.Turn = turn })
	r.run(sceneTree(t, isolate("db")))
	turn.set(func(f *fakeTurn) { f.asked = true })
	eventually(t, "the turn to be given", turn.has(func(f *fakeTurn) bool { return f.given }))
	eventually(t, "the turn to be taken back", turn.has(func(f *fakeTurn) bool { return !f.given }))
	eventually(t, "Apply to work again", func() bool {
		_, err := r.engine.Apply(sceneTree(t))
		return err == nil
	})
	if a, _ := r.judge(queue.Packet{Payload: packetOf(t, web4, db4, policy.TCP, tcpPort)}); a != r.verdict(policy.Allow, r.rules.Epoch()) {
		t.Errorf("afterwards: %s", describe(r.marks, a))
	}
	if r.engine.Passed() {
		t.Error("it says that it has passed the rules on")
	}
}

// TestFailedInstallKeepsWhatWasThere: rules of a process before stay when the new one
// cannot replace them.
func TestFailedInstallKeepsWhatWasThere(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.rules.adopted = true
	r.rules.failing("install", errFake)
	r.start(sceneTree(t))
	if err := r.wait(); err == nil {
		t.Error("no error")
	}
	for _, call := range r.rules.taken() {
		if call == "remove" {
			t.Error("the rules of the process before were removed")
		}
	}
}
