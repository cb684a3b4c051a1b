package policy_test

import (
	"iter"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/policytest"
)

// history is a builder that follows a random cluster through changes.
type history struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand
	builder *policy.Builder
	now     *policy.Snapshot // what the builder was told
	tree    *policy.Tree     // what it built last
	built   *policy.Snapshot // from what
	whole   int              // changes that comparing everything claimed
	bounded int              // steps whose affected addresses are known
}

func newHistory(t *testing.T, seed uint64, size policytest.Size, strain func(*policy.Builder)) *history {
	s := policytest.Random(seed, size)
	h := &history{t: t, seed: seed, rng: policytest.NewRand(seed + 1<<40), builder: policy.NewBuilder(scopeOf(s))}
	strain(h.builder)
	h.tell(s)
	h.build()
	return h
}

func scopeOf(s *policy.Snapshot) policy.Scope {
	return policy.Scope{Local: s.Local, LocalPodCIDRs: s.LocalPodCIDRs, UnknownPod: s.UnknownPod}
}

// tell brings the builder to a snapshot, in one of the ways that callers have.
func (h *history) tell(s *policy.Snapshot) {
	if h.now == nil || h.rng.IntN(8) == 0 {
		h.builder.Apply(policy.DeltaOf(s))
		h.now = s
		return
	}
	d := policytest.DeltaBetween(h.now, s)
	switch h.rng.IntN(4) {
	case 0: // twice
		h.builder.Apply(d)
	case 1: // there and back again
		h.builder.Apply(policytest.DeltaBetween(s, h.now))
	case 2: // in two parts
		h.builder.Apply(&policy.Delta{Policies: d.Policies})
		d = &policy.Delta{Namespaces: d.Namespaces, Pods: d.Pods, Nodes: d.Nodes}
	}
	h.builder.Apply(d)
	h.now = s
}

func (h *history) build() {
	h.t.Helper()
	tree, err := h.builder.Build()
	if err != nil {
		h.t.Fatalf("seed %d: %v", h.seed, err)
	}
	h.tree, h.built = tree, h.now
}

// step changes the cluster a few times, builds, and checks what came of it.
func (h *history) step(changes, flows int) (seen, claimed policy.Change) {
	h.t.Helper()
	s := h.now
	for range changes {
		s = policytest.Mutate(h.rng, s)
	}
	h.tell(s)
	before, old := h.tree, h.built
	h.build()
	h.checkTree(flows)
	return h.checkStep(before, old, flows)
}

// checkTree wants what compiling from scratch gives, and the oracle's decisions.
func (h *history) checkTree(flows int) {
	h.t.Helper()
	scratch := compile(h.t, h.now)
	if diff := cmp.Diff(scratch.Stats(), h.tree.Stats()); diff != "" {
		h.t.Fatalf("seed %d: statistics differ from those of a tree from scratch (-want +got):\n%s", h.seed, diff)
	}
	if diff := cmp.Diff(scratch.Conflicts(), h.tree.Conflicts(), compareAddrs); diff != "" {
		h.t.Fatalf("seed %d: conflicts differ (-want +got):\n%s", h.seed, diff)
	}
	for _, d := range policy.Directions {
		if want, got := inOrder(scratch.Policed(d)), inOrder(h.tree.Policed(d)); !slices.Equal(want, got) {
			h.t.Fatalf("seed %d: policed in %v: %v, want %v", h.seed, d, got, want)
		}
	}
	if want, got := inOrder(scratch.Known()), inOrder(h.tree.Known()); !slices.Equal(want, got) {
		h.t.Fatalf("seed %d: known %v, want %v", h.seed, got, want)
	}
	if diff := cmp.Diff(maps.Collect(scratch.Policies()), maps.Collect(h.tree.Policies())); diff != "" {
		h.t.Fatalf("seed %d: policies (-want +got):\n%s", h.seed, diff)
	}
	for _, pair := range [][2]*policy.Tree{{scratch, h.tree}, {h.tree, scratch}} {
		if c := policy.Compare(pair[0], pair[1]); c != (policy.Change{}) {
			h.t.Fatalf("seed %d: between the trees lies %+v", h.seed, c)
		}
	}
	decide := bind(h.now)
	for range flows {
		f := policytest.RandomFlow(h.rng, h.now)
		got := f.Decide(h.tree.Decide)
		if diff := cmp.Diff(f.Decide(decide), got); diff != "" {
			h.t.Fatalf("seed %d, %v: decision differs from the oracle's (-want +got):\n%s", h.seed, f, diff)
		}
		explain := func(t *policy.Tree) *policy.Explanation { return t.Explain(f.Src, f.Dst, f.Protocol, f.Port) }
		if diff := cmp.Diff(explain(scratch), explain(h.tree), compareAddrs, withoutIDs); diff != "" {
			h.t.Fatalf("seed %d, %v: explained otherwise (-want +got):\n%s", h.seed, f, diff)
		}
		if h.tree.Unknown(f.Src) != scratch.Unknown(f.Src) || h.tree.Missing(f.Src) != scratch.Missing(f.Src) {
			h.t.Fatalf("seed %d: unknown pod %v: %v", h.seed, f.Src, h.tree.Unknown(f.Src))
		}
	}
}

func inOrder(addrs iter.Seq[netip.Addr]) []netip.Addr {
	return slices.SortedFunc(addrs, netip.Addr.Compare)
}

