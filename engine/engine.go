package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// Marks writes verdicts into packet marks; hook.Marks does.
type Marks interface {
	// Verdict returns the mark old with a verdict given in an epoch in our bits.
	Verdict(old uint32, v policy.Verdict, epoch uint32) uint32
	// Rejected returns the mark old with a verdict to deny that is not remembered
	// for others of its kind.
	Rejected(old uint32) uint32
	// Decided reports whether a mark carries a verdict.
	Decided(mark uint32) bool
	// Clear returns the mark with our bits zero.
	Clear(mark uint32) uint32
}

// Rules is the kernel's half of the engine; *hook.Hook is one. See there for
// what each call does.
type Rules interface {
	Install(hook.Policed) error
	Prepare(hook.Policed) error
	Switch(revokes, adds bool) error
	SwitchFor(addrs []netip.Addr) error
	Forget(addrs []netip.Addr) error
	Epoch() uint32
	Finish() error
	Review(s hook.Scope, judge func(*hook.Flow) hook.Fate) (hook.Reviewed, error)
	Verify() (repaired bool, err error)
	Adopted() bool
	Hurry()
	Remove() error
}

// Log chooses by verdict which flows are recorded, at the moment of the decision: a
// flow.Filter always the same ones, a *flow.Demand what is wanted just then.
type Log interface {
	Keep(policy.Verdict) bool
}

// Config wires an engine.
type Config struct {
	Rules   Rules
	Marks   Marks
	Sources []queue.Source // one worker each
	// CacheSize is the number of decisions each worker's flow cache holds; 0
	// turns it off.
	CacheSize int
	// RingSize is the number of flow records each worker can be ahead of the
	// sinks; a power of two.
	RingSize  int
	Collector *flow.Collector
	// Log says which flows are recorded; nil records the denied ones.
	Log Log
	// PolicyLimit is how many policies are counted by name (PolicyHits).
	PolicyLimit int
	// HoldLimit and HoldTime bound how many packets of pods that are not known
	// yet wait in each queue, and for how long. HoldRemote is the time for pods of
	// other nodes, whose packets only wait if they would be denied; 0 does not wait
	// for them. The sources' tick should be well below the times.
	HoldLimit  int
	HoldTime   time.Duration
	HoldRemote time.Duration
	// ConfineTo is to how many addresses a change may be confined, at most: what the
	// kernel knows of them is searched, and everybody else is left in peace. 0
	// confines no change.
	ConfineTo int
	// Rejecter answers denied packets; nil: nobody does. Deny says which: those of
	// namespaces that do not say it themselves (policy.Namespace.Denial), and those
	// that no policy denies.
	Rejecter Rejecter
	Deny     policy.Denial
	// VerifyEvery is how often the installed rules are checked and, if somebody
	// removed them, put back; 0 never.
	VerifyEvery time.Duration
	// KeepRules leaves the rules in place when the engine stops: new connections
	// of policed pods then wait for the next agent, or are dropped (fail closed).
	KeepRules bool
	// Requested says, when ctx has ended, whether somebody asked the engine to
	// stop; nil: always. Without a request the rules stay, as after a crash: a part
	// that fails must not open the node.
	Requested func() bool
	// Turn is how another process may take over; nil: none may.
	Turn   Turn
	Logger *slog.Logger
}

// Engine judges packets by the tree it was last given.
type Engine struct {
	cfg     Config
	by      atomic.Pointer[judgement]
	workers []*worker
	hits    *hits

	sweeper *sweeper
	passed  atomic.Bool // another process has taken over
	repairs atomic.Uint64

	mu      sync.Mutex // serializes what changes the rules
	running bool       // the rules are installed and stay so
	paused  bool       // another process is about to replace them
	owed    bool       // the kernel remembers what an earlier change took back
}

