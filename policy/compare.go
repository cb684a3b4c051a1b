package policy

import (
	"encoding/binary"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
)

// Change says what replacing one tree by another does to the connections of
// the pods that either judges.
type Change struct {
	// Revokes: some connection that the old tree allowed, the new one denies.
	Revokes bool
	// Adds: some connection that the old tree denied, the new one allows.
	Adds bool
	// Audits: some connection that the old tree allowed without a word passes the
	// new one only because it is audited (Decision.Audit). Verdicts stay, but who
	// wants to report it must ask again about what it remembers as allowed.
	Audits bool
	// Denies: some namespace denies in another manner (Namespace.Denial). What is
	// remembered as denied may have been dropped where it is to be rejected now.
	Denies bool
}

func (c *Change) add(o Change) {
	c.Revokes = c.Revokes || o.Revokes
	c.Adds = c.Adds || o.Adds
	c.Audits = c.Audits || o.Audits
}

// Compare finds out by comparing verdicts, not objects, so a policy that is
// rewritten to mean the same is no change at all. Each direction is compared by
// itself, so it may claim a change that the other direction hides; it never
// misses one. For consecutive trees of a Builder the answer is known already.
func Compare(before, after *Tree) Change {
	if before == after {
		return Change{}
	}
	c := after.step.change
	if after.step.from != before.self {
		c = compareAll(before, after)
	}
	c.Denies = !maps.Equal(before.denials, after.denials)
	return c
}

// Rejects reports whether some namespace wants to have denied connections rejected.
func (t *Tree) Rejects() bool {
	for _, d := range t.denials {
		if d == DenialReject {
			return true
		}
	}
	return false
}

// compareAll knows nothing of how the trees were made.
//
// The addresses of the world fall into few pairs (what one is to the old tree,
// what it is to the new one), and connections between equal pairs change alike.
// A judged pair whose rules are the same needs to be asked only about those
// peers that the rules may see differently.
func compareAll(before, after *Tree) Change {
	c := allPairs{comparison: newComparison(before, after), peers: map[[2]uint32]struct{}{}}
	c.collect()
	for _, d := range Directions {
		for rows := range c.judged[d] {
			peers := c.all
			if sameRules(before, after, rows) {
				peers = c.moved
			}
			for _, classes := range peers {
				c.found.add(c.verdicts(rows, classes))
				if c.found == c.most {
					return c.found
				}
			}
		}
	}
	return c.found
}

// comparison compares answers of two trees, and remembers those it compared.
type comparison struct {
	before, after *Tree
	most          Change // there is nothing more to find
	refs          map[[2]ref]Change
}

func newComparison(before, after *Tree) comparison {
	return comparison{before, after, Change{Revokes: true, Adds: true, Audits: after.audits}, map[[2]ref]Change{}}
}

// allPairs holds the distinct pairs, old first.
type allPairs struct {
	comparison
	judged     [2]map[[2]uint32]struct{} // rows, by Direction
	peers      map[[2]uint32]struct{}    // classes
	all, moved [][2]uint32               // of peers; moved: rules may see them differently
	found      Change
}

func (c *allPairs) collect() {
	c.judged = [2]map[[2]uint32]struct{}{{}, {}}
	for _, t := range [...]*Tree{c.before, c.after} {
		for a := range t.addrs.all() {
			c.found.add(c.exemptions(a))
			c.enter(c.before.endpoint(a), c.after.endpoint(a))
		}
		for p := range t.regions.All() {
			c.enter(c.before.outside(p), c.after.outside(p))
		}
	}
	c.enter(&c.before.endpoints[0], &c.after.endpoints[0])
}

func (c *allPairs) enter(o, n *endpoint) {
	classes := [2]uint32{o.class, n.class}
	if _, known := c.peers[classes]; !known {
		c.peers[classes] = struct{}{}
		c.all = append(c.all, classes)
		if c.before.classes[o.class] != c.after.classes[n.class] {
			c.moved = append(c.moved, classes)
		}
	}
	for _, d := range Directions {
		c.judged[d][[2]uint32{o.row[d], n.row[d]}] = struct{}{}
	}
}

// outside is the endpoint of a prefix's addresses that nobody holds.
func (t *Tree) outside(p netip.Prefix) *endpoint {
	n, _ := t.regions.LookupPrefix(p)
	return &t.endpoints[n]
}

