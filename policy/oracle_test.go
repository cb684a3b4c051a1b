package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/oracle"
	"github.com/netverdict/netverdict/policy/policytest"
)

// Every decision of the compiled tree must be the oracle's, down to the policy
// and rule that it names: 1,000 clusters × 300 connections.
func TestTreeAgreesWithOracle(t *testing.T) {
	t.Parallel()
	clusters, flows := 1000, 300
	seen := map[policy.Verdict]int{}
	for seed := range uint64(clusters) {
		compareWithOracle(t, seed, flows, seen)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d decisions compared: %v", clusters*flows, seen)
	for _, v := range [...]policy.Verdict{policy.Allow, policy.Deny, policy.Audit} {
		if seen[v] < clusters*flows/50 {
			t.Errorf("%d decisions to %v: too few to mean anything", seen[v], v)
		}
	}
}

// FuzzTreeAgreesWithOracle is the same without end.
func FuzzTreeAgreesWithOracle(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) { compareWithOracle(t, seed, 100, map[policy.Verdict]int{}) })
}

// compareWithOracle counts in seen what was decided.
func compareWithOracle(t *testing.T, seed uint64, flows int, seen map[policy.Verdict]int) {
	t.Helper()
	s := policytest.Random(seed, policytest.Size{})
	tree := compile(t, s)
	rng := policytest.NewRand(seed + 1<<32)
	for range flows {
		f := policytest.RandomFlow(rng, s)
		got, want := f.Decide(tree.Decide), f.Decide(bind(s))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d, %v: decision differs from the oracle's (-want +got):\n%s", seed, f, diff)
		}
		checkExplanation(t, tree, f, got)
		seen[got.Reported()]++
	}
}

func compile(t testing.TB, s *policy.Snapshot) *policy.Tree {
	t.Helper()
	tree, err := policy.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func bind(s *policy.Snapshot) func(src, dst netip.Addr, p policy.Protocol, port uint16) policy.Decision {
	return func(src, dst netip.Addr, p policy.Protocol, port uint16) policy.Decision {
		return oracle.Decide(s, src, dst, p, port)
	}
}

// checkExplanation demands that the steps lead to the decision: the rule that
// decided is the first that matched, and with a default deny none did.
func checkExplanation(t *testing.T, tree *policy.Tree, f policytest.Flow, d policy.Decision) {
	t.Helper()
	e := tree.Explain(f.Src, f.Dst, f.Protocol, f.Port)
	if diff := cmp.Diff(d, policytest.Comparable(e.Decision)); diff != "" {
		t.Fatalf("%v: Explain decides otherwise: %s", f, diff)
	}
	for _, side := range e.Sides {
		want, got := "", ""
		if side.Outcome.Reason == policy.ReasonPolicy {
			want = fmt.Sprint(side.Outcome.Policy, side.Outcome.Rule)
		}
		exempt := side.Outcome.Reason == policy.ReasonSelf || side.Outcome.Reason == policy.ReasonNodeTraffic
		for _, p := range side.Policies {
			for _, r := range p.Rules {
				if r.Matched && got == "" {
					got = fmt.Sprint(p.Policy, r.Rule)
				}
				if r.Decided != (fmt.Sprint(p.Policy, r.Rule) == want) {
					t.Fatalf("%v: rule %v of %v says decided=%v", f, r.Rule, p.Policy, r.Decided)
				}
			}
		}
		if got != want && !exempt {
			t.Fatalf("%v: %v decided by %q, but the first rule that matches in the steps is %q", f, side.Direction, want, got)
		}
	}
}

// The tree is a function of the objects, not of their order.
func TestTreeIgnoresOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		s := policytest.Random(seed, policytest.Size{})
		shuffled := *s
		rng := policytest.NewRand(seed)
		shuffled.Pods = shuffle(rng, s.Pods)
		shuffled.Policies = shuffle(rng, s.Policies)
		shuffled.Namespaces = shuffle(rng, s.Namespaces)
		shuffled.Nodes = shuffle(rng, s.Nodes)
		a, b := compile(t, s), compile(t, &shuffled)
		if diff := cmp.Diff(a.Stats(), b.Stats()); diff != "" {
			t.Fatalf("seed %d: order changed the tree: %s", seed, diff)
		}
		for range 100 {
			f := policytest.RandomFlow(rng, s)
			if diff := cmp.Diff(f.Decide(a.Decide), f.Decide(b.Decide)); diff != "" {
				t.Fatalf("seed %d, %v: order changed the decision: %s", seed, f, diff)
			}
		}
		if c := policy.Compare(a, b); c != (policy.Change{}) {
			t.Fatalf("seed %d: order made Compare see %+v", seed, c)
		}
	}
}

func shuffle[T any](rng *rand.Rand, in []T) []T {
	out := slices.Clone(in)
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// Compare must notice every verdict that changes; claiming more is allowed, but
// not for snapshots that are the same.
func TestCompareMissesNothing(t *testing.T) {
	t.Parallel()
	var claimed, real int
	for seed := range uint64(600) {
		old := policytest.Random(seed, policytest.Size{})
		rng := policytest.NewRand(seed)
		now := policytest.Mutate(rng, old)
		before, after := compile(t, old), compile(t, now)
		c := policy.Compare(before, after)
		var seen policy.Change
		for i := range 400 {
			f := policytest.RandomFlow(rng, []*policy.Snapshot{old, now}[i%2])
			was, is := f.Decide(before.Decide), f.Decide(after.Decide)
			seen.Revokes = seen.Revokes || was.Verdict == policy.Allow && is.Verdict == policy.Deny
			seen.Adds = seen.Adds || was.Verdict == policy.Deny && is.Verdict == policy.Allow
			seen.Audits = seen.Audits || was.Reported() == policy.Allow && is.Audit
			if seen.Revokes && !c.Revokes || seen.Adds && !c.Adds || seen.Audits && !c.Audits {
				t.Fatalf("seed %d: %v went from %v to %v, but Compare says %+v", seed, f, was.Reported(), is.Reported(), c)
			}
		}
		claimed += count(c)
		real += count(seen)
	}
	t.Logf("claimed %d changes, saw %d", claimed, real)
	if real == 0 || claimed > 3*real {
		t.Errorf("Compare claimed %d changes, %d were seen: it should be exact in most cases", claimed, real)
	}
}

func count(c policy.Change) (n int) {
	for _, b := range [...]bool{c.Revokes, c.Adds, c.Audits} {
		if b {
			n++
		}
	}
	return n
}
