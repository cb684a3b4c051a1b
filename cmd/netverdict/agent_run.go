package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/engine/audit"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/metrics"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/engine/reject"
	"github.com/netverdict/netverdict/engine/turn"
	"github.com/netverdict/netverdict/kube"
	"github.com/netverdict/netverdict/policy"
)

// agent is a running agent:
//
//	source.Watch ─▶ newest (the last snapshot only) ─▶ Compile ─▶ engine.Run, then Apply
//	                                                                 │
//	queues ─▶ engine workers ─▶ rings ─▶ collector ─▶ flow log   ◀───┘
//	                                              └─▶ hubble server ◀─ subscribers
type agent struct {
	options *agentOptions
	log     *slog.Logger
	source  source
	rules   *hook.Hook
	trees   trees
	newest  chan news // holds the last snapshot that was not built yet
	changes *metrics.Changes
	// requested reports whether the agent was told to stop, and does not stop
	// because a part of it failed.
	requested func() bool

	flowLog   *flow.Log
	demand    flow.Demand // what the sinks want
	collector *flow.Collector
	flows     *flowServer                   // nil: not served
	kernel    atomic.Pointer[kernel]        // nil until there is a first tree
	auditor   atomic.Pointer[audit.Auditor] // the same; only of an agent that audits
	links     podLinks
	bridges   bridges
	rejecter  atomic.Pointer[reject.Rejecter] // nil: denied packets are not answered

	noticed  map[string]bool // notices of the last snapshot; owned by watch
	podStart string          // owned by watch
	// nodeUnknown says that the last snapshot knows no node of ours; owned by watch.
	nodeUnknown bool
	limits      limitLog

	mu    sync.Mutex
	state agentState
}

// kernel is the kernel's side of an agent. It is opened when there is something
// to judge by: a queue that is bound and not read swallows packets that would
// otherwise pass with --queue-bypass.
type kernel struct {
	engine judge
	queues []queue.Source // none in an audit
	first  uint16         // number of the first queue
}

// agentState is what the endpoints report, guarded by agent.mu.
type agentState struct {
	enforcing bool
	applied   time.Time
	waiting   time.Time // when the oldest change came that a snapshot shows and that is not enforced; zero: none
	newest    time.Time // the same of the last snapshot alone
	unread    string    // why the source's newest state is not known; empty: it is
	unapplied string    // why the newest snapshot is not enforced
}

// news is a snapshot that is to be enforced, and when the first change came that it
// shows and the one before does not.
type news struct {
	snapshot *policy.Snapshot
	changes  *policy.Delta // since the snapshot before; nil: not known
	since    time.Time
}

// problem says what keeps the newest state from being enforced.
func (s *agentState) problem() string {
	if s.unread != "" {
		return s.unread
	}
	return s.unapplied
}

// update changes the state.
func (a *agent) update(change func(*agentState)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(&a.state)
}

// serve runs until ctx ends or a part fails.
func (a *agent) serve(ctx context.Context, e env) error {
	a.requested = func() bool { return ctx.Err() != nil }
	flowLog, closer, err := a.options.flowLog.open(e, a.log)
	if err != nil {
		return err
	}
	defer closer.Close()
	a.flowLog = flowLog
	a.demand.Want(a.options.flowLog.filter)
	sinks := append([]flow.Sink{flowLog}, a.options.observers.sinks...)
	if a.flows, err = a.openHubble(ctx); err != nil {
		return err
	}
	if a.flows != nil {
		defer a.flows.close()
		sinks = append(sinks, a.flows)
	}
	a.collector = flow.NewCollector(sinks...)
	err = a.work(ctx)
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if flushErr := a.collector.Close(flush); flushErr != nil {
		a.log.Warn("the end of the flow log is lost", "error", flushErr)
	}
	return err
}

// ringSize is how many flow records a worker can be ahead of the sinks.
const ringSize = 8192

func (a *agent) newEngine(queues []queue.Source, mine *turn.Turn, r *reject.Rejecter) (*engine.Engine, error) {
	o := a.options
	return engine.New(engine.Config{
		Rules:       a.rules,
		Marks:       a.rules.Marks(),
		Sources:     queues,
		CacheSize:   o.cacheSize,
		RingSize:    ringSize,
		Collector:   a.collector,
		Log:         &a.demand,
		PolicyLimit: o.metrics.policies,
		HoldLimit:   o.holdLimit,
		HoldTime:    o.holdTime,
		HoldRemote:  o.live.holdRemote,
		ConfineTo:   confineTo,
		Rejecter:    rejecterOf(r),
		Deny:        o.reject.deny,
		VerifyEvery: 15 * time.Second,
		KeepRules:   o.onStop == onStopKeep,
		Requested:   a.requested,
		Turn:        mine,
		Logger:      a.log,
	})
}

