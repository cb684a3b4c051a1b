package policy

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// podRanges are the ranges that nodes give their pods addresses from. An address
// in one of them that nobody holds is a pod that the tree has not seen yet,
// or one that has gone.
type podRanges struct {
	local []netip.Prefix // Scope.LocalPodCIDRs, sorted, each once
	all   *bart.Lite     // these and Node.PodCIDRs of every node
}

func newPodRanges(local []netip.Prefix, nodes map[string]*Node) podRanges {
	r := podRanges{all: &bart.Lite{}}
	for _, p := range local {
		r.local = append(r.local, p.Masked())
		r.all.Insert(p)
	}
	slices.SortFunc(r.local, comparePrefixes)
	r.local = slices.Compact(r.local)
	for _, n := range nodes {
		for _, p := range n.PodCIDRs {
			r.all.Insert(p)
		}
	}
	return r
}

// LocalPodCIDRs are the ranges this node gives its pods addresses from, masked
// and sorted; empty if unknown pods are not looked for.
func (t *Tree) LocalPodCIDRs() []netip.Prefix { return t.ranges.local }

// Known lists the addresses in LocalPodCIDRs that a pod or a node holds: those of
// which Unknown is false.
func (t *Tree) Known() iter.Seq[netip.Addr] { return t.known.all() }

// Locals lists the addresses that pods of this node hold.
func (t *Tree) Locals() iter.Seq[netip.Addr] { return t.locals.all() }

func (r *podRanges) isLocal(a netip.Addr) bool {
	return slices.ContainsFunc(r.local, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Missing reports whether an address is in the pod range of some node, this one
// or another, but no known pod or node holds it. Where Unknown is true so is
// Missing. It does not allocate.
func (t *Tree) Missing(a netip.Addr) bool {
	_, held := t.addrs.endpoint(a)
	return !held && t.ranges.all.Lookup(a)
}

// UnknownPod is the verdict for addresses of which Unknown is true.
func (t *Tree) UnknownPod() Verdict { return t.outcomes[outcomeUnknownPod].Verdict }