// New makes an engine. Nothing happens before Run.
func New(cfg Config) (*Engine, error) {
	if cfg.Log == nil {
		cfg.Log = flow.Denied
	}
	e := &Engine{cfg: cfg}
	for i, s := range cfg.Sources {
		c, err := newCache(cfg.CacheSize)
		if err != nil {
			return nil, fmt.Errorf("flow cache of %d entries: %w", cfg.CacheSize, err)
		}
		e.workers = append(e.workers, &worker{
			index:   i,
			by:      &e.by,
			marks:   cfg.Marks,
			source:  s,
			decoder: packet.NewDecoder(),
			cache:   c,
			ring:    cfg.Collector.NewRing(cfg.RingSize),
			log:     cfg.Log,
			hold:    newHold(&cfg),

			rejecter: cfg.Rejecter, deny: cfg.Deny,
		})
	}
	e.hits = newHits(cfg.PolicyLimit, e.workers)
	e.sweeper = &sweeper{
		rules: cfg.Rules, by: &e.by, kick: make(chan struct{}, 1),
		answered: e.awaitAnswers, report: e.swept, wait: max(cfg.HoldTime, cfg.HoldRemote),
	}
	return e, nil
}

// Run enforces a first tree, calls ready once it does, and goes on until ctx
// ends or a part fails; a part that fails ends the whole, so that nothing keeps
// running without enforcing. Before it returns it removes the rules, if it was
// asked to stop and not to keep them, and answers what is left in the queues.
func (e *Engine) Run(ctx context.Context, first *policy.Tree, ready func()) error {
	e.by.Store(&judgement{tree: first, serial: 1, cells: e.hits.cellsFor(first)})
	stop, stopWorkers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWorkers()
	workers, alive := e.startWorkers(stop)
	err := e.install(first)
	// What could not be installed is not enforcing anything, but rules of a process
	// before are: a new one that fails must not open the node.
	keep := e.cfg.KeepRules || e.cfg.Rules.Adopted()
	if err == nil {
		ready()
		defer context.AfterFunc(ctx, e.cfg.Rules.Hurry)()
		err = e.serve(ctx, alive)
		keep = e.cfg.KeepRules || e.Passed() || !e.requested(ctx)
	}
	err = errors.Join(err, e.end(keep))
	stopWorkers()
	return errors.Join(err, workers.Wait())
}

// serve looks after rules and live connections until ctx ends, a worker does, or
// another process has taken over and every packet is its.
func (e *Engine) serve(ctx, alive context.Context) error {
	for {
		endSweeps := e.startSweeps(alive)
		wanted, err := e.watch(ctx, alive)
		endSweeps()
		if !wanted {
			return err
		}
		switch back, err := e.yield(ctx, alive); {
		case err != nil:
			return err
		case !back:
			return nil
		}
	}
}

func (e *Engine) requested(ctx context.Context) bool {
	return ctx.Err() != nil && (e.cfg.Requested == nil || e.cfg.Requested())
}

// startWorkers runs the sources before any rule sends them packets. alive ends
// when one of them does.
func (e *Engine) startWorkers(stop context.Context) (workers *errgroup.Group, alive context.Context) {
	workers, alive = errgroup.WithContext(stop)
	for i, w := range e.workers {
		workers.Go(func() error {
			err := w.source.Run(alive, w)
			if err == nil && stop.Err() == nil && alive.Err() == nil {
				err = errors.New("ended although nobody asked it to")
			}
			if err != nil {
				return fmt.Errorf("queue worker %d: %w", i, err)
			}
			return nil
		})
	}
	return workers, alive
}

// startSweeps judges the connections that are older than the rules, and begins to
// sweep behind changes. The function that it returns ends that, and waits for it.
func (e *Engine) startSweeps(stop context.Context) (end func()) {
	ctx, cancel := context.WithCancel(stop)
	var sweeps sync.WaitGroup
	sweeps.Go(func() { e.sweeper.run(ctx) })
	e.sweeper.want(true)
	return func() {
		cancel()
		sweeps.Wait()
	}
}

