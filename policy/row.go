package policy

import (
	"cmp"
	"math/bits"
	"slices"
)

// program is what judges the pods of one profile in one direction: the policies
// that isolate them there, tier by tier. Each program has one row.
type program struct {
	policies []uint32 // NetworkPolicy tier, into parsed policies; ascending
	tiers    []tier
	hash     uint64 // fingerprint
}

// A row answers "peer class → ref" for one program. Most peers have the same
// answer, so a row is a tree of two levels of rowBlocks, each holding the answer
// of its ordinary children and a bit for each child that is not ordinary. A
// block of the first level spans blockPages pages, one of the second a page of
// pageSize classes, and special children are found by counting bits:
//
//	blocks: [ ordinary ref | first | 0100…1 ]
//	pages:                   └─▶ [ ordinary ref | first | 0010…0 ]  one per bit
//	cells:                                        └─▶ ref, ref, …   one per bit
//
// The usual decision, "no rule mentions this peer", reads one block of 16 bytes.
// Small pages keep it so when a rule's peers are strewn over all namespaces.
type rowBlock struct {
	special  uint64 // bit i: child i is not ordinary
	first    uint32 // place of the lowest special child
	ordinary ref
}

// child returns the place of a special child.
func (b *rowBlock) child(i uint32) (at uint32, special bool) {
	bit := uint64(1) << (i % 64)
	return b.first + uint32(bits.OnesCount64(b.special&(bit-1))), b.special&bit != 0
}

// Rows below firstRow are not in the table: their answer is the same for every
// peer, the fixed outcome of the same number.
const firstRow = fixedOutcomes

// rowTable builds and then holds the rows of a tree.
type rowTable struct {
	stride uint32     // blocks per row
	blocks []rowBlock // by row
	pages  []rowBlock
	cells  []ref
	ports  portTable
}

// newRowTable makes a table for rows over so many pages of classes.
func newRowTable(pages uint32) *rowTable {
	stride := (pages + blockPages - 1) / blockPages
	return &rowTable{stride: stride, ports: portTable{known: map[string]ref{}}}
}

// ruleMask says for which classes of a page a rule's peers match, or which of
// them have one signature of named ports (then rule is its number).
type ruleMask struct {
	page uint32
	rule uint32
	mask uint64
}

// rowBuilder fills one row.
type rowBuilder struct {
	table   *rowTable
	classes *classes
	tiers   []tier
	anyPeer []uint32 // rules that match every peer
	subsets subsets
	values  map[[2]uint32]ref // by subset and port signature
	scratch []part
}

// part is those classes of a page for which the same rules match.
type part struct {
	mask   uint64
	subset uint32
	sig    uint32
}

// add builds the row of a program and returns its number.
func (t *rowTable) add(tiers []tier, peers []peer, c *classes) uint32 {
	b := rowBuilder{table: t, classes: c, tiers: tiers, values: map[[2]uint32]ref{}}
	masks, named := b.masks(peers)
	base := len(t.blocks)
	ordinary := b.value(b.anySubset(), 0)
	for range t.stride {
		t.blocks = append(t.blocks, rowBlock{ordinary: ordinary})
	}
	for len(masks) > 0 || len(named) > 0 {
		page := nextPage(masks, named)
		onPage, rest := splitPage(masks, page)
		sigs, restNamed := splitPage(named, page)
		t.enter(base, page, b.page(onPage, sigs))
		masks, named = rest, restNamed
	}
	return firstRow + uint32(base)/t.stride
}

// enter adds a page to the row at base; pages come in ascending order.
func (t *rowTable) enter(base int, page uint32, p rowBlock) {
	b := &t.blocks[base+int(page/blockPages)]
	if p.special == 0 && p.ordinary == b.ordinary {
		return
	}
	if b.special == 0 {
		b.first = uint32(len(t.pages))
	}
	b.special |= 1 << (page % blockPages)
	t.pages = append(t.pages, p)
}

// masks lists where the rules' peers are, by page and rule, and, when rules
// name ports that the peers resolve, where the signatures are.
func (b *rowBuilder) masks(peers []peer) (masks, named []ruleMask) {
	number, names := uint32(0), false
	for i := range b.tiers {
		for j := range b.tiers[i].rules {
			r := &b.tiers[i].rules[j]
			if r.anyPeer {
				b.anyPeer = append(b.anyPeer, number)
			}
			for _, p := range r.peers {
				for _, m := range peers[p].pages {
					masks = append(masks, ruleMask{m.page, number, m.mask})
				}
			}
			names = names || hasNames(r.ports)
			number++
		}
	}
	if names {
		for sig, pages := range b.classes.sigPages {
			for _, m := range pages {
				named = append(named, ruleMask{m.page, uint32(sig), m.mask})
			}
		}
	}
	slices.SortFunc(masks, compareRuleMasks)
	slices.SortFunc(named, compareRuleMasks)
	return masks, named
}