func closeAll(queues []queue.Source) error {
	var errs []error
	for _, q := range queues {
		errs = append(errs, q.Close())
	}
	return errors.Join(errs...)
}

// work runs the parts. One that fails ends all.
func (a *agent) work(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.watch(ctx) })
	a.serveHealth(ctx, group)
	a.serveStatus(ctx, group)
	if a.options.metrics.address != "" {
		group.Go(func() error { return a.serveMetrics(ctx) })
	}
	if a.options.profile.address != "" {
		group.Go(func() error { return a.options.profile.serve(ctx) })
	}
	if a.flows != nil {
		a.flows.serve(ctx, group)
	}
	group.Go(func() error {
		err := a.enforce(ctx, group)
		if err == nil && ctx.Err() == nil {
			err = errors.New("the engine ended by itself")
		}
		return err
	})
	err := group.Wait()
	if err != nil && !errors.Is(err, errReplaced) && a.state.enforcing && !a.options.mode.audits() && !a.requested() {
		a.log.Error("the rules stay and drop new connections of policed pods; start the agent again, or run netverdict cleanup to enforce nothing")
	}
	return err
}

// watch hands on the newest snapshot; one that nobody has taken yet is replaced.
func (a *agent) watch(ctx context.Context) error {
	return a.source.Watch(ctx,
		func(s *policy.Snapshot, r *kube.Report) {
			a.scope(s)
			a.noteNodeName(s)
			a.notePodRanges(s)
			a.tellNodes(s)
			a.logNotices(r)
			a.limits.newest.Store(r)
			n := news{s, s.Since, changedAt(a.source)}
			a.update(func(st *agentState) {
				st.unread = ""
				if st.waiting.IsZero() {
					st.waiting = n.since
				}
				select {
				case unbuilt := <-a.newest:
					n = n.after(unbuilt)
				default:
				}
				st.newest = n.since
				a.newest <- n // there is room: nobody else sends
			})
		},
		func(err error) { a.problem(err, func(st *agentState) { st.unread = err.Error() }) })
}

// problem notes and logs what keeps the newest state from being enforced.
func (a *agent) problem(err error, note func(*agentState)) {
	inForce := "nothing is enforced yet"
	a.update(func(st *agentState) {
		note(st)
		if st.enforcing {
			inForce = "the last good policies stay in force"
		}
	})
	a.log.Error(inForce, "error", err)
}

// scope tells a snapshot which pods are this node's.
func (a *agent) scope(s *policy.Snapshot) {
	s.UnknownPod = a.options.unknownPod
	name := a.options.nodeName
	s.LocalPodCIDRs = a.options.node.ranges(name, s.Nodes)
	if name != "" {
		s.Local = func(p *policy.Pod) bool { return p.NodeName == name }
	}
}

// logNotices logs the notices that the snapshot before did not have: they are
// about objects and come again as long as these stay.
func (a *agent) logNotices(r *kube.Report) {
	now := map[string]bool{}
	for _, n := range r.Notices {
		text := n.String()
		now[text] = true
		if n.Severity != kube.Skipped && !a.noticed[text] {
			a.log.Warn(n.Severity.String(), "notice", text)
		}
	}
	a.noticed = now
}

