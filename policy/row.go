package policy

import (
	"cmp"
	"math/bits"
	"slices"
)

// program is what judges the pods of one profile in one direction: the policies
// that isolate them there, tier by tier. Each program has one row.
type program struct {
	policies []*parsedPolicy // NetworkPolicy tier, by name
	tiers    []tier
	hash     uint64 // fingerprint
	row      uint32

	// What follows is the compiler's.
	direction Direction
	key       string
	groups    int  // that it judges; none: it is gone
	anyNamed  bool // a rule for any peer names ports that the peer resolves
	cost      *spending
	size      int  // rules and peers
	manner         // of its denials
	built     bool // its row is in the table
	gone      bool // it judges nobody
}

// A row answers "peer class → ref" for one program. Most peers have the same
// answer, so a row is a tree of rowBlocks, each holding the answer of its ordinary
// children and a bit for each child that is not ordinary. The root spans all pages,
// 1<<shift of them for each bit; a page is pageSize classes, and special children
// are found by counting bits:
//
//	roots: [ ordinary ref | first | 0100…1 ]
//	mids:                    └─▶ [ ordinary ref | first | 0010…0 ]  one per bit (more if shift > 6)
//	pages:                                         └─▶ [ ordinary ref | first | 0010…0 ]  one per bit
//	cells:                                                               └─▶ ref, ref, …   one per bit
//
// With up to 64 pages there are no mids. The usual decision, "no rule mentions this
// peer", reads the 16 bytes of the root. Small pages keep most of the rest cheap when
// a rule's peers are strewn over all namespaces.
type rowBlock struct {
	special  uint64 // bit i: child i is not ordinary
	first    uint32 // place of the lowest special child
	ordinary ref
}

// child returns the rank of a special child.
func (b *rowBlock) child(i uint32) (rank uint32, special bool) {
	bit := uint64(1) << (i % 64)
	return uint32(bits.OnesCount64(b.special & (bit - 1))), b.special&bit != 0
}

// Rows below firstRow are not in the table: their answer is the same for every
// peer, the fixed outcome of the same number.
const firstRow = fixedOutcomes

// rowTable holds the rows of a tree. A later tree shares what has not changed: mids,
// pages and cells are only ever added, roots are copied.
type rowTable struct {
	shift uint32     // a root's bit stands for 1<<shift pages
	roots []rowBlock // by row
	mids  []rowBlock
	pages []rowBlock
	cells []ref
	ports portTable
}

// lookup returns the answer of a row for a peer class.
func (t *rowTable) lookup(row, class uint32) ref {
	b := &t.roots[row-firstRow]
	page := class / pageSize
	rank, special := b.child(page >> t.shift)
	if !special {
		return b.ordinary
	}
	if t.shift != 0 {
		b = &t.mids[b.first+rank<<midsShift(t.shift)+page&(1<<t.shift-1)>>6]
		if rank, special = b.child(page & (1<<t.shift - 1)); !special {
			return b.ordinary
		}
	}
	p := &t.pages[b.first+rank]
	if rank, special = p.child(class % pageSize); !special {
		return p.ordinary
	}
	return t.cells[p.first+rank]
}

// midsShift says how many mids a root's bit has: 1<<midsShift.
func midsShift(shift uint32) uint32 { return max(shift, 6) - 6 }

// placed is a page of a row and where it belongs.
type placed struct {
	page  uint32
	block rowBlock
}

// special lists the pages of a row that are not ordinary.
func (t *rowTable) special(row uint32) (pages []placed) {
	root := &t.roots[row-firstRow]
	child := root.first
	for m := root.special; m != 0; m &= m - 1 {
		bit := uint32(bits.TrailingZeros64(m))
		if t.shift == 0 {
			pages = append(pages, placed{bit, t.pages[child]})
			child++
			continue
		}
		for i := range uint32(1) << midsShift(t.shift) {
			mid := &t.mids[child]
			child++
			at := mid.first
			for m := mid.special; m != 0; m &= m - 1 {
				page := bit<<t.shift + i<<6 + uint32(bits.TrailingZeros64(m))
				pages = append(pages, placed{page, t.pages[at]})
				at++
			}
		}
	}
	return pages
}

