package audit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// Config wires an auditor. Its times mean what the engine's and the hook's mean,
// so that both report the same flows.
type Config struct {
	Socket    *Socket
	Collector *flow.Collector
	RingSize  int // flow records that it can be ahead of the sinks; a power of two
	Log       engine.Log
	// PolicyLimit is how many policies PolicyHits counts by name.
	PolicyLimit int
	// Flows is how many flows are remembered, to tell replies and later packets
	// from new flows.
	Flows int
	// AllowTimeout and DenyTimeout are for how long a source, destination,
	// protocol and port is not reported again; 0 reports every flow. As long as Log
	// wants allowed flows it gets all of them.
	AllowTimeout, DenyTimeout time.Duration
	// HoldLimit flows of pods that are not known yet are judged when they are, or
	// after HoldTime; after HoldRemote where it is a pod of another node.
	HoldLimit            int
	HoldTime, HoldRemote time.Duration
}

// Auditor judges copies of packets by the tree it was last given.
type Auditor struct {
	cfg      Config
	by       atomic.Pointer[judgement]
	ring     *flow.Ring
	counters counters
	hits     *hits

	mu      sync.Mutex // serializes Apply
	running bool

	// Owned by Run's goroutine.
	judged  *judgement // that recent is valid for
	looker  looker
	sight   sight
	flows   *flows
	recent  recent
	waiting []question
	now     int64
	counted time.Time
}

// judgement is a tree and its serial. It never changes once published.
type judgement struct {
	tree   *policy.Tree
	serial uint64
	// How many changes there were, until this tree, after which flows are asked
	// about again, and after which kinds that were let pass, or denied, are.
	changes, revoking, adding uint64
}

// New makes an auditor. Nothing happens before Run.
func New(cfg Config) (*Auditor, error) {
	a := &Auditor{cfg: cfg, hits: newHits(cfg.PolicyLimit), ring: cfg.Collector.NewRing(cfg.RingSize), looker: newLooker()}
	var err error
	if a.flows, err = newFlows(cfg.Flows, time.Now().UnixNano()); err != nil {
		return nil, fmt.Errorf("remember %d flows: %w", cfg.Flows, err)
	}
	if a.recent, err = newRecent(cfg.AllowTimeout, cfg.DenyTimeout); err != nil {
		return nil, err
	}
	return a, nil
}

// tick is how often flows that wait are looked at, and ctx.
const tick = 100 * time.Millisecond

// Run judges by a first tree, calls ready once it does, and goes on until ctx ends
// or the socket fails.
func (a *Auditor) Run(ctx context.Context, first *policy.Tree, ready func()) error {
	a.by.Store(&judgement{tree: first, serial: 1})
	a.judged = a.by.Load()
	a.start(true)
	defer a.start(false)
	ready()
	return a.cfg.Socket.Read(ctx, tick, a.look, a.rest)
}

func (a *Auditor) start(running bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running = running
}

// Apply replaces the tree: the next packet is judged by the new one. It fails with
// engine.ErrNotRunning before Run and after it.
func (a *Auditor) Apply(t *policy.Tree) (policy.Change, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.running {
		return policy.Change{}, engine.ErrNotRunning
	}
	old := a.by.Load()
	change := policy.Compare(old.tree, t)
	by := &judgement{t, old.serial + 1, old.changes, old.revoking, old.adding}
	if change != (policy.Change{}) {
		by.changes++
	}
	if change.Revokes || change.Audits {
		by.revoking++
	}
	if change.Adds {
		by.adding++
	}
	a.by.Store(by)
	return change, nil
}

// Tree returns the tree in use and its serial, which counts the trees.
func (a *Auditor) Tree() (*policy.Tree, uint64) {
	by := a.by.Load()
	if by == nil {
		return nil, 0
	}
	return by.tree, by.serial
}

// look judges one copy.
func (a *Auditor) look(frame []byte, hatype uint16, way Way) {
	ip, ok := byHardware(hatype, frame)
	if !ok {
		a.counters.notIP.Add(1)
		return
	}
	if a.now == 0 {
		a.now = time.Now().UnixNano()
	}
	s := &a.sight
	a.looker.look(ip, way, a.now, s)
	if s.packet.State.Malformed() {
		a.counters.malformed.Add(1)
		return
	}
	by := a.current()
	origin, judge := a.flows.enter(s, by.changes)
	if _, node := by.tree.Node(origin.id.src); !judge || node && !origin.cameIn {
		return // rules let pass what the node itself sends
	}
	a.ask(by, question{s.at, origin.of(s)})
}

// current is the judgement for the packet at hand. With a new one it forgets what
// that may answer otherwise.
func (a *Auditor) current() *judgement {
	by := a.by.Load()
	if by == a.judged {
		return by
	}
	if by.revoking != a.judged.revoking {
		a.recent.forget(policy.Allow)
	}
	if by.adding != a.judged.adding {
		a.recent.forget(policy.Deny)
	}
	a.judged = by
	a.review(by)
	return by
}

// rest is called when there is no copy at hand.
func (a *Auditor) rest() {
	a.now = 0
	by := a.current()
	if len(a.waiting) > 0 {
		a.review(by)
	}
	if now := time.Now(); now.Sub(a.counted) >= time.Second {
		a.cfg.Socket.count()
		a.counted = now
	}
}
