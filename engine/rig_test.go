package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/flow/flowtest"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// patience bounds every wait for something that must happen.
const patience = time.Minute

// foreign are mark bits that belong to others.
const foreign = 0x00abcdef

func sceneMarks(tb testing.TB) hook.Marks {
	tb.Helper()
	m, err := hook.NewMarks(0xff000000)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// fakeRules stands in for the kernel's rules: it writes down what it is asked to do.
type fakeRules struct {
	mu      sync.Mutex
	calls   []string
	policed []hook.Policed // of Install and Prepare
	epoch   uint32
	fail    map[string]error // by the first word of the call
	broken  bool             // somebody removed the rules
	unsure  int              // how often Verify fails before it succeeds
	during  func(call string)
	flows   []hook.Flow // the connection table
	adopted bool        // rules were there before
}

var _ Rules = (*fakeRules)(nil)

// do writes a call down and lets the test look at the engine meanwhile.
func (r *fakeRules) do(name, call string) error {
	r.mu.Lock()
	r.calls = append(r.calls, call)
	err := r.fail[name]
	during := r.during
	r.mu.Unlock()
	if during != nil {
		during(call)
	}
	return err
}

func (r *fakeRules) addresses(p hook.Policed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.policed = append(r.policed, p)
}

func (r *fakeRules) nextEpoch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch++
}

func (r *fakeRules) Install(p hook.Policed) error {
	r.addresses(p)
	r.nextEpoch()
	return r.do("install", "install")
}

func (r *fakeRules) Prepare(p hook.Policed) error {
	r.addresses(p)
	return r.do("prepare", "prepare")
}

func (r *fakeRules) Switch(revokes, adds bool) error {
	r.nextEpoch()
	return r.do("switch", fmt.Sprintf("switch revokes=%t adds=%t", revokes, adds))
}

func (r *fakeRules) Epoch() uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch
}

func (r *fakeRules) SwitchFor(addrs []netip.Addr) error {
	r.nextEpoch()
	return r.do("switch", fmt.Sprintf("switch for %v", addrs))
}

func (r *fakeRules) Forget(addrs []netip.Addr) error {
	return r.do("forget", fmt.Sprintf("forget %v", addrs))
}

// Review asks about the flows of the test. Sweeps through all of them are not
// written down: they come when they like.
func (r *fakeRules) Review(s hook.Scope, judge func(*hook.Flow) hook.Fate) (done hook.Reviewed, err error) {
	if len(s.Addrs) > 0 {
		err = r.do("review", fmt.Sprintf("review %v", s.Addrs))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.flows {
		f := &r.flows[i]
		if s.Denied && !f.Cut || len(s.Addrs) > 0 && !slices.Contains(s.Addrs, f.Src) && !slices.Contains(s.Addrs, f.Dst) {
			continue
		}
		done.Seen++
		switch judge(f) {
		case hook.Cut:
			f.Cut = true
			done.Cut++
		case hook.Free:
			f.Cut = false
			done.Freed++
		}
	}
	return done, err
}

func (r *fakeRules) Finish() error { return r.do("finish", "finish") }
func (r *fakeRules) Remove() error { return r.do("remove", "remove") }
func (r *fakeRules) Hurry()        {}

func (r *fakeRules) Adopted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.adopted
}

// Verify puts the rules back once, in a new epoch. It is not written down: the
// engine calls it as often as it likes.
func (r *fakeRules) Verify() (repaired bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unsure > 0 {
		r.unsure--
		return false, errFake
	}
	repaired, r.broken = r.broken, false
	if repaired {
		r.epoch++
	}
	return repaired, nil
}

func (r *fakeRules) failing(name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail == nil {
		r.fail = map[string]error{}
	}
	r.fail[name] = err
}

// vandalize breaks the rules; Verify finds that after so many failures.
func (r *fakeRules) vandalize(failures int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken, r.unsure = true, failures
}

func (r *fakeRules) watch(during func(call string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.during = during
}

// taken returns the calls since it was last asked.
func (r *fakeRules) taken() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// rig is an engine between a source in memory and rules that are not there.
type rig struct {
	t       *testing.T
	rules   *fakeRules
	source  *queue.Memory
	marks   hook.Marks
	sink    *flowtest.Sink
	log     *logBuffer
	cfg     Config
	engine  *Engine
	stopRun context.CancelFunc
	ended   chan error
}

// newRig makes an engine; tweak may change its configuration.
func newRig(t *testing.T, tweak func(*Config)) *rig {
	t.Helper()
	r := &rig{
		t: t, rules: &fakeRules{}, source: queue.NewMemory(), marks: sceneMarks(t),
		sink: &flowtest.Sink{}, log: &logBuffer{}, ended: make(chan error, 1), stopRun: func() {},
	}
	r.cfg = Config{
		Rules: r.rules, Marks: r.marks, Sources: []queue.Source{r.source},
		CacheSize: 64, RingSize: 64, Collector: flow.NewCollector(r.sink), Log: flow.All,
		Logger: slog.New(slog.NewTextHandler(r.log, nil)),
	}
	if tweak != nil {
		tweak(&r.cfg)
	}
	var err error
	if r.engine, err = New(r.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.records() })
	return r
}

// run starts the engine and returns when it enforces the tree. The test ends it.
func (r *rig) run(first *policy.Tree) {
	r.t.Helper()
	ready := r.start(first)
	select {
	case <-ready:
	case err := <-r.ended:
		r.t.Fatalf("Run ended: %v", err)
	case <-time.After(patience):
		r.t.Fatal("the engine is not ready")
	}
	r.t.Cleanup(func() {
		if err := r.stop(); err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
}

// start starts the engine; ready is closed when it enforces the tree.
func (r *rig) start(first *policy.Tree) (ready chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	r.stopRun = cancel
	ready = make(chan struct{})
	go func() { r.ended <- r.engine.Run(ctx, first, func() { close(ready) }) }()
	return ready
}

// stop ends the engine and returns what Run returned.
func (r *rig) stop() error {
	r.t.Helper()
	r.stopRun()
	return r.wait()
}

// wait returns what Run returned.
func (r *rig) wait() error {
	r.t.Helper()
	select {
	case err := <-r.ended:
		r.ended <- nil // for whoever asks again
		return err
	case <-time.After(patience):
		r.t.Fatal("Run does not end")
		return nil
	}
}

// records closes the collector and returns all flow records.
func (r *rig) records() []flow.Record {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.cfg.Collector.Close(ctx); err != nil {
		r.t.Error(err)
	}
	return r.sink.Records()
}

// judge sends one packet through the running engine and returns its answer; ok
// is false if it is on hold.
func (r *rig) judge(p queue.Packet) (a queue.Answer, ok bool) {
	id := r.source.Inject(p)
	r.source.Settle()
	return r.answer(id)
}

func (r *rig) answer(id uint32) (a queue.Answer, ok bool) {
	for _, given := range r.source.Answers() {
		if given.ID == id {
			return given.Answer, true
		}
	}
	return queue.Answer{}, false
}

// verdict is the answer that the engine gives about a fresh packet.
func (r *rig) verdict(v policy.Verdict, epoch uint32) queue.Answer {
	return queue.Answer{Action: queue.Repeat, SetMark: true, Mark: r.marks.Verdict(0, v, epoch)}
}

// apply demands that Apply succeeds.
func (r *rig) apply(tree *policy.Tree) policy.Change {
	r.t.Helper()
	change, err := r.engine.Apply(tree)
	if err != nil {
		r.t.Fatal(err)
	}
	return change
}

// eventually waits for what another goroutine is about to do.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}

var errFake = errors.New("the kernel is in a bad mood")
