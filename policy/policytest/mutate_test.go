package policytest

import (
	"bytes"
	"slices"
	"testing"

	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/oracle"
)

// difference counts the objects that two lists do not share.
func difference[T comparable](a, b []T) (gone, came int) {
	for _, x := range a {
		if !slices.Contains(b, x) {
			gone++
		}
	}
	for _, x := range b {
		if !slices.Contains(a, x) {
			came++
		}
	}
	return gone, came
}

// kindsOf counts what happened to the objects of one kind, and how many objects
// did change.
func kindsOf[T comparable](f features, kind string, before, after []T) int {
	gone, came := difference(before, after)
	f.when(gone == 0 && came == 1, kind+" added")
	f.when(gone == 1 && came == 0, kind+" removed")
	f.when(gone == 1 && came == 1, kind+" edited")
	return max(gone, came)
}

func TestMutateChangesOneObject(t *testing.T) {
	f := features{}
	for seed := range uint64(seeds / 5) {
		first, rng := Random(seed, Small), NewRand(seed)
		before := Manifests(first)
		s := first
		for range 20 {
			next := Mutate(rng, s)
			checkOneChange(t, f, seed, s, next)
			checkValid(t, seed, next)
			s = next
		}
		// Later snapshots share objects with the first, so a write to any would show.
		if !bytes.Equal(before, Manifests(first)) {
			t.Fatalf("seed %d: Mutate wrote to the snapshot it was given", seed)
		}
	}
	f.demand(t, 10)
}

func checkOneChange(t *testing.T, f features, seed uint64, s, next *policy.Snapshot) {
	t.Helper()
	changes := kindsOf(f, "pod", s.Pods, next.Pods) + kindsOf(f, "namespace", s.Namespaces, next.Namespaces) +
		kindsOf(f, "policy", s.Policies, next.Policies)
	_, nodes := difference(s.Nodes, next.Nodes)
	f.when(nodes == 1, "node edited")
	if changes+nodes > 1 {
		t.Fatalf("seed %d: %d objects changed, want at most one", seed, changes+nodes)
	}
}

// TestMutateMatters demands that changes are visible to traffic often enough to
// catch an incremental update that does nothing.
func TestMutateMatters(t *testing.T) {
	visible := 0
	for seed := range uint64(seeds) {
		s, rng := Random(seed, Small), NewRand(seed)
		next := Mutate(rng, s)
		for range 60 {
			if f := RandomFlow(rng, next); verdictsDiffer(s, next, f) {
				visible++
				break
			}
		}
	}
	if visible < seeds/10 {
		t.Errorf("%d of %d changes showed in a verdict, want at least a tenth", visible, seeds)
	}
}

func verdictsDiffer(a, b *policy.Snapshot, f Flow) bool {
	return oracle.Decide(a, f.Src, f.Dst, f.Protocol, f.Port).Verdict != oracle.Decide(b, f.Src, f.Dst, f.Protocol, f.Port).Verdict
}