// refs spells a page out.
func (t *rowTable) refs(p *rowBlock) (all [pageSize]ref) {
	at := p.first
	for i := range all {
		if all[i] = p.ordinary; p.special>>i&1 == 1 {
			all[i] = t.cells[at]
			at++
		}
	}
	return all
}

// rowWriter changes a rowTable between two trees.
type rowWriter struct {
	rowTable
	ports portCompiler
	owned bool     // no published tree has roots
	free  []uint32 // rows
	waste int      // mids, pages and cells that no row of the present uses
	floor int      // so much waste is not worth a compaction
}

func newRowWriter() *rowWriter {
	return &rowWriter{owned: true, floor: 1 << 15, ports: portCompiler{known: map[string]ref{}}}
}

// published returns the table for a tree.
func (w *rowWriter) published() rowTable {
	w.owned = false
	t := w.rowTable
	t.ports = w.ports.portTable
	return t
}

// capacity is how many pages of classes the table has room for.
func (w *rowWriter) capacity() uint32 { return 64 << w.shift }

// size counts what compact can make smaller.
func (w *rowWriter) size() int { return len(w.mids) + len(w.pages) + len(w.cells) }

// compact writes all rows anew, with room for so many pages.
func (w *rowWriter) compact(pages uint32) {
	old := w.rowTable
	w.rowTable = rowTable{shift: old.shift, roots: make([]rowBlock, len(old.roots))}
	w.owned, w.waste = true, 0
	for w.capacity() < pages {
		w.shift++
	}
	isFree := make([]bool, len(old.roots))
	for _, row := range w.free {
		isFree[row-firstRow] = true
	}
	for i := range old.roots {
		if isFree[i] {
			continue
		}
		special := old.special(firstRow + uint32(i))
		for j := range special {
			b := &special[j].block
			n := uint32(bits.OnesCount64(b.special))
			cells := old.cells[b.first : b.first+n]
			b.first = uint32(len(w.cells))
			w.cells = append(w.cells, cells...)
		}
		w.roots[i] = w.encode(old.roots[i].ordinary, special)
	}
}

// row returns the number of a row that nobody has.
func (w *rowWriter) row() uint32 {
	if n := len(w.free); n > 0 {
		row := w.free[n-1]
		w.free = w.free[:n-1]
		return row
	}
	w.roots = append(w.roots, rowBlock{})
	return firstRow + uint32(len(w.roots)-1)
}

// release gives a row back.
func (w *rowWriter) release(row uint32) {
	for _, p := range w.special(row) {
		w.waste += bits.OnesCount64(p.block.special)
	}
	w.wasteBlocks(row)
	w.free = append(w.free, row)
}

// wasteBlocks counts the mids and pages of a row as waste.
func (w *rowWriter) wasteBlocks(row uint32) {
	root := &w.roots[row-firstRow]
	n := bits.OnesCount64(root.special)
	if w.shift == 0 {
		w.waste += n
		return
	}
	n <<= midsShift(w.shift)
	w.waste += n
	for i := range n {
		w.waste += bits.OnesCount64(w.mids[int(root.first)+i].special)
	}
}

// set makes a root the one of a row.
func (w *rowWriter) set(row uint32, root rowBlock) {
	if !w.owned {
		w.roots, w.owned = slices.Clone(w.roots), true
	}
	w.roots[row-firstRow] = root
}

// encode adds the blocks of a row, whose pages must be ascending and not ordinary,
// and returns its root.
func (w *rowWriter) encode(ordinary ref, pages []placed) rowBlock {
	root := rowBlock{ordinary: ordinary}
	if w.shift == 0 {
		root.first = uint32(len(w.pages))
		for _, p := range pages {
			root.special |= 1 << p.page
			w.pages = append(w.pages, p.block)
		}
		return root
	}
	root.first = uint32(len(w.mids))
	for len(pages) > 0 {
		bit := pages[0].page >> w.shift
		root.special |= 1 << bit
		for i := range uint32(1) << midsShift(w.shift) {
			mid := rowBlock{ordinary: ordinary, first: uint32(len(w.pages))}
			end := min((bit<<w.shift+(i+1)<<6)-1, (bit+1)<<w.shift-1)
			for len(pages) > 0 && pages[0].page <= end {
				mid.special |= 1 << (pages[0].page & (1<<w.shift - 1) % 64)
				w.pages = append(w.pages, pages[0].block)
				pages = pages[1:]
			}
			w.mids = append(w.mids, mid)
		}
	}
	return root
}

