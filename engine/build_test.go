package engine

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/policytest"
)

// TestTreesAreAskedWhileTheNextIsBuilt: trees share memory with the builder that
// makes the next one, so workers and whoever asks for explanations must not see it
// at work. It says most under the race detector, which is why it is here and not in
// package policy.
func TestTreesAreAskedWhileTheNextIsBuilt(t *testing.T) {
	t.Parallel()
	s := policytest.Random(7, policytest.Size{Namespaces: 8, Pods: 60, Policies: 30})
	rng := policytest.NewRand(7)
	builder := policy.NewBuilder(policy.Scope{Local: s.Local, LocalPodCIDRs: s.LocalPodCIDRs, UnknownPod: s.UnknownPod})
	var published atomic.Pointer[policy.Tree]
	var flows []policytest.Flow
	for range 200 {
		flows = append(flows, policytest.RandomFlow(rng, s))
	}
	var done atomic.Bool
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for !done.Load() {
				if tree := published.Load(); tree != nil {
					ask(t, tree, flows)
				}
			}
		})
	}
	for range 300 {
		builder.Apply(policy.DeltaOf(s))
		tree, err := builder.Build()
		if err != nil {
			t.Fatal(err)
		}
		published.Store(tree)
		s = policytest.Mutate(rng, s)
	}
	done.Store(true)
	readers.Wait()
}

// ask wants the same answers twice: a published tree never changes.
func ask(t *testing.T, tree *policy.Tree, flows []policytest.Flow) {
	var first []policy.Decision
	for range 2 {
		for i, f := range flows {
			d := f.Decide(tree.Decide)
			tree.Explain(f.Src, f.Dst, f.Protocol, f.Port)
			if len(first) < len(flows) {
				first = append(first, d)
			} else if diff := cmp.Diff(first[i], d); diff != "" {
				t.Errorf("%v: a tree that is in use changed its mind:\n%s", f, diff)
			}
		}
	}
	for _, d := range policy.Directions {
		for a := range tree.Policed(d) {
			tree.Pod(a)
		}
	}
}
