package policy

import (
	"net/netip"
	"slices"
)

// lineage is the identity of a tree: a later one can name it without keeping it.
type lineage struct{ _ byte }

// step is what a tree does to the connections of the one that the same Builder
// made before.
type step struct {
	from     *lineage // nil: there was none, or how they differ is not known
	change   Change
	affected []netip.Addr
	bounded  bool // affected is all
}

// maxAffected bounds step.affected.
const maxAffected = 1024

// maxPairs is how many pairs of rows and classes a step compares. More is left to
// compareAll, which need not compare those that make no difference.
const maxPairs = 1 << 20

// Affected lists addresses such that every connection that the two trees judge
// differently has one of them at an end. ok is false when that is not known, or
// they are too many: then any connection may be. It is known for consecutive trees
// of one Builder.
func Affected(before, after *Tree) (addrs []netip.Addr, ok bool) {
	if before == after {
		return nil, true
	}
	if after.step.from != before.self {
		return nil, false
	}
	return after.step.affected, after.step.bounded
}

// maxAsked is how many programs are asked about one pair of classes before the answer
// is that anything may have changed. No node's tree has so many.
const maxAsked = 2048

// stepper works out a step from what an update changed. Connections change for
// three reasons:
//   - an address changed hands, or its pod changed: it is judged by other rules, or
//     other rules apply to it as a peer;
//   - a group of pods is judged by other rules;
//   - addresses became of another class, for rules that were there before.
type stepper struct {
	comparison
	u       *update
	classes map[[2]uint32]struct{} // pairs of classes that are not the same one
	rows    map[[2]uint32]Change   // memo of judged
	as      map[[2]uint32]Change   // memo of asPeer
	step    step
	seen    map[netip.Addr]struct{}
	pairs   int
}

func (u *update) stepFrom(before, after *Tree) step {
	x := &stepper{
		comparison: newComparison(before, after), u: u,
		classes: map[[2]uint32]struct{}{}, rows: map[[2]uint32]Change{}, as: map[[2]uint32]Change{},
		step: step{from: before.self, bounded: true}, seen: map[netip.Addr]struct{}{},
	}
	x.collect()
	for _, t := range u.touched {
		x.address(t.addr)
	}
	for _, h := range u.moved {
		x.address(h.addr)
	}
	for _, m := range u.rowMoves {
		if x.pairs > maxPairs {
			break
		}
		x.group(m)
	}
	for _, m := range u.atomMoves {
		x.atom(m)
	}
	if x.pairs > maxPairs {
		x.step = step{from: before.self, change: compareAll(before, after)}
	}
	if !x.step.bounded {
		x.step.affected = nil
	}
	return x.step
}

// collect finds the pairs of classes: an address was of the one and is of the other.
func (x *stepper) collect() {
	for _, t := range x.u.touched {
		x.pair(x.before.endpoint(t.addr).class, x.after.endpoint(t.addr).class)
	}
	for _, h := range x.u.moved {
		x.pair(x.before.endpoint(h.addr).class, x.after.endpoint(h.addr).class)
	}
	for _, m := range x.u.atomMoves {
		if !m.atom.dropped {
			x.pair(m.old, m.atom.class.id)
		}
	}
	for _, p := range x.u.recut {
		x.pair(x.before.outside(p).class, x.after.outside(p).class)
	}
}

func (x *stepper) pair(old, now uint32) {
	if old != now {
		x.classes[[2]uint32{old, now}] = struct{}{}
	}
}

func (x *stepper) add(c Change, addrs ...netip.Addr) {
	if c == (Change{}) {
		return
	}
	x.step.change.add(c)
	for _, a := range addrs {
		if _, known := x.seen[a]; known || !x.step.bounded {
			continue
		}
		x.seen[a] = struct{}{}
		x.step.affected = append(x.step.affected, a)
		x.step.bounded = len(x.step.affected) <= maxAffected
	}
}

// address compares one that changed hands.
func (x *stepper) address(a netip.Addr) {
	c := x.exemptions(a)
	o, n := x.before.endpoint(a), x.after.endpoint(a)
	for _, d := range Directions {
		c.add(x.judged(o.row[d], n.row[d]))
	}
	c.add(x.asPeer(o.class, n.class))
	x.add(c, a)
}

// group compares one that is judged by other rules, for those of its pods that
// were in it before.
func (x *stepper) group(m rowMove) {
	for _, a := range m.group.atoms {
		for _, h := range a.held {
			if _, touched := x.u.seen[h.addr]; h.local && !touched {
				x.add(x.judged(m.old, m.now), h.addr)
			}
		}
	}
}

