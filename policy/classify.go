package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// settlePeers finds out which peers are used, and which groups each one selects.
func (u *update) settlePeers() {
	for _, p := range u.reused {
		if used := p.users > 0; used != p.used {
			p.used = used
			if used {
				u.born = append(u.born, p)
			} else {
				u.dead = append(u.dead, p)
			}
		}
	}
	for _, p := range u.relisted {
		if p.listed == 0 && u.peers[p.key] == p {
			delete(u.peers, p.key)
		}
	}
	u.unselectDead()
	for _, g := range u.newGroups {
		if g.held > 0 {
			g.selected = u.index.selecting(g, namespaceLabels(u.labels.m, g.namespace))
			u.meter.joined(len(g.selected))
		}
	}
	for _, p := range u.born {
		if p.block == nil {
			u.index.add(p)
			u.selectGroups(p)
		}
	}
	for _, name := range u.renamed {
		for _, g := range u.groups.byNamespace[name] {
			u.reselect(g, u.index.selecting(g, namespaceLabels(u.labels.m, name)))
		}
	}
}

// unselectDead takes the dead peers away from the groups that they select, which
// their classes lead to.
func (u *update) unselectDead() {
	losing := map[*group]struct{}{}
	for _, p := range u.dead {
		if p.block != nil {
			continue
		}
		u.index.remove(p)
		for _, m := range p.pages {
			for bit := range uint32(pageSize) {
				if m.mask>>bit&1 == 0 {
					continue
				}
				for _, a := range u.classes.all[m.page*pageSize+bit].atoms {
					if a.group != nil {
						losing[a.group] = struct{}{}
					}
				}
			}
		}
	}
	for g := range losing {
		left := slices.DeleteFunc(slices.Clone(g.selected), func(p *peer) bool { return !p.used })
		if len(left) < len(g.selected) {
			g.selected = left
			u.changeAtoms(g)
		}
	}
}

func (u *update) selectGroups(p *peer) {
	var selected []*group
	if p.namespaces == nil {
		selected = u.groups.inNamespace(p.namespace, p.pods)
	} else {
		known := map[string]bool{}
		in := func(name string) bool {
			match, asked := known[name]
			if !asked {
				match = p.namespaces.Matches(namespaceLabels(u.labels.m, name))
				known[name] = match
			}
			return match
		}
		selected = u.groups.inNamespaces(in, p.pods)
	}
	u.meter.joined(len(selected))
	for _, g := range selected {
		// Ids ascend, so a new peer usually comes last and there is room for it.
		g.selected = insertPeer(g.selected, p)
		u.changeAtoms(g)
	}
}

func (u *update) reselect(g *group, selected []*peer) {
	if !slices.Equal(g.selected, selected) {
		u.meter.joined(len(selected))
		g.selected = selected
		u.changeAtoms(g)
	}
}

func (u *update) changeAtoms(g *group) {
	for _, a := range g.atoms {
		u.change(a)
	}
}

func (u *update) change(a *atom) {
	if !a.changed {
		a.changed = true
		u.atoms = append(u.atoms, a)
	}
}

// cut keeps the regions.
func (u *update) cut() {
	for _, p := range u.dead {
		if p.block != nil {
			u.roots = append(u.roots, p.block.prefixes()...)
			u.regions.leave(p)
		}
	}
	for _, p := range u.born {
		if p.block != nil {
			u.roots = append(u.roots, p.block.prefixes()...)
			u.regions.enter(p)
		}
	}
	if len(u.roots) == 0 {
		return
	}
	u.recut = u.regions.below(u.roots)
	u.roots = outermost(u.roots)
	for _, r := range u.regions.recut(u.recut, u.outside) {
		u.drop(r.outside)
	}
}

