package policy

import (
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// region is a part of the address space that no ipBlock tells apart: the set of
// prefixes whose addresses are in the same blocks.
type region struct {
	key      string
	blocks   []*peer // whose block contains it, by id
	local    bool    // inside Scope.LocalPodCIDRs
	prefixes int     // that lead to it
	outside  *atom   // its addresses that no pod holds
}

// edge is what changes when a longest-prefix match enters a prefix.
type edge struct {
	enter, leave []*peer // in no order
	local        bool
}

func (e *edge) empty() bool { return len(e.enter)+len(e.leave) == 0 && !e.local }

// regions cuts the address space. An address's region is found by longest-prefix
// match over every CIDR and every exception; what matches none is in world.
type regions struct {
	// table holds the number of each region's outside endpoint, because that is
	// what trees want of it. They share it: it is changed in place only while owned.
	table *bart.Table[uint32]
	owned bool
	edges map[netip.Prefix]*edge
	byKey map[string]*region
	byEnd map[uint32]*region // by the number in table
	world *region
	meter *meter
}

// newRegions needs newRegion to make the outside atom of a region, with its
// endpoint.
func newRegions(m *meter) *regions {
	return &regions{
		meter: m,
		table: &bart.Table[uint32]{}, owned: true,
		edges: map[netip.Prefix]*edge{}, byKey: map[string]*region{}, byEnd: map[uint32]*region{},
	}
}

// of returns the region of an address.
func (r *regions) of(a netip.Addr) *region {
	if end, ok := r.table.Lookup(a); ok {
		return r.byEnd[end]
	}
	return r.world
}

func (r *regions) edge(p netip.Prefix) *edge {
	e := r.edges[p]
	if e == nil {
		e = &edge{}
		r.edges[p] = e
	}
	return e
}

// cutsNothing reports whether nothing is left of a block.
func (b *ipBlock) cutsNothing() bool {
	return slices.ContainsFunc(b.except, func(x netip.Prefix) bool {
		return x.Bits() <= b.cidr.Bits() && x.Contains(b.cidr.Addr())
	})
}

// prefixes are those at which a block begins and ends; nil if it is empty.
func (b *ipBlock) prefixes() []netip.Prefix {
	if b.cutsNothing() {
		return nil
	}
	list := []netip.Prefix{b.cidr}
	for _, x := range b.except { // sorted, and none is cidr
		if b.cidr.Contains(x.Addr()) && x != list[len(list)-1] {
			list = append(list, x)
		}
	}
	return list
}

// enter and leave change the edges of a block; recut makes them count.
func (r *regions) enter(p *peer) {
	for i, prefix := range p.block.prefixes() {
		e := r.edge(prefix)
		if i == 0 {
			e.enter = append(e.enter, p)
		} else {
			e.leave = append(e.leave, p)
		}
	}
}

func (r *regions) leave(p *peer) {
	for i, prefix := range p.block.prefixes() {
		e := r.edge(prefix)
		if i == 0 {
			e.enter = without(e.enter, p)
		} else {
			e.leave = without(e.leave, p)
		}
		if e.empty() {
			delete(r.edges, prefix)
		}
	}
}

func without(list []*peer, p *peer) []*peer {
	return slices.DeleteFunc(list, func(q *peer) bool { return q == p })
}

// persistAtMost is how many prefixes are cut anew on copied paths of the table;
// for more the whole table is copied.
const persistAtMost = 64

// recut works out the regions of prefixes again: of all that lie below some roots. The prefixes are
// entered from short to long, so that each one's parent is known: its region is
// the parent's, with the prefix's own edges applied. born makes the outside of a
// region that is new and returns its endpoint's number; the regions that no prefix
// leads to any more are returned.
func (r *regions) recut(affected []netip.Prefix, born func(*region) uint32) (gone []*region) {
	if len(affected) > persistAtMost && !r.owned {
		r.table, r.owned = r.table.Clone(), true
	}
	var left []*region
	for _, p := range affected {
		if end, ok := r.table.Get(p); ok {
			r.byEnd[end].prefixes--
			left = append(left, r.byEnd[end])
			r.delete(p)
		}
	}
	for _, p := range affected {
		e := r.edges[p]
		if e == nil {
			continue
		}
		parent := r.world
		if end, ok := r.table.LookupPrefix(p); ok {
			parent = r.byEnd[end]
		}
		in := r.intern(parent, e, born)
		in.prefixes++
		r.insert(p, in.outside.ends[0])
	}
	for _, old := range left {
		if old.prefixes == 0 && r.byKey[old.key] == old {
			delete(r.byKey, old.key)
			delete(r.byEnd, old.outside.ends[0])
			gone = append(gone, old)
		}
	}
	return gone
}

// below lists the prefixes at or below the roots, those that are there and those
// that are to be, from short to long.
func (r *regions) below(roots []netip.Prefix) []netip.Prefix {
	var list []netip.Prefix
	for _, root := range roots {
		for p := range r.table.Subnets(root) {
			list = append(list, p)
		}
		if r.edges[root] != nil {
			list = append(list, root)
		}
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if a.Bits() != b.Bits() {
			return a.Bits() - b.Bits()
		}
		return comparePrefixes(a, b)
	})
	return slices.Compact(list)
}

func (r *regions) insert(p netip.Prefix, end uint32) {
	if r.owned {
		r.table.Insert(p, end)
		return
	}
	r.table = r.table.InsertPersist(p, end)
}

func (r *regions) delete(p netip.Prefix) {
	if r.owned {
		r.table.Delete(p)
		return
	}
	r.table = r.table.DeletePersist(p)
}

// intern finds or makes the region that lies below parent behind an edge.
func (r *regions) intern(parent *region, e *edge, born func(*region) uint32) *region {
	r.meter.compared(len(parent.blocks) + len(e.enter) + len(e.leave))
	in := &region{blocks: slices.Clone(parent.blocks), local: parent.local || e.local}
	for _, p := range e.enter {
		in.blocks = insertPeer(in.blocks, p)
	}
	for _, p := range e.leave {
		in.blocks = removePeer(in.blocks, p)
	}
	key := peersKey(nil, in.blocks)
	if in.local {
		key = append(key, 1)
	}
	in.key = string(key)
	if known := r.byKey[in.key]; known != nil {
		return known
	}
	r.meter.joined(len(in.blocks))
	r.byKey[in.key] = in
	r.byEnd[born(in)] = in
	return in
}
