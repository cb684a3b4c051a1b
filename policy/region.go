package policy

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// regions cuts the address space into parts that no ipBlock tells apart. An
// address's region is found by longest-prefix match over every CIDR and every
// exception; region 0 is the rest of the world.
type regions struct {
	byPrefix *bart.Table[uint32]
	blocks   [][]uint32 // per region: the peers whose block contains it, ascending
	local    []bool     // per region: inside Snapshot.LocalPodCIDRs
}

// edge is what changes when a longest-prefix match enters a prefix.
type edge struct {
	enter, leave []uint32 // peers
	local        bool
}

// localRange stands for "inside LocalPodCIDRs" among the peers of a region.
const localRange = ^uint32(0)

func newRegions(peers []peer, used []bool, localPodCIDRs []netip.Prefix) *regions {
	edges := map[netip.Prefix]edge{}
	for id := range peers {
		if peers[id].block != nil && used[id] {
			addEdges(edges, uint32(id), peers[id].block)
		}
	}
	for _, p := range localPodCIDRs {
		e := edges[p.Masked()]
		e.local = true
		edges[p.Masked()] = e
	}
	return cut(edges)
}

func addEdges(edges map[netip.Prefix]edge, id uint32, b *ipBlock) {
	for _, x := range b.except {
		if x.Bits() <= b.cidr.Bits() && x.Contains(b.cidr.Addr()) {
			return // nothing is left of the block
		}
	}
	e := edges[b.cidr]
	e.enter = append(e.enter, id)
	edges[b.cidr] = e
	for _, x := range b.except {
		e := edges[x]
		e.leave = append(e.leave, id)
		edges[x] = e
	}
}

// cut enters the prefixes from short to long, so that each one's parent is
// known: its region is the parent's, with the prefix's own edges applied.
func cut(edges map[netip.Prefix]edge) *regions {
	r := &regions{byPrefix: &bart.Table[uint32]{}, blocks: [][]uint32{nil}, local: []bool{false}}
	known := map[string]uint32{"": 0}
	prefixes := slices.SortedFunc(maps.Keys(edges), func(a, b netip.Prefix) int {
		if a.Bits() != b.Bits() {
			return a.Bits() - b.Bits()
		}
		return comparePrefixes(a, b)
	})
	for _, p := range prefixes {
		parent, _ := r.byPrefix.LookupPrefix(p)
		blocks, local := r.apply(parent, edges[p])
		r.byPrefix.Insert(p, r.intern(known, blocks, local))
	}
	return r
}

func (r *regions) apply(parent uint32, e edge) (blocks []uint32, local bool) {
	blocks = slices.Clone(r.blocks[parent])
	blocks = append(blocks, e.enter...)
	blocks = slices.DeleteFunc(blocks, func(id uint32) bool { return slices.Contains(e.leave, id) })
	slices.Sort(blocks)
	return slices.Compact(blocks), r.local[parent] || e.local
}

func (r *regions) intern(known map[string]uint32, blocks []uint32, local bool) uint32 {
	key := idsKey(nil, blocks)
	if local {
		key = binary.LittleEndian.AppendUint32(key, localRange)
	}
	id, ok := known[string(key)]
	if !ok {
		id = uint32(len(r.blocks))
		known[string(key)] = id
		r.blocks = append(r.blocks, blocks)
		r.local = append(r.local, local)
	}
	return id
}

// of returns the region of an address.
func (r *regions) of(a netip.Addr) uint32 {
	id, _ := r.byPrefix.Lookup(a)
	return id
}

// idsKey appends numbers as bytes, to use a list of them as a map key.
func idsKey(b []byte, ids []uint32) []byte {
	for _, id := range ids {
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return b
}
