package policy_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/policytest"
)

// What the tree says of addresses in pod ranges is what the objects say, looked
// through one by one.
func TestPodRanges(t *testing.T) {
	t.Parallel()
	var unknown, missing, known int
	for seed := range uint64(300) {
		s := policytest.Random(seed, policytest.Size{})
		if seed%3 > 0 && len(s.Nodes) > 0 {
			s.LocalPodCIDRs = s.Nodes[0].PodCIDRs
		}
		tree := compile(t, s)
		list := slices.Collect(tree.Known())
		rng := policytest.NewRand(seed)
		for range 200 {
			f := policytest.RandomFlow(rng, s)
			for _, a := range []netip.Addr{f.Src, f.Dst} {
				held := heldBySomebody(s, a)
				local := contains(s.LocalPodCIDRs, a)
				if got, want := tree.Unknown(a), local && !held; got != want {
					t.Fatalf("seed %d: Unknown(%v) = %t, want %t", seed, a, got, want)
				}
				if got, want := tree.Missing(a), !held && (local || ofSomeNode(s, a)); got != want {
					t.Fatalf("seed %d: Missing(%v) = %t, want %t", seed, a, got, want)
				}
				if got, want := slices.Contains(list, a), local && held; got != want {
					t.Fatalf("seed %d: %v in Known: %t, want %t", seed, a, got, want)
				}
				unknown, missing, known = unknown+ones(tree.Unknown(a)), missing+ones(tree.Missing(a)), known+ones(slices.Contains(list, a))
			}
		}
	}
	if unknown == 0 || missing == unknown || known == 0 {
		t.Errorf("%d unknown, %d missing, %d known addresses: this tested little", unknown, missing, known)
	}
}

func ones(b bool) int {
	if b {
		return 1
	}
	return 0
}

func contains(ranges []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

func ofSomeNode(s *policy.Snapshot, a netip.Addr) bool {
	return slices.ContainsFunc(s.Nodes, func(n *policy.Node) bool { return contains(n.PodCIDRs, a) })
}

func heldBySomebody(s *policy.Snapshot, a netip.Addr) bool {
	return slices.ContainsFunc(s.Nodes, func(n *policy.Node) bool { return slices.Contains(n.Addrs, a) }) ||
		slices.ContainsFunc(s.Pods, func(p *policy.Pod) bool {
			return p.Phase != policy.PhaseEnded && slices.Contains(p.Addrs, a) ||
				p.NodeName != "" && slices.Contains(p.HostAddrs, a)
		})
}