// outermost leaves out prefixes that lie in others.
func outermost(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	kept := list[:0]
	for _, p := range list {
		if n := len(kept); n == 0 || !kept[n-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// settleAtoms finds the atom of every address that was placed, or whose region
// changed.
func (u *update) settleAtoms() {
	for _, p := range u.placed {
		u.enterAtom(p.holding, p.group, u.regions.of(p.holding.addr))
	}
	if len(u.placed) < u.held {
		u.inRoots(func(h *holding) {
			if r := u.regions.of(h.addr); r != h.atom.region {
				g := h.atom.group
				u.takeFrom(h)
				u.enterAtom(h, g, r)
				u.moved = append(u.moved, h)
			}
		})
	}
	if len(u.roots) > 0 {
		roots := prefixSet(u.roots)
		for a := range u.nodeNames.m {
			if roots.Contains(a) {
				u.touch(a)
			}
		}
	}
	for _, a := range u.emptied {
		if len(a.held) == 0 {
			u.drop(a)
		}
	}
}

// fewRoots are searched for one after the other: each looks at all addresses.
const fewRoots = 4

// inRoots visits the holders of addresses in the prefixes that were cut.
func (u *update) inRoots(visit func(*holding)) {
	if len(u.roots) <= fewRoots {
		for _, root := range u.roots {
			u.addrs.within(root, visit)
		}
		return
	}
	roots := prefixSet(u.roots)
	for a, h := range u.addrs.all() {
		if h != nil && h.atom != nil && roots.Contains(a) {
			visit(h)
		}
	}
}

func prefixSet(list []netip.Prefix) *bart.Lite {
	set := &bart.Lite{}
	for _, p := range list {
		set.Insert(p)
	}
	return set
}

func (u *update) enterAtom(h *holding, g *group, r *region) {
	i := slices.IndexFunc(g.atoms, func(a *atom) bool { return a.region == r })
	if i < 0 {
		i = len(g.atoms)
		g.atoms = append(g.atoms, &atom{group: g, region: r, ends: [2]uint32{noEnd, noEnd}})
		u.change(g.atoms[i])
	}
	a := g.atoms[i]
	h.atom, h.at = a, len(a.held)
	a.held = append(a.held, h)
	kind := 0
	if h.local {
		kind = 1
	}
	u.end(a, kind)
}

// end makes sure that an atom has an endpoint of a kind.
func (u *update) end(a *atom, kind int) uint32 {
	if a.ends[kind] == noEnd {
		a.ends[kind] = u.endpoints.add()
		u.refresh = append(u.refresh, a)
	}
	return a.ends[kind]
}

// drop ends an atom that has no addresses.
func (u *update) drop(a *atom) {
	if a.dropped {
		return
	}
	a.dropped = true
	u.classes.join(a, nil)
	u.endpoints.remove(a.ends[0])
	u.endpoints.remove(a.ends[1])
	if a.group != nil {
		a.group.atoms = slices.DeleteFunc(a.group.atoms, func(b *atom) bool { return a == b })
	}
}

// classify gives every changed atom its class.
func (u *update) classify() {
	u.atoms = slices.DeleteFunc(u.atoms, func(a *atom) bool {
		a.changed = false
		return a.dropped
	})
	slices.SortFunc(u.atoms, compareAtoms)
	movers := map[*class][]candidate{}
	var order []*class
	var homeless []candidate
	for _, a := range u.atoms {
		peers := a.peers()
		c := candidate{a, string(classKey(nil, peers, u.classes.portsOf(a))), peers}
		switch {
		case a.class == nil:
			homeless = append(homeless, c)
			continue
		case a.class.key == c.key:
			continue
		case movers[a.class] == nil:
			order = append(order, a.class)
		}
		movers[a.class] = append(movers[a.class], c)
	}
	for _, cl := range order {
		u.move(cl, movers[cl])
	}
	for _, c := range homeless {
		u.settle(c)
	}
	for _, p := range u.dead {
		u.forgetDormant(p)
	}
}

// candidate is an atom with the class that it should be of.
type candidate struct {
	atom  *atom
	key   string
	peers []*peer
}

// compareAtoms makes neighbours of what is judged alike.
func compareAtoms(a, b *atom) int {
	key := func(a *atom) string {
		if a.group == nil {
			return ""
		}
		return a.group.key
	}
	return cmp.Or(cmp.Compare(key(a), key(b)), cmp.Compare(a.region.key, b.region.key))
}

// move takes atoms out of a class. If all of them leave, the class itself goes with
// some, so that rows that know its number need not change.
func (u *update) move(cl *class, list []candidate) {
	for _, c := range list {
		u.atomMoves = append(u.atomMoves, atomMove{c.atom, cl.id})
	}
	if len(list) == len(cl.atoms) {
		for _, c := range list {
			if u.classes.byKey[c.key] == nil {
				u.rename(cl, c)
				break
			}
		}
	}
	for _, c := range list {
		if c.key != cl.key {
			u.settle(c)
		} else {
			u.refresh = append(u.refresh, c.atom)
		}
	}
}

func (u *update) rename(cl *class, c candidate) {
	if cl.was == nil {
		u.changedIDs = append(u.changedIDs, cl)
	}
	u.classes.rename(cl, c.key, c.peers)
}

func (u *update) settle(c candidate) {
	cl := u.classes.byKey[c.key]
	if cl == nil {
		cl = u.classes.add(c.key, c.peers, u.classes.portsOf(c.atom))
		u.newClasses = append(u.newClasses, cl)
	}
	u.classes.join(c.atom, cl)
	u.refresh = append(u.refresh, c.atom)
}

// forgetDormant ends the classes without atoms that a dead peer contains: nothing
// will ever be of them again.
func (u *update) forgetDormant(p *peer) {
	for _, m := range slices.Clone(p.pages) {
		for bit := range uint32(pageSize) {
			if m.mask>>bit&1 == 0 {
				continue
			}
			if cl := u.classes.all[m.page*pageSize+bit]; len(cl.atoms) == 0 {
				u.forgotten[cl.id] = cl
				u.classes.forget(cl)
			}
		}
	}
}

// judge finds the programs of groups with local pods.
func (u *update) judge() {
	for _, g := range u.rejudged {
		g.rejudge = false
		old := g.programs
		for _, d := range Directions {
			g.programs[d] = u.programOf(g, d)
			if g.programs[d] != nil {
				g.programs[d].groups++
			}
		}
		for _, d := range Directions {
			if old[d] != g.programs[d] {
				u.rowMoves = append(u.rowMoves, rowMove{group: g, direction: d, old: rowOf(old[d])})
			}
			if p := old[d]; p != nil {
				if p.groups--; p.groups == 0 {
					u.released = append(u.released, p)
				}
			}
		}
		u.refresh = append(u.refresh, g.atoms...)
	}
	for _, p := range u.released {
		if p.groups == 0 {
			u.release(p)
		}
	}
	for i := range u.rowMoves {
		m := &u.rowMoves[i]
		m.now = rowOf(m.group.programs[m.direction])
	}
}

func rowOf(p *program) uint32 {
	if p == nil {
		return outcomeNoPolicy
	}
	return p.row
}

// programOf finds or makes the program of a group; nil if nothing isolates it.
func (u *update) programOf(g *group, d Direction) *program {
	if g.local == 0 {
		return nil
	}
	var isolating []*parsedPolicy
	named := false
	for _, p := range g.targeting {
		if p.isolates[d] {
			isolating = append(isolating, p)
			named = named || d == Ingress && slices.ContainsFunc(p.rules[d], func(r parsedRule) bool { return hasNames(r.ports) })
		}
	}
	if isolating == nil {
		return nil
	}
	how := u.namespaces[g.namespace].manner()
	key := policiesKey([]byte{byte(d), how.key()}, isolating)
	ports := g.ports
	if !named {
		ports = u.classes.ports[0]
	}
	key = append(key, byte(ports.id), byte(ports.id>>8), byte(ports.id>>16), byte(ports.id>>24))
	if p := u.programs[string(key)]; p != nil {
		return p
	}
	p := &program{policies: isolating, direction: d, key: string(key), manner: how}
	u.bind(p, ports.ports)
	u.programs[p.key] = p
	u.fresh = append(u.fresh, p)
	return p
}

// bind makes the tiers of a program from the rules of its policies.
func (u *update) bind(p *program, named []ContainerPort) {
	np := tier{otherwise: u.outcomes.ref(u.outcomes.defaultDeny(p.policies, p.manner))}
	p.cost = u.meter.namespace(p.policies[0].ref.Namespace)
	p.cost.answered(len(p.policies))
	for _, pol := range p.policies {
		for i := range pol.rules[p.direction] {
			r := &pol.rules[p.direction][i]
			if r.outcome == 0 {
				r.outcome = u.outcomes.add(Outcome{Verdict: Allow, Reason: ReasonPolicy, Policy: pol.ref, Rule: i})
			}
			p.size += 1 + len(r.peers)
			if !p.cost.answered(1 + len(r.peers) + len(r.ports)) {
				continue
			}
			b := boundRule{peers: r.peers, anyPeer: r.anyPeer, anyPort: r.anyPort, ports: r.ports, then: u.outcomes.ref(r.outcome)}
			if p.direction == Ingress {
				b.resolve(named)
			}
			p.anyNamed = p.anyNamed || r.anyPeer && hasNames(b.ports)
			np.rules = append(np.rules, b)
			for _, q := range r.peers {
				q.programs[p] = struct{}{}
			}
		}
	}
	p.tiers = []tier{np}
	p.hash = fingerprint(p.tiers)
	p.row = u.rows.row()
	if p.anyNamed {
		u.anyNamed[p] = struct{}{}
	}
	if p.audit {
		u.audits++
	}
	u.setProgram(p.row, p)
}

func (u *update) setProgram(row uint32, p *program) {
	if !u.byRowOwned {
		u.byRow, u.byRowOwned = slices.Clone(u.byRow), true
	}
	for uint32(len(u.byRow)) <= row-firstRow {
		u.byRow = append(u.byRow, nil)
	}
	u.byRow[row-firstRow] = p
}

func (u *update) release(p *program) {
	if p.gone {
		return
	}
	p.gone = true
	delete(u.programs, p.key)
	delete(u.anyNamed, p)
	for i := range p.tiers[0].rules {
		for _, q := range p.tiers[0].rules[i].peers {
			delete(q.programs, p)
		}
	}
	if p.audit {
		u.audits--
	}
	u.rows.release(p.row)
	u.setProgram(p.row, nil)
}

// fillRows gives old rows their answers for new classes, and new ones all of theirs.
func (u *update) fillRows() {
	if pages := uint32(len(u.classes.all)+pageSize-1) / pageSize; pages > u.rows.capacity() {
		u.rows.compact(pages + pages/4)
		u.compacted = true
	}
	columns := map[*program][]*class{}
	for _, cl := range u.newClasses {
		u.column(columns, cl, cl.peers, cl.ports.notEmpty)
	}
	for _, cl := range u.changedIDs {
		lost, gained := difference(cl.was, cl.peers)
		u.column(columns, cl, append(lost, gained...), false)
	}
	memo := map[answerKey]ref{}
	for p, list := range columns {
		slices.SortFunc(list, func(a, b *class) int { return cmp.Compare(a.id, b.id) })
		edits := make([]edit, 0, len(list))
		for _, cl := range slices.Compact(list) {
			edits = append(edits, edit{cl.id, u.answer(memo, p, cl)})
		}
		u.rows.rewrite(p.row, edits)
	}
	for _, p := range u.fresh {
		if !p.gone {
			u.rows.build(p.row, p.tiers, u.classes.ports, p.cost)
			p.built = true
		}
	}
	if u.rows.waste > u.rows.size()/2+u.rows.floor {
		u.rows.compact(0)
		u.compacted = true
	}
}

// column notes that the programs with rules about these peers answer for a class
// as they have not answered before.
func (u *update) column(columns map[*program][]*class, cl *class, peers []*peer, named bool) {
	for _, q := range peers {
		for p := range q.programs {
			if p.built {
				columns[p] = append(columns[p], cl)
			}
		}
	}
	if !named {
		return
	}
	for p := range u.anyNamed {
		if p.built {
			columns[p] = append(columns[p], cl)
		}
	}
}

// answerKey is a program's rules that match, as a string of their numbers, and the
// named ports of the destination.
type answerKey struct {
	program *program
	matched string
	ports   *portSet
}

// answer works out what a program says to a class.
func (u *update) answer(memo map[answerKey]ref, p *program, cl *class) ref {
	if !p.cost.took(p.size+len(cl.peers)) || !p.cost.answered(1) {
		return 0 // the tree will not be used
	}
	u.stamp++
	for _, q := range cl.peers {
		q.mark = u.stamp
	}
	var matched []uint32
	var number uint32
	var key []byte
	for i := range p.tiers {
		for j := range p.tiers[i].rules {
			r := &p.tiers[i].rules[j]
			if r.anyPeer || slices.ContainsFunc(r.peers, func(q *peer) bool { return q.mark == u.stamp }) {
				matched = append(matched, number)
				key = append(key, byte(number), byte(number>>8), byte(number>>16), byte(number>>24))
			}
			number++
		}
	}
	k := answerKey{p, string(key), cl.ports}
	to, known := memo[k]
	if !known {
		to = u.rows.ports.compile(p.tiers, matched, cl.ports.ports, p.cost)
		memo[k] = to
	}
	return to
}

// enter sets the endpoints that changed, and the entries of addresses.
func (u *update) enter() {
	for _, a := range u.refresh {
		if !a.dropped {
			u.setEnds(a)
		}
	}
	for _, t := range u.touched {
		h := u.addrs.holder(t.addr)
		switch _, isNode := u.nodeNames.m[t.addr]; {
		case h != nil:
			u.addrs.put(t.addr, h.end(), h)
		case isNode:
			outside := u.regions.of(t.addr).outside
			at := u.end(outside, 1)
			u.setEnds(outside)
			u.addrs.put(t.addr, at, nil)
		default:
			u.addrs.remove(t.addr)
		}
		if u.ranges.isLocal(t.addr) {
			_, held := u.addrs.endpoint(t.addr)
			u.known.put(t.addr, held)
		}
	}
	for _, h := range u.moved {
		u.addrs.put(h.addr, h.end(), h)
	}
}

func (h *holding) end() uint32 {
	if h.local {
		return h.atom.ends[1]
	}
	return h.atom.ends[0]
}

func (u *update) setEnds(a *atom) {
	rows := [2][2]uint32{{outcomeNotLocal, outcomeNotLocal}, {outcomeNoPolicy, outcomeNoPolicy}}
	switch {
	case a.group != nil:
		for _, d := range Directions {
			rows[1][d] = rowOf(a.group.programs[d])
		}
	case a.region.local:
		rows = [2][2]uint32{{outcomeUnknownPod, outcomeUnknownPod}, {outcomeNode, outcomeNode}}
	default:
		rows = [2][2]uint32{{outcomeExternal, outcomeExternal}, {outcomeNode, outcomeNode}}
	}
	for kind, at := range a.ends {
		if at != noEnd {
			u.endpoints.set(at, endpoint{class: a.class.id, row: rows[kind]})
		}
	}
}
