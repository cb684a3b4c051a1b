package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/kube"
	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/policytest"
)

// changingCluster is the states of a small, adversarial cluster, one after the other. Who
// knows the seed knows them all, so the agent that is told of them and the test that
// judges the agent need not exchange them.
type changingCluster struct {
	random  *policy.Snapshot // without the marker
	mutated uint64           // how often it was changed; its seed
	seed    uint64
	before  *policy.Snapshot
}

// Bounds of a long history, which would wander: with too few policies nothing is
// asked about, and policytest adds more than it removes.
const (
	mostPods       = 24
	fewestPolicies = 6
	mostPolicies   = 12
)

// The marker is a pod whose name is the number of the state, at an address that no
// packet has. Nothing else changes with it, so a tree says which state it shows, and
// the step to it is as small as without.
var markerAddr = netip.MustParseAddr("198.51.100.1")

const markerNamespace = "marker"

func newChangingCluster(seed uint64) *changingCluster {
	c := &changingCluster{seed: seed, random: policytest.Random(seed, policytest.Size{})}
	c.random.Local = func(p *policy.Pod) bool { return p.NodeName != "node-2" }
	c.random.LocalPodCIDRs, c.random.UnknownPod = nil, policy.Deny
	return c
}

// next is the state after another change, with what changed. The first is state 0.
func (c *changingCluster) next() (state uint64, s *policy.Snapshot) {
	state = c.mutated
	if state > 0 {
		rng := policytest.NewRand(c.seed<<32 + state)
		c.random = mutated(rng, c.random)
		if n := len(c.random.Pods); n > mostPods {
			at := rng.IntN(n)
			c.random.Pods = slices.Delete(slices.Clone(c.random.Pods), at, at+1)
		}
		if n := len(c.random.Policies); n > mostPolicies {
			at := rng.IntN(n)
			c.random.Policies = slices.Delete(slices.Clone(c.random.Policies), at, at+1)
		}
	}
	c.mutated++
	shown := *c.random
	shown.Pods = append(slices.Clone(c.random.Pods), &policy.Pod{
		NamespacedName: policy.NamespacedName{Namespace: markerNamespace, Name: fmt.Sprint(state)},
		NodeName:       "node-2", Phase: policy.PhaseRunning, Addrs: []netip.Addr{markerAddr},
	})
	if shown.Since = policy.DeltaOf(&shown); c.before != nil {
		shown.Since = policytest.DeltaBetween(c.before, &shown)
	}
	c.before = &shown
	return state, &shown
}

// mutated is the cluster after one change that leaves enough policies.
func mutated(rng *rand.Rand, s *policy.Snapshot) *policy.Snapshot {
	for {
		if after := policytest.Mutate(rng, s); len(after.Policies) >= fewestPolicies {
			return after
		}
	}
}

// stateOf reads the marker.
func stateOf(names flow.Names) (state uint64, ok bool) {
	p, ok := names.Pod(markerAddr)
	if !ok || p.Namespace != markerNamespace {
		return 0, false
	}
	state, err := strconv.ParseUint(p.Name, 10, 64)
	return state, err == nil
}

// churnReport is what the agent under test says, a JSON object a line.
type churnReport struct {
	Kind  string `json:"kind"` // offered, enforced, record, lost or size
	At    int64  `json:"at"`   // Unix time in nanoseconds; of a record, when the packet was judged
	State uint64 `json:"state"`

	// Of a record.
	Src      netip.AddrPort  `json:"src,omitzero"`
	Dst      netip.AddrPort  `json:"dst,omitzero"`
	Protocol policy.Protocol `json:"protocol,omitempty"`
	Revision uint64          `json:"revision,omitempty"`
	Decision string          `json:"decision,omitempty"` // as decisionText has it

	Lost uint64 `json:"lost,omitempty"`

	// Of a size.
	Heap       uint64 `json:"heap,omitempty"` // bytes that were live at the last collection
	Goroutines int    `json:"goroutines,omitempty"`
}