// atom compares addresses that are of another class.
func (x *stepper) atom(m atomMove) {
	if m.atom.dropped {
		return
	}
	c := x.asPeer(m.old, m.atom.class.id)
	x.add(c)
	if c != (Change{}) && m.atom.group == nil {
		x.step.bounded = false
	}
	for _, h := range m.atom.held {
		x.add(c, h.addr)
	}
}

// judged compares two rows at everything that can be a peer.
func (x *stepper) judged(old, now uint32) Change {
	key := [2]uint32{old, now}
	c, known := x.rows[key]
	if known || old == now && old < firstRow {
		return c
	}
	c.add(x.everywhere(old, now))
	for pair := range x.classes {
		c.add(x.verdicts(key, pair))
		x.pairs++
	}
	x.rows[key] = c
	return c
}

// everywhere compares two rows at the classes that are in both trees.
func (x *stepper) everywhere(old, now uint32) (c Change) {
	if old == now && !x.u.compacted && x.before.rows.roots[old-firstRow] == x.after.rows.roots[now-firstRow] {
		return c
	}
	was, is := x.before.ordinary(old), x.after.ordinary(now)
	c.add(x.answers(was, is))
	a, b := x.before.special(old), x.after.special(now)
	for (len(a) > 0 || len(b) > 0) && c != x.most {
		var page uint32
		var p, q *rowBlock
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].page < b[0].page:
			page, p, a = a[0].page, &a[0].block, a[1:]
		case len(a) == 0 || b[0].page < a[0].page:
			page, q, b = b[0].page, &b[0].block, b[1:]
		default:
			page, p, q, a, b = a[0].page, &a[0].block, &b[0].block, a[1:], b[1:]
		}
		c.add(x.page(page, x.before.page(p, was), x.after.page(q, is)))
	}
	return c
}

func (x *stepper) page(page uint32, was, is [pageSize]ref) (c Change) {
	x.pairs++
	for i := range uint32(pageSize) {
		class := page*pageSize + i
		if class >= uint32(len(x.before.classes)) || was[i] == is[i] {
			continue
		}
		if cl := x.u.compiler.classes.all[class]; cl != nil && len(cl.atoms) > 0 {
			c.add(x.answers(was[i], is[i]))
		}
	}
	return c
}

// ordinary is a row's answer to what it does not mention.
func (t *Tree) ordinary(row uint32) ref {
	if row < firstRow {
		return t.fixed(row)
	}
	return t.rows.roots[row-firstRow].ordinary
}

func (t *Tree) special(row uint32) []placed {
	if row < firstRow {
		return nil
	}
	return t.rows.special(row)
}

func (t *Tree) page(p *rowBlock, ordinary ref) (all [pageSize]ref) {
	if p != nil {
		return t.rows.refs(p)
	}
	for i := range all {
		all[i] = ordinary
	}
	return all
}

// asPeer compares the answers that addresses of a class get, and those that they
// get now, from rules that were there before. Only rules about a peer that contains
// one of the classes and not the other can tell them apart, or those that name ports
// which the pods do not have alike.
func (x *stepper) asPeer(old, now uint32) Change {
	key := [2]uint32{old, now}
	c, known := x.as[key]
	if known || x.before.classes[old] == x.after.classes[now] {
		return c
	}
	asked := 0
	ask := func(p *program) {
		if !x.before.isProgram(p) || c == x.most {
			return
		}
		c.add(x.verdicts([2]uint32{p.row, p.row}, key))
		x.pairs++
		if asked++; asked > maxAsked {
			c = x.most
		}
	}
	for _, q := range x.telling(old, now) {
		for p := range q.programs {
			ask(p)
		}
	}
	for p := range x.u.anyNamed {
		ask(p)
	}
	x.as[key] = c
	return c
}

// isProgram reports whether a program of a later tree is one of t.
func (t *Tree) isProgram(p *program) bool {
	at := p.row - firstRow
	return at < uint32(len(t.programs)) && t.programs[at] == p
}

// telling lists the peers whose rules may answer two classes differently.
func (x *stepper) telling(old, now uint32) []*peer {
	classes := x.u.compiler.classes.all
	cl, o := classes[now], classes[old]
	if o == nil {
		o = x.u.forgotten[old]
	}
	was := o.peers
	if o.was != nil {
		was = o.was
	}
	if o.ports != cl.ports {
		return slices.Concat(was, cl.peers)
	}
	lost, gained := difference(was, cl.peers)
	return append(lost, gained...)
}
