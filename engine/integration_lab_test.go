package engine_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/bench/netlab/netlabtest"
	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/flow/flowtest"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

const (
	// patience bounds every wait for something that must happen, on a machine that is
	// slow and busy with other tests.
	patience = time.Minute
	// silence is how long no answer must come to be called denied.
	silence      = 600 * time.Millisecond
	silenceSteps = 6
)

// network is one node with pods in network namespaces, and the engine that
// enforces on it: real rules, a real queue, real packets.
//
//	client 10.1.0.1 fd00:1::1 ─┐
//	server 10.1.0.2 fd00:1::2 ─┼─ node 172.31.255.1 fd6e:7600::1
//	other  10.1.0.3 fd00:1::3 ─┘   (rules, queue, engine)
//
// All pods are known to the engine from the start, except late (10.1.0.9 fd00:1::9).
type network struct {
	t                           testing.TB
	backend                     hook.Backend
	lab                         *netlab.Lab
	node                        *netlab.Node
	client, server, other, late *netlab.Host

	hook      *hook.Hook
	queue     *queue.Queue
	engine    *engine.Engine
	collector *flow.Collector
	flows     *flowLog
	sinks     []flow.Sink     // beside flows, when set before the start
	stop      func() error    // ends the engine; nil before it runs
	builder   *policy.Builder // nil: each tree is compiled on its own
}

// options are what tests change about the engine.
type options struct {
	hook   hook.Config
	queue  queue.Config
	engine engine.Config
}

// eachBackend runs a test with both of the kernel's packet filters, at once.
func eachBackend(t *testing.T, test func(t *testing.T, n *network)) {
	t.Helper()
	t.Parallel()
	for _, b := range []hook.Backend{hook.NFT, hook.Legacy} {
		t.Run(b.String(), func(t *testing.T) {
			t.Parallel()
			test(t, newNetwork(t, b))
		})
	}
}

// eachBackendInTurn is eachBackend for tests that load the machine.
func eachBackendInTurn(t *testing.T, test func(t *testing.T, n *network)) {
	t.Helper()
	for _, b := range []hook.Backend{hook.NFT, hook.Legacy} {
		t.Run(b.String(), func(t *testing.T) { test(t, newNetwork(t, b)) })
	}
}