// enforce waits for the first tree, opens the kernel's side, and runs the engine
// and beside it the builder.
func (a *agent) enforce(ctx context.Context, group *errgroup.Group) error {
	start := time.Now()
	first, err := a.firstTree(ctx)
	if err != nil {
		return err
	}
	switch {
	case a.options.mode.audits() && first == nil:
		return nil
	case a.options.mode.audits():
		return a.audit(ctx, group, first, start)
	case first == nil:
		return a.leaveEarly()
	}
	mine, err := a.takeTurn(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil // another agent enforces, and goes on
	case err != nil:
		return err
	}
	defer func() { a.warn("give the rules back", errors.Join(mine.Done(), mine.Yield())) }()
	queues, number, err := a.openQueues()
	if err != nil {
		return err
	}
	r, err := a.useQueue(number)
	if err != nil {
		return errors.Join(err, closeAll(queues))
	}
	defer a.startRejecting(r)()
	e, err := a.newEngine(queues, mine, r)
	if err != nil {
		return errors.Join(err, closeAll(queues))
	}
	a.kernel.Store(&kernel{e, queues, number})
	defer a.reportUnasked(e)()
	err = e.Run(ctx, first, func() {
		a.warn("end the handover", mine.Done())
		a.warn(keepApart, a.updateBridges(e))
		a.enforced(first)
		a.log.Info("enforcing", "policies", first.Stats().Policies, "addresses", first.Stats().Addresses,
			"source", a.source.String(), "after", time.Since(start), "pid", os.Getpid())
		group.Go(func() error { return a.build(ctx, e) })
		group.Go(func() error { return a.watchDrops(ctx, queues) })
		group.Go(func() error { return a.watchPodLinks(ctx, e) })
		group.Go(func() error { return a.watchBridges(ctx, e) })
	})
	if err = errors.Join(err, closeAll(queues)); err == nil && e.Passed() && !a.requested() {
		a.update(func(st *agentState) { st.enforcing, st.unapplied = false, errReplaced.Error() })
		return errReplaced
	}
	return err
}

// warn logs what went wrong without consequences for enforcement.
func (a *agent) warn(attempt string, err error) {
	if err != nil {
		a.log.Warn("cannot "+attempt, "error", err)
	}
}

// leaveEarly ends an agent that was stopped before it had anything to enforce:
// what an agent before it left is treated as its own, unless that one still runs.
func (a *agent) leaveEarly() error {
	if a.options.onStop == onStopKeep || !a.requested() {
		return nil
	}
	stopped, stop := context.WithCancel(context.Background())
	stop()
	mine, err := turn.Take(stopped, a.rules, hook.DefaultPrefix, false)
	if errors.Is(err, turn.ErrTaken) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(a.rules.Remove(), mine.Yield())
}

// firstTree compiles the first snapshot; it is nil when ctx ends before.
func (a *agent) firstTree(ctx context.Context) (*policy.Tree, error) {
	select {
	case <-ctx.Done():
		return nil, nil
	case n := <-a.newest:
		return a.compile(n)
	}
}

func (a *agent) compile(n news) (*policy.Tree, error) {
	start := time.Now()
	tree, err := a.trees.build(n)
	if err != nil {
		return nil, fmt.Errorf("compile what %s says: %w", a.source, err)
	}
	a.changes.Compiled(time.Since(start))
	return tree, nil
}

// build compiles and applies snapshots, one at a time. What cannot be applied
// is tried again until it can or something newer has come.
func (a *agent) build(ctx context.Context, e judge) error {
	var retry <-chan time.Time
	var n news
	for {
		select {
		case <-ctx.Done():
			return nil
		case newer := <-a.newest:
			if retry != nil { // it also brings what could not be applied
				newer.since = n.since
			}
			n = newer
		case <-retry:
		}
		retry = nil
		if err := a.apply(e, n); err != nil {
			a.changes.Failed()
			a.problem(err, func(st *agentState) { st.unapplied = err.Error() })
			retry = time.After(time.Second)
		}
	}
}

func (a *agent) apply(e judge, n news) error {
	start := time.Now()
	tree, err := a.compile(n)
	if err != nil {
		return err
	}
	compiled := time.Since(start)
	change, err := e.Apply(tree)
	if errors.Is(err, engine.ErrNotRunning) {
		return nil // the end has come
	}
	if err != nil {
		return err
	}
	a.changes.Applied(time.Since(start)-compiled, change)
	a.changes.Enforced(time.Since(n.since))
	a.enforced(tree)
	a.followBridges(e, tree)
	a.log.Info(a.options.mode.verb()+" a new state", "policies", tree.Stats().Policies, "addresses", tree.Stats().Addresses,
		"revokes", change.Revokes, "adds", change.Adds, "compile", compiled, "total", time.Since(start))
	return nil
}

// enforced notes that a tree is in force.
func (a *agent) enforced(t *policy.Tree) {
	a.update(func(st *agentState) {
		st.enforcing, st.applied, st.unapplied = true, time.Now(), ""
		st.waiting = time.Time{}
		if len(a.newest) > 0 {
			st.waiting = st.newest
		}
	})
	a.logOverLimit(t)
	if f := a.options.observers.enforced; f != nil {
		f(t)
	}
	for _, c := range t.Conflicts() {
		a.log.Warn("several pods claim one address", "address", c.Addr, "holder", c.Winner, "others", c.Losers)
	}
}