var withoutIDs = cmpopts.IgnoreFields(policy.Outcome{}, "ID")

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// checkStep wants every decision that differs to be announced.
func (h *history) checkStep(before *policy.Tree, old *policy.Snapshot, flows int) (seen, claimed policy.Change) {
	h.t.Helper()
	claimed = policy.Compare(before, h.tree)
	affected, bounded := policy.Affected(before, h.tree)
	if bounded {
		h.bounded++
	}
	for i := range 2 * flows {
		f := policytest.RandomFlow(h.rng, []*policy.Snapshot{old, h.now}[i%2])
		was, is := f.Decide(before.Decide), f.Decide(h.tree.Decide)
		c := changeOf(was, is)
		seen = union(seen, c)
		if union(seen, claimed) != claimed {
			h.t.Fatalf("seed %d: %v went from %v to %v, but Compare says %+v", h.seed, f, was.Reported(), is.Reported(), claimed)
		}
		if bounded && c != (policy.Change{}) && !slices.Contains(affected, f.Src) && !slices.Contains(affected, f.Dst) {
			h.t.Fatalf("seed %d: %v went from %v to %v, but affected are %v", h.seed, f, was.Reported(), is.Reported(), affected)
		}
	}
	h.whole += count(policy.Compare(before, compile(h.t, h.now)))
	return seen, claimed
}

func changeOf(was, is policy.Decision) policy.Change {
	return policy.Change{
		Revokes: was.Verdict == policy.Allow && is.Verdict == policy.Deny,
		Adds:    was.Verdict == policy.Deny && is.Verdict == policy.Allow,
		Audits:  was.Reported() == policy.Allow && is.Audit,
	}
}

func union(a, b policy.Change) policy.Change {
	return policy.Change{Revokes: a.Revokes || b.Revokes, Adds: a.Adds || b.Adds, Audits: a.Audits || b.Audits, Denies: a.Denies || b.Denies}
}

// strains are what small clusters do not put a builder through by themselves. With
// a shift of 8 a bit of a row's root has several blocks below it.
var strains = []func(*policy.Builder){
	func(*policy.Builder) {},
	func(b *policy.Builder) { b.Strain(0, true, false) },
	func(b *policy.Builder) { b.Strain(1, true, false) },
	func(b *policy.Builder) { b.Strain(8, false, false) },
	func(b *policy.Builder) { b.Strain(0, false, true) },
}

// A tree that was changed step by step is the one that compiling from scratch
// makes, and what the builder says of each step is right.
func TestBuilderAgreesWithCompile(t *testing.T) {
	t.Parallel()
	var seen, claimed, whole, steps, bounded int
	for seed := range uint64(60) {
		size := policytest.Size{}
		if seed%4 == 0 { // more classes and programs than fit into one page
			size = policytest.Size{Namespaces: 12, Nodes: 4, Pods: 60, Policies: 30}
		}
		h := newHistory(t, seed, size, strains[seed%uint64(len(strains))])
		for range 20 {
			s, c := h.step(1+h.rng.IntN(3), 25)
			seen, claimed, steps = seen+count(s), claimed+count(c), steps+1
		}
		whole, bounded = whole+h.whole, bounded+h.bounded
	}
	t.Logf("%d steps, %d with known addresses: claimed %d changes, comparing everything %d, saw %d", steps, bounded, claimed, whole, seen)
	if seen == 0 || claimed > whole+whole/20 || bounded < steps*9/10 {
		t.Error("a step should be as exact as comparing everything, and know whom it concerns")
	}
}

func FuzzBuilderAgreesWithCompile(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		h := newHistory(t, seed, policytest.Size{}, strains[seed%uint64(len(strains))])
		for range 10 {
			h.step(1+h.rng.IntN(4), 20)
		}
	})
}

// A policy that the API would have refused holds up everything until it is
// corrected or gone, and the error names it.
func TestBuilderWaitsForCorrection(t *testing.T) {
	t.Parallel()
	b := policy.NewBuilder(policy.Scope{})
	b.Apply(policy.DeltaOf(smallCluster()))
	first, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := b.Build(); err != nil || again != first {
		t.Errorf("nothing changed: another tree (%v)", err)
	}
	name := policy.NamespacedName{Namespace: "default", Name: "server"}
	wrong := ingress("server", networkingv1.NetworkPolicyIngressRule{Ports: ports(90, 80)})
	b.Apply(&policy.Delta{Policies: map[policy.NamespacedName]*networkingv1.NetworkPolicy{name: wrong}})
	for range 2 {
		if _, err := b.Build(); err == nil || !strings.Contains(err.Error(), "default/server: spec.ingress[0].ports[0].port") {
			t.Fatalf("error %v, want one that names policy and field", err)
		}
	}
	gone := policy.NamespacedName{Namespace: "default", Name: "free"}
	b.Apply(&policy.Delta{Pods: map[policy.NamespacedName]*policy.Pod{gone: nil}})
	b.Apply(&policy.Delta{Policies: map[policy.NamespacedName]*networkingv1.NetworkPolicy{name: nil}})
	after, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if _, held := after.Pod(places["free"][0]); held || after.Stats().Policies != first.Stats().Policies-1 {
		t.Error("what was applied beside the mistake is lost")
	}
}

// Another scope is another tree: of it nothing is known but what comparing says.
func TestBuilderChangesScope(t *testing.T) {
	t.Parallel()
	s := smallCluster()
	b := policy.NewBuilder(policy.Scope{})
	b.Apply(policy.DeltaOf(s))
	before, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	b.SetScope(scopeOf(s))
	after, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if !after.Unknown(places["unknown"][0]) || before.Unknown(places["unknown"][0]) {
		t.Error("the scope makes no difference")
	}
	if _, known := policy.Affected(before, after); known {
		t.Error("a scope concerns everybody")
	}
	if c := policy.Compare(before, after); !c.Revokes {
		t.Errorf("%+v: unknown pods are denied now", c)
	}
}