// edit is a new answer of a row.
type edit struct {
	class uint32
	to    ref
}

// rewrite changes some answers of a row; edits must be ascending.
func (w *rowWriter) rewrite(row uint32, edits []edit) {
	ordinary := w.roots[row-firstRow].ordinary
	old := w.special(row)
	w.wasteBlocks(row)
	var pages []placed
	for len(old) > 0 || len(edits) > 0 {
		if len(edits) == 0 || len(old) > 0 && old[0].page < edits[0].class/pageSize {
			pages, old = append(pages, old[0]), old[1:]
			continue
		}
		page := edits[0].class / pageSize
		base := rowBlock{ordinary: ordinary}
		if len(old) > 0 && old[0].page == page {
			base, old = old[0].block, old[1:]
			w.waste += bits.OnesCount64(base.special)
		}
		refs := w.refs(&base)
		for len(edits) > 0 && edits[0].class/pageSize == page {
			refs[edits[0].class%pageSize] = edits[0].to
			edits = edits[1:]
		}
		if b := w.page(&refs); b.special != 0 || b.ordinary != ordinary {
			pages = append(pages, placed{page, b})
		}
	}
	w.set(row, w.encode(ordinary, pages))
}

// page encodes a page: the answer of the most classes is the ordinary one, the
// others get cells in class order.
func (w *rowWriter) page(refs *[pageSize]ref) rowBlock {
	var p rowBlock
	most := 0
	for i, r := range refs {
		if i > 0 && r == p.ordinary {
			continue
		}
		n := 0
		for _, q := range refs[i:] {
			if q == r {
				n++
			}
		}
		if n > most {
			p.ordinary, most = r, n
		}
		if 2*most >= pageSize {
			break
		}
	}
	p.first = uint32(len(w.cells))
	for i, r := range refs {
		if r != p.ordinary {
			p.special |= 1 << i
			w.cells = append(w.cells, r)
		}
	}
	return p
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
	table   *rowWriter
	ports   []*portSet
	tiers   []tier
	anyPeer []uint32 // rules that match every peer
	subsets subsets
	values  map[[2]uint32]ref // by subset and port set
	scratch []part
	cost    *spending
}

// part is those classes of a page for which the same rules match.
type part struct {
	mask   uint64
	subset uint32
	sig    uint32 // of named ports: the id of a portSet
}

// build fills the row of a program.
func (w *rowWriter) build(row uint32, tiers []tier, ports []*portSet, cost *spending) {
	b := rowBuilder{cost: cost, table: w, ports: ports, tiers: tiers, values: map[[2]uint32]ref{}}
	masks, named := b.masks()
	ordinary := b.value(b.anySubset(), 0)
	var pages []placed
	for len(masks) > 0 || len(named) > 0 {
		page := nextPage(masks, named)
		onPage, rest := splitPage(masks, page)
		sigs, restNamed := splitPage(named, page)
		if p := b.page(onPage, sigs); p.special != 0 || p.ordinary != ordinary {
			pages = append(pages, placed{page, p})
		}
		masks, named = rest, restNamed
	}
	w.set(row, w.encode(ordinary, pages))
}

// masks lists where the rules' peers are, by page and rule, and, when rules
// name ports that the peers resolve, where the signatures are.
func (b *rowBuilder) masks() (masks, named []ruleMask) {
	number, names := uint32(0), false
	for i := range b.tiers {
		for j := range b.tiers[i].rules {
			r := &b.tiers[i].rules[j]
			if r.anyPeer {
				b.anyPeer = append(b.anyPeer, number)
			}
			for _, p := range r.peers {
				if !b.cost.answered(len(p.pages)) {
					return nil, nil // the tree will not be used
				}
				for _, m := range p.pages {
					masks = append(masks, ruleMask{m.page, number, m.mask})
				}
			}
			names = names || hasNames(r.ports)
			number++
		}
	}
	if names {
		for _, set := range b.ports {
			for _, m := range set.pages {
				named = append(named, ruleMask{m.page, set.id, m.mask})
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
	for (len(masks) > 0 || len(free) > 0) && b.cost.took(len(parts)) {
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
		v = b.table.ports.compile(b.tiers, b.subsets.rules(subset), b.ports[sig].ports, b.cost)
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