// decisionText is all of a decision but the IDs of its outcomes.
func decisionText(d policy.Decision) string {
	d = policytest.Comparable(d)
	return fmt.Sprintf("%v audit=%v by %v; egress %+v; ingress %+v", d.Verdict, d.Audit, d.Direction, *d.Egress, *d.Ingress)
}

// churned is what runs beside and inside the agent.
type churned struct {
	mu    sync.Mutex
	out   *json.Encoder
	every time.Duration
	long  time.Duration
	seed  uint64
}

func (c *churned) say(r *churnReport) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.out.Encode(r) // without a reader the agent is about to be killed
}

func (c *churned) String() string { return "churn" }

// Watch changes the cluster at a steady rate for some time, and then keeps still.
func (c *churned) Watch(ctx context.Context, onSnapshot func(*policy.Snapshot, *kube.Report), _ func(error)) error {
	cluster := newChangingCluster(c.seed)
	start := time.Now()
	for {
		state, s := cluster.next()
		c.say(&churnReport{Kind: "offered", At: time.Now().UnixNano(), State: state})
		onSnapshot(s, &kube.Report{})
		due := time.Duration(cluster.mutated) * c.every
		if due > c.long {
			<-ctx.Done()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(due - time.Since(start)):
		}
	}
}

func (c *churned) enforced(t *policy.Tree) {
	if state, ok := stateOf(t); ok {
		c.say(&churnReport{Kind: "enforced", At: time.Now().UnixNano(), State: state})
	}
}

func (c *churned) Flows(records []flow.Record) {
	for i := range records {
		r := &records[i]
		state, ok := uint64(0), false
		if r.Names != nil {
			state, ok = stateOf(r.Names)
		}
		if !ok {
			continue // malformed: no tree decided
		}
		c.say(&churnReport{
			Kind: "record", At: r.Time, State: state, Revision: r.Revision, Protocol: r.Protocol,
			Src: netip.AddrPortFrom(r.Src, r.SrcPort), Dst: netip.AddrPortFrom(r.Dst, r.DstPort), Decision: decisionText(r.Decision),
		})
	}
}

func (c *churned) Lost(n uint64, now time.Time) {
	c.say(&churnReport{Kind: "lost", At: now.UnixNano(), Lost: n})
}

func (c *churned) measure(ctx context.Context) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	for ctx.Err() == nil {
		metrics.Read(live)
		c.say(&churnReport{Kind: "size", At: time.Now().UnixNano(), Heap: live[0].Value.Uint64(), Goroutines: runtime.NumGoroutine()})
		time.Sleep(time.Second)
	}
}

// asChurned in the environment makes this test binary an agent whose source is a
// changing cluster: "seed interval duration".
const asChurned = "NETVERDICT_TEST_CHURN"

func init() {
	if how := os.Getenv(asChurned); how != "" {
		os.Exit(runChurned(how, os.Args[1:]))
	}
}

func runChurned(how string, args []string) int {
	c := &churned{out: json.NewEncoder(os.Stdout)}
	f := strings.Fields(how)
	var errs [3]error
	c.seed, errs[0] = strconv.ParseUint(f[0], 10, 64)
	c.every, errs[1] = time.ParseDuration(f[1])
	c.long, errs[2] = time.ParseDuration(f[2])
	o := &agentOptions{}
	cmd := &cobra.Command{}
	cmd.SetContext(context.Background())
	o.addFlags(cmd)
	err := errors.Join(errors.Join(errs[:]...), cmd.ParseFlags(args))
	if err == nil {
		ctx, stop := untilSignal(cmd)
		defer stop()
		o.observers = observers{source: c, sinks: []flow.Sink{c}, enforced: c.enforced}
		go c.measure(ctx)
		err = o.run(ctx, env{os.Stdin, io.Discard, os.Stderr})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "netverdict:", err)
		return exitFailed
	}
	return exitOK
}