func (e *Engine) swept(r hook.Reviewed, err error) {
	switch {
	case err != nil:
		e.cfg.Logger.Error("live connections on which only the other end sends may go on although they are denied now, or stay cut", "error", err)
	case r.Cut > 0 || r.Freed > 0:
		e.cfg.Logger.Info("judged the live connections again", "seen", r.Seen, "cut", r.Cut, "freed", r.Freed)
	}
}

// verifyAttempts is how often in a row a verification may fail before the engine
// ends: a busy machine or a lock that others hold must not cost enforcement, but
// rules that are gone and cannot be put back do.
const verifyAttempts = 3

// watch waits for the end of ctx or of a worker, or for another process that wants
// to take over, and looks after the rules meanwhile.
func (e *Engine) watch(ctx, alive context.Context) (wanted bool, err error) {
	verify, endVerify := ticker(e.cfg.VerifyEvery)
	defer endVerify()
	look := time.NewTicker(wantedEvery)
	defer look.Stop()
	for failed := 0; ; {
		select {
		case <-ctx.Done():
			return false, nil
		case <-alive.Done():
			return false, nil // the group has the error
		case <-look.C:
			if e.wanted() {
				return true, nil
			}
			continue
		case <-verify:
		}
		err := e.verify()
		if err == nil {
			failed = 0
			continue
		}
		if failed++; failed == verifyAttempts {
			return false, err
		}
		e.cfg.Logger.Error("it is not certain that the rules are in place; trying again", "error", err)
	}
}

// ticker never ticks if every is 0.
func ticker(every time.Duration) (ticks <-chan time.Time, stop func()) {
	if every <= 0 {
		return nil, func() {}
	}
	t := time.NewTicker(every)
	return t.C, t.Stop
}

func (e *Engine) install(first *policy.Tree) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.cfg.Rules.Install(e.policed(first)); err != nil {
		return fmt.Errorf("install rules: %w", err)
	}
	e.publish(first)
	e.running = true
	return nil
}

// publish makes a tree the one that every next packet is judged by, in the
// present epoch of the rules.
func (e *Engine) publish(t *policy.Tree) {
	old := e.by.Load()
	by := &judgement{tree: t, serial: old.serial, epoch: e.cfg.Rules.Epoch(), cells: e.hits.cellsFor(t)}
	if t != old.tree {
		by.serial++
	}
	e.by.Store(by)
	e.hits.retire(old.cells)
	for _, w := range e.workers {
		w.source.Wake() // packets on hold may be decided now
	}
}

func (e *Engine) verify() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	repaired, err := e.cfg.Rules.Verify()
	if err != nil {
		return fmt.Errorf("verify rules: %w", err)
	}
	if repaired {
		e.repairs.Add(1)
		e.cfg.Logger.Warn("the rules were changed by somebody else and have been put back")
		e.publish(e.by.Load().tree)
		e.sweeper.want(true)
	}
	return nil
}

// end stops Apply and, unless told to keep them, removes the rules before the
// queues lose their readers.
func (e *Engine) end(keep bool) error {
	e.cfg.Rules.Hurry()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running = false
	if keep {
		return nil
	}
	if err := e.cfg.Rules.Remove(); err != nil {
		return fmt.Errorf("remove rules: %w", err)
	}
	return nil
}

// Tree returns the tree in force and its serial, which counts the trees since
// the engine started.
func (e *Engine) Tree() (*policy.Tree, uint64) {
	by := e.by.Load()
	if by == nil {
		return nil, 0
	}
	return by.tree, by.serial
}

// policed says whose packets are asked about. Those of local pods that are not
// known are, unless they would be allowed at once.
func (e *Engine) policed(t *policy.Tree) hook.Policed {
	p := hook.Policed{
		Egress:  slices.Collect(t.Policed(policy.Egress)),
		Ingress: slices.Collect(t.Policed(policy.Ingress)),
		Answers: e.answers(t),
	}
	if e.cfg.HoldLimit > 0 || t.UnknownPod() == policy.Deny {
		p.Ranges, p.Known = t.LocalPodCIDRs(), slices.Collect(t.Known())
	}
	return p
}