func newNetwork(t testing.TB, b hook.Backend) *network {
	t.Helper()
	lab := netlabtest.New(t)
	var err error
	n := &network{t: t, backend: b, lab: lab}
	n.node, err = lab.AddNode("node", netlab.NodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.client, n.server, n.other, n.late = n.host("client", 1), n.host("server", 2), n.host("other", 3), n.host("late", 9)
	return n
}

func (n *network) host(name string, number byte) *netlab.Host {
	n.t.Helper()
	v6 := netip.MustParseAddr("fd00:1::").As16()
	v6[15] = number
	h, err := n.node.AddHost(name, netip.AddrFrom4([4]byte{10, 1, 0, number}), netip.AddrFrom16(v6))
	if err != nil {
		n.t.Fatal(err)
	}
	return h
}

// snapshot is what the engine knows, with the late pod or without.
func (n *network) snapshot(late bool, policies ...*networkingv1.NetworkPolicy) *policy.Snapshot {
	s := &policy.Snapshot{
		Policies:      policies,
		Nodes:         []*policy.Node{{Name: "node", Addrs: n.node.Addrs()}},
		LocalPodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")},
	}
	for _, h := range n.node.Hosts() {
		if h == n.late && !late {
			continue
		}
		s.Pods = append(s.Pods, &policy.Pod{
			NamespacedName: policy.NamespacedName{Namespace: "shop", Name: h.Name()},
			Labels:         map[string]string{"app": h.Name()},
			NodeName:       "node",
			Addrs:          h.Addrs(),
			Phase:          policy.PhaseRunning,
		})
	}
	return s
}

func (n *network) tree(policies ...*networkingv1.NetworkPolicy) *policy.Tree {
	return n.compile(n.snapshot(false, policies...))
}

func (n *network) compile(s *policy.Snapshot) *policy.Tree {
	n.t.Helper()
	build := func() (*policy.Tree, error) { return policy.Compile(s) }
	if n.builder != nil {
		n.builder.Apply(policy.DeltaOf(s))
		build = n.builder.Build
	}
	tree, err := build()
	if err != nil {
		n.t.Fatal(err)
	}
	return tree
}

// consecutive makes trees of which each knows what it changes, as an agent's do.
func (n *network) consecutive() {
	n.builder = policy.NewBuilder(policy.Scope{
		Local: func(*policy.Pod) bool { return true }, LocalPodCIDRs: n.snapshot(false).LocalPodCIDRs,
	})
}

// start enforces policies; the test ends it, and sees that nothing is left.
func (n *network) start(policies ...*networkingv1.NetworkPolicy) { n.startWith(nil, policies...) }

func (n *network) startWith(tweak func(*options), policies ...*networkingv1.NetworkPolicy) {
	n.t.Helper()
	n.flows = &flowLog{}
	n.collector = flow.NewCollector(append([]flow.Sink{n.flows}, n.sinks...)...)
	o := options{
		hook: hook.Config{
			Backend: n.backend, IPv4: true, IPv6: true, QueueNum: queueNum,
			AllowTimeout: 10 * time.Minute, DenyTimeout: 10 * time.Minute, // longer than any test
		},
		queue: queue.Config{Num: queueNum, Tick: 10 * time.Millisecond},
		engine: engine.Config{
			CacheSize: 1024, RingSize: 1024, Collector: n.collector, Log: flow.All,
			Logger: slog.New(slog.NewTextHandler(n.t.Output(), nil)),
		},
	}
	if tweak != nil {
		tweak(&o)
	}
	n.open(&o)
	var err error
	if n.engine, err = engine.New(o.engine); err != nil {
		n.t.Fatal(err)
	}
	n.run(n.tree(policies...), o.hook)
}

const queueNum = 8050

// open opens rules and queue in the node's namespace, where they stay whichever
// thread uses them.
func (n *network) open(o *options) {
	n.t.Helper()
	err := n.node.Do(func() (err error) {
		if n.hook, err = hook.Open(o.hook); err != nil {
			return err
		}
		n.queue, err = queue.Open(o.queue)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	o.engine.Rules, o.engine.Marks, o.engine.Sources = n.hook, n.hook.Marks(), []queue.Source{n.queue}
}

// run runs the engine until the test ends.
func (n *network) run(first *policy.Tree, cfg hook.Config) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- n.engine.Run(ctx, first, func() { close(ready) }) }()
	n.stop = sync.OnceValue(func() error {
		cancel()
		flush, done := context.WithTimeout(context.Background(), patience)
		defer done()
		return errors.Join(<-ended, n.collector.Close(flush))
	})
	n.t.Cleanup(func() {
		if err := n.stop(); err != nil {
			n.t.Errorf("the engine: %v", err)
		}
		n.demandNothingLeft(cfg)
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		n.t.Fatalf("the engine ended: %v", err)
	case <-time.After(3 * patience):
		n.t.Fatal("the engine is not ready")
	}
}

func (n *network) demandNothingLeft(cfg hook.Config) {
	n.t.Helper()
	err := n.node.Do(func() error {
		left, err := hook.Leftovers(cfg)
		if len(left) > 0 {
			err = errors.Join(err, fmt.Errorf("left behind: %v", left))
		}
		return err
	})
	if err != nil {
		n.t.Error(err)
	}
}

// apply enforces other policies.
func (n *network) apply(policies ...*networkingv1.NetworkPolicy) policy.Change {
	n.t.Helper()
	return n.applyTree(n.tree(policies...))
}

func (n *network) applyTree(tree *policy.Tree) policy.Change {
	n.t.Helper()
	change, err := n.engine.Apply(tree)
	if err != nil {
		n.t.Fatal(err)
	}
	return change
}

// queued is how many packets user space has seen, when none waits for it any more.
func (n *network) queued() uint64 {
	n.t.Helper()
	eventually(n.t, "the queue to be empty", func() bool { return n.queue.Stats().Kernel.Waiting == 0 })
	return n.queue.Stats().Packets
}

// demandQueued checks how many packets user space saw in all. A client that waits a
// second for a verdict sends its SYN again, which is another packet.
func (n *network) demandQueued(when string, want uint64) {
	n.t.Helper()
	if got := n.queued(); got < want || got > want+n.repeatedSYNs() {
		n.t.Errorf("%s: user space saw %d packets, want %d; flows: %v", when, got, want, n.flows.lines())
	}
}

// repeatedSYNs is how many the pods' kernels have sent again so far.
func (n *network) repeatedSYNs() (sum uint64) {
	n.t.Helper()
	for _, h := range n.node.Hosts() {
		count, err := h.RepeatedSYNs()
		if err != nil {
			n.t.Fatal(err)
		}
		sum += count
	}
	return sum
}

// matched is how many packets the rules of a purpose have matched.
func (n *network) matched(p hook.Purpose) uint64 {
	n.t.Helper()
	c, err := n.hook.Counters()
	if err != nil {
		n.t.Fatal(err)
	}
	return c[p].Packets
}

// within bounds one wait.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for what is about to happen.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", patience, what)
		}
	}
}

// flowLog keeps every record.
type flowLog struct{ flowtest.Sink }

// lines are the records as people read them.
func (l *flowLog) lines() (lines []string) {
	for _, r := range l.Records() {
		lines = append(lines, fmt.Sprintf("%v %v>%v:%d/%v", r.Decision.Verdict, r.Src, r.Dst, r.DstPort, r.Protocol))
	}
	return lines
}
