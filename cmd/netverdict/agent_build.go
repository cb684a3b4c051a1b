package main

import (
	"net/netip"
	"slices"

	"github.com/netverdict/netverdict/policy"
)

// trees builds an agent's trees, each from the one before and from what changed.
// One goroutine at a time uses it.
type trees struct {
	builder *policy.Builder
	ranges  []netip.Prefix // of the scope
	limits  policy.Limits
}

// build makes the tree of the newest snapshot.
func (t *trees) build(n news) (*policy.Tree, error) {
	s := n.snapshot
	scope := policy.Scope{Local: s.Local, LocalPodCIDRs: s.LocalPodCIDRs, UnknownPod: s.UnknownPod, Limits: t.limits}
	switch {
	case t.builder == nil:
		t.builder = policy.NewBuilder(scope)
	case !slices.Equal(t.ranges, s.LocalPodCIDRs): // the rest of it comes from flags
		t.builder.SetScope(scope)
	}
	t.ranges = s.LocalPodCIDRs
	changes := n.changes
	if changes == nil {
		changes = policy.DeltaOf(s)
	}
	t.builder.Apply(changes)
	return t.builder.Build()
}

// after makes n the news that also tells of a snapshot which nobody has built.
func (n news) after(unbuilt news) news {
	n.since = unbuilt.since
	if n.changes != nil && unbuilt.changes != nil {
		all := &policy.Delta{}
		all.Add(unbuilt.changes)
		all.Add(n.changes)
		n.changes = all
	} else {
		n.changes = nil
	}
	return n
}
