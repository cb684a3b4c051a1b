package main

import (
	"testing"
	"time"

	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/policytest"
)

// Whatever is left unbuilt, and whether the source says what changed or not, an
// agent's tree is that of its newest snapshot.
func TestTreesFollowSnapshots(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		rng := policytest.NewRand(seed)
		s := policytest.Random(seed, policytest.Size{})
		var agent trees
		n := news{s, nil, time.Time{}}
		for i := range 30 {
			next := policytest.Mutate(rng, s)
			if i%10 == 9 && len(s.Nodes) > 0 {
				next.LocalPodCIDRs = s.Nodes[0].PodCIDRs
			}
			newer := news{snapshot: next}
			if rng.IntN(5) > 0 {
				newer.changes = since(s, next)
			}
			if s = next; rng.IntN(2) == 0 {
				n = newer.after(n)
				continue
			}
			built(t, &agent, n)
			n = newer
		}
		got := built(t, &agent, n)
		want, err := policy.Compile(s)
		if err != nil {
			t.Fatal(err)
		}
		if c := policy.Compare(want, got); c != (policy.Change{}) || want.Stats() != got.Stats() {
			t.Fatalf("seed %d: %+v, and %+v, want %+v", seed, c, got.Stats(), want.Stats())
		}
	}
}

func built(t *testing.T, agent *trees, n news) *policy.Tree {
	t.Helper()
	tree, err := agent.build(n)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// since is what a source that knows would say.
func since(before, after *policy.Snapshot) *policy.Delta {
	a, d := policy.DeltaOf(before), policy.DeltaOf(after)
	d.All = false
	for name := range a.Pods {
		if d.Pods[name] == nil {
			d.Pods[name] = nil
		}
	}
	for name := range a.Policies {
		if d.Policies[name] == nil {
			d.Policies[name] = nil
		}
	}
	for name := range a.Namespaces {
		if d.Namespaces[name] == nil {
			d.Namespaces[name] = nil
		}
	}
	for name := range a.Nodes {
		if d.Nodes[name] == nil {
			d.Nodes[name] = nil
		}
	}
	return d
}