// exemptions looks at what no row says: a pod may talk to itself and its node.
// Where an address changes hands in a way that matters to that, everything is claimed.
func (c *comparison) exemptions(a netip.Addr) Change {
	o, _ := c.before.Pod(a)
	n, _ := c.after.Pod(a)
	switch {
	case o != nil && n != nil:
		if o.NodeName != n.NodeName {
			return c.most
		}
	case o == nil && n == nil:
		if !slices.Equal(c.before.nodes[a], c.after.nodes[a]) {
			return c.most
		}
	case c.before.Unknown(a):
		return Change{Adds: true}
	case c.after.Unknown(a):
		return Change{Revokes: true}
	case len(c.before.nodes[a]) > 0 && o == nil, len(c.after.nodes[a]) > 0 && n == nil:
		return c.most // the node's own pods gain or lose a right
	}
	return Change{}
}

// verdicts compares two rows at two classes over all protocols and ports.
func (c *comparison) verdicts(rows, classes [2]uint32) Change {
	return c.answers(c.before.rowRef(rows[0], classes[0]), c.after.rowRef(rows[1], classes[1]))
}

func (c *comparison) answers(old, now ref) Change {
	key := [2]ref{old, now}
	found, known := c.refs[key]
	if !known {
		for s := range slots {
			found.add(compareSpans(c.before.spans(old, s), c.after.spans(now, s)))
		}
		c.refs[key] = found
	}
	return found
}

func compareSpans(old, new []span) (c Change) {
	for len(old) > 0 && len(new) > 0 {
		was, is := old[0].to&refAllow != 0, new[0].to&refAllow != 0
		c.Revokes = c.Revokes || was && !is
		c.Adds = c.Adds || !was && is
		c.Audits = c.Audits || was && audited(new[0].to) && !audited(old[0].to)
		end := min(old[0].last, new[0].last)
		if old[0].last == end {
			old = old[1:]
		}
		if new[0].last == end {
			new = new[1:]
		}
	}
	return c
}

func audited(r ref) bool { return r&refAudit != 0 }

// rowRef is judge without the port.
func (t *Tree) rowRef(row, class uint32) ref {
	if row < firstRow {
		return t.fixed(row)
	}
	return t.rows.lookup(row, class)
}

// spans lists the answers of a ref for one slot.
func (t *Tree) spans(r ref, s slot) []span {
	if r&refPorts == 0 {
		return []span{{65535, r}}
	}
	p := &t.rows.ports.programs[r&refIndex]
	if s == slotOther {
		return t.rows.ports.spans[p.start[s] : p.start[s]+1]
	}
	return t.rows.ports.spans[p.start[s]:p.start[s+1]]
}

// fingerprintSeed makes the hashes below unpredictable, so that nobody can
// write two policies that collide.
var fingerprintSeed = maphash.MakeSeed()

// sameRules reports whether two rows were made from the same rules. Fixed rows
// answer without rules.
func sameRules(before, after *Tree, rows [2]uint32) bool {
	if rows[0] < firstRow || rows[1] < firstRow {
		return rows[0] == rows[1] && before.fixed(rows[0]) == after.fixed(rows[1])
	}
	return before.programs[rows[0]-firstRow].hash == after.programs[rows[1]-firstRow].hash
}

// fingerprint hashes what a program's verdicts depend on besides its peers'
// members: the rules and who their peers are.
func fingerprint(tiers []tier) uint64 {
	var key []byte
	for i := range tiers {
		key = appendVerdict(key, tiers[i].otherwise)
		key = binary.LittleEndian.AppendUint64(key, uint64(len(tiers[i].rules)))
		for j := range tiers[i].rules {
			key = tiers[i].rules[j].appendKey(key)
		}
	}
	return maphash.Bytes(fingerprintSeed, key)
}

func appendVerdict(key []byte, r ref) []byte {
	if r != refNone && r != refPass {
		r &= refAllow | refAudit
	}
	return binary.LittleEndian.AppendUint32(key, uint32(r))
}

// appendKey spells a rule; lists are preceded by their length.
func (r *boundRule) appendKey(key []byte) []byte {
	key = appendVerdict(key, r.then)
	for _, any := range [...]bool{r.anyPeer, r.anyPort} {
		if any {
			key = append(key, 1)
		} else {
			key = append(key, 0)
		}
	}
	key = binary.LittleEndian.AppendUint32(key, uint32(len(r.peers)))
	for _, p := range r.peers {
		key = binary.LittleEndian.AppendUint64(key, p.hash)
	}
	key = binary.LittleEndian.AppendUint32(key, uint32(len(r.ports)))
	for _, p := range r.ports {
		key = append(key, byte(p.protocol), byte(p.first>>8), byte(p.first), byte(p.last>>8), byte(p.last))
		key = append(append(key, p.name...), 0)
	}
	return key
}