func compareRuleMasks(a, b ruleMask) int {
	return cmp.Or(cmp.Compare(a.page, b.page), cmp.Compare(a.rule, b.rule))
}

func nextPage(a, b []ruleMask) uint32 {
	switch {
	case len(a) == 0:
		return b[0].page
	case len(b) == 0:
		return a[0].page
	}
	return min(a[0].page, b[0].page)
}

func splitPage(m []ruleMask, page uint32) (on, rest []ruleMask) {
	n := 0
	for n < len(m) && m[n].page == page {
		n++
	}
	return m[:n], m[n:]
}

// page works out the cells of one page: it splits the classes into parts,
// rule by rule, and asks for each part's answer.
func (b *rowBuilder) page(masks, sigs []ruleMask) rowBlock {
	parts := append(b.scratch[:0], part{mask: wholePage})
	for _, s := range sigs {
		parts = split(parts, s.mask, func(p *part) { p.sig = s.rule })
	}
	free := b.anyPeer
	for len(masks) > 0 || len(free) > 0 {
		var rule uint32
		var mask uint64
		if len(free) > 0 && (len(masks) == 0 || free[0] <= masks[0].rule) {
			rule, mask, free = free[0], wholePage, free[1:]
		} else {
			rule = masks[0].rule
		}
		for len(masks) > 0 && masks[0].rule == rule {
			mask |= masks[0].mask
			masks = masks[1:]
		}
		parts = split(parts, mask, func(p *part) { p.subset = b.subsets.with(p.subset, rule) })
	}
	b.scratch = parts
	return b.cells(parts)
}

// split applies change to the classes in mask, cutting parts in two where only
// some of their classes are.
func split(parts []part, mask uint64, change func(*part)) []part {
	for i, n := 0, len(parts); i < n; i++ {
		in := parts[i].mask & mask
		if in == 0 {
			continue
		}
		if out := parts[i].mask &^ mask; out != 0 {
			rest := parts[i]
			rest.mask = out
			parts = append(parts, rest)
		}
		parts[i].mask = in
		change(&parts[i])
	}
	return parts
}

// cells makes the page of the parts: the answer of the most classes is the
// ordinary one, the others get cells in class order.
func (b *rowBuilder) cells(parts []part) rowBlock {
	var p rowBlock
	most := 0
	for _, q := range parts {
		if n := bits.OnesCount64(q.mask); n > most {
			p.ordinary, most = b.value(q.subset, q.sig), n
		}
	}
	var answers [pageSize]ref
	for _, q := range parts {
		v := b.value(q.subset, q.sig)
		if v == p.ordinary {
			continue
		}
		p.special |= q.mask
		for m := q.mask; m != 0; m &= m - 1 {
			answers[bits.TrailingZeros64(m)] = v
		}
	}
	p.first = uint32(len(b.table.cells))
	for m := p.special; m != 0; m &= m - 1 {
		b.table.cells = append(b.table.cells, answers[bits.TrailingZeros64(m)])
	}
	return p
}

func (b *rowBuilder) value(subset, sig uint32) ref {
	key := [2]uint32{subset, sig}
	v, ok := b.values[key]
	if !ok {
		v = b.table.ports.compile(b.tiers, b.subsets.rules(subset), b.classes.sigs[sig])
		b.values[key] = v
	}
	return v
}

func (b *rowBuilder) anySubset() (subset uint32) {
	for _, r := range b.anyPeer {
		subset = b.subsets.with(subset, r)
	}
	return subset
}

// subsets numbers ascending lists of rules; 0 is the empty one.
type subsets struct {
	known map[[2]uint32]uint32 // list and next rule → longer list
	list  [][2]uint32          // list-1 → shorter list and last rule
}

func (s *subsets) with(subset, rule uint32) uint32 {
	key := [2]uint32{subset, rule}
	id, ok := s.known[key]
	if !ok {
		if s.known == nil {
			s.known = map[[2]uint32]uint32{}
		}
		s.list = append(s.list, key)
		id = uint32(len(s.list))
		s.known[key] = id
	}
	return id
}

func (s *subsets) rules(subset uint32) []uint32 {
	var rules []uint32
	for subset != 0 {
		rules = append(rules, s.list[subset-1][1])
		subset = s.list[subset-1][0]
	}
	slices.Reverse(rules)
	return rules
}

// lookup returns the answer of a row for a peer class.
func (t *rowTable) lookup(row, class uint32) ref {
	page := class / pageSize
	b := &t.blocks[(row-firstRow)*t.stride+page/blockPages]
	at, special := b.child(page)
	if !special {
		return b.ordinary
	}
	p := &t.pages[at]
	if at, special = p.child(class % pageSize); !special {
		return p.ordinary
	}
	return t.cells[at]
}
