package policy

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
	"k8s.io/apimachinery/pkg/labels"
)

// Tree is a compiled Snapshot. It never changes, so any number of goroutines may
// ask it, and a decision is a few array reads whatever the number of policies:
//
//	src ─▶ addrTable ─▶ endpoint{class, row} ─┐      ┌─ egress:  row(src) × class(dst) ─▶ ref ─▶ spans(port) ─┐
//	                                          ├──────┤                                                        ├─▶ Decision
//	dst ─▶ addrTable ─▶ endpoint{class, row} ─┘      └─ ingress: row(dst) × class(src) ─▶ ref ─▶ spans(port) ─┘
//	        └ miss ─▶ regions (longest prefix)
type Tree struct {
	addrs     addrTable
	endpoints []endpoint
	rows      rowTable
	outcomes  []Outcome
	regions   *bart.Table[uint32]     // prefix → endpoint of its addresses that nobody holds; none: endpoint 0
	nodes     map[netip.Addr][]string // address → node names, sorted
	ranges    podRanges

	// What explaining, comparing and listing need, and deciding does not.
	namespaces map[string]labels.Set
	programs   []*program      // row-firstRow → program
	classes    []uint64        // class → hash of what it is
	policies   []*parsedPolicy // live ones, by name
	locals     addrSet         // held by local pods
	known      addrSet         // in LocalPodCIDRs, and not unknown
	conflicts  []Conflict
	audits     bool              // some denials are only reported
	denials    map[string]Denial // of namespaces that say it
	stats      Stats

	self *lineage
	step step
}

// Decide judges a connection from src to dst. port is the destination port in
// host byte order and is ignored for protocols without ports. It does not
// allocate. Which connections are the same to it: those with equal src, dst,
// protocol and port; no policy can see the source port.
func (t *Tree) Decide(src, dst netip.Addr, protocol Protocol, port uint16) Decision {
	s, d := t.endpoint(src), t.endpoint(dst)
	if src == dst || s.row[Egress] == outcomeNode || d.row[Ingress] == outcomeNode {
		if fixed, ok := t.exempt(src, dst, s, d); ok {
			o := &t.outcomes[fixed]
			return Decision{Verdict: o.Verdict, Direction: Ingress, Egress: o, Ingress: o}
		}
	}
	sl := slotOf(protocol)
	return t.decision(s, d, t.judge(s.row[Egress], d.class, sl, port), t.judge(d.row[Ingress], s.class, sl, port))
}

// exempt finds the connections that are allowed whatever the policies say: a
// pod with itself (also through its own Service), a pod with its own node.
func (t *Tree) exempt(src, dst netip.Addr, s, d *endpoint) (fixed uint32, ok bool) {
	if src == dst && t.addrs.holder(src) != nil {
		return outcomeSelf, true
	}
	if s.row[Egress] == outcomeNode && t.onNode(dst, src) || d.row[Ingress] == outcomeNode && t.onNode(src, dst) {
		return outcomeNode, true
	}
	return 0, false
}

// onNode reports whether pod is the address of a pod that runs on the node
// with the address node.
func (t *Tree) onNode(pod, node netip.Addr) bool {
	h := t.addrs.holder(pod)
	return h != nil && h.pod.NodeName != "" && slices.Contains(t.nodes[node], h.pod.NodeName)
}

// judge asks one end's rules about the class of the other end.
func (t *Tree) judge(row, class uint32, s slot, port uint16) ref {
	if row < firstRow {
		return t.fixed(row)
	}
	r := t.rows.lookup(row, class)
	if r&refPorts != 0 {
		r = t.rows.ports.lookup(r, s, port)
	}
	return r
}

// fixed is the answer of a row that has the same one for every peer.
func (t *Tree) fixed(row uint32) ref {
	if row == outcomeUnknownPod && t.outcomes[row].Verdict == Deny {
		return ref(row)
	}
	return ref(row) | refAllow
}

// decision puts the two directions together: both must allow, or be only audited.
func (t *Tree) decision(s, d *endpoint, egress, ingress ref) Decision {
	out := Decision{Egress: &t.outcomes[egress&refIndex], Ingress: &t.outcomes[ingress&refIndex]}
	switch {
	case egress&refAllow == 0:
		out.Direction = Egress
	case ingress&refAllow == 0:
		out.Direction = Ingress
	case (egress|ingress)&refAudit != 0:
		out.Verdict, out.Audit = Allow, true
		if egress&refAudit == 0 {
			out.Direction = Ingress
		}
	default:
		out.Verdict = Allow
		out.Direction = lastSay(s, d)
	}
	return out
}

// lastSay is the direction that a decision to allow is reported for: the last
// one in which a pod's rules, or their absence, were asked.
func lastSay(s, d *endpoint) Direction {
	asked := func(row uint32) bool { return row >= firstRow || row == outcomeNoPolicy }
	if !asked(d.row[Ingress]) && asked(s.row[Egress]) {
		return Egress
	}
	return Ingress
}

// endpoint never returns nil: an address that is not in the table belongs to
// its region.
func (t *Tree) endpoint(a netip.Addr) *endpoint {
	n, ok := t.addrs.endpoint(a)
	if !ok {
		n, _ = t.regions.Lookup(a)
	}
	return &t.endpoints[n]
}

// Pod returns the pod that holds an address.
func (t *Tree) Pod(a netip.Addr) (*Pod, bool) {
	if h := t.addrs.holder(a); h != nil {
		return h.pod, true
	}
	return nil, false
}

// Node returns the name of the node that has an address, unless a pod holds it.
// A node that is only known through a host-network pod without spec.nodeName
// has the name "".
func (t *Tree) Node(a netip.Addr) (name string, ok bool) {
	names, ok := t.nodes[a]
	if !ok || t.addrs.holder(a) != nil {
		return "", false
	}
	return names[len(names)-1], true
}

// Unknown reports whether an address is in this node's pod range, but no known
// pod (and no node) holds it.
func (t *Tree) Unknown(a netip.Addr) bool {
	return t.endpoint(a).row[Egress] == outcomeUnknownPod
}

// Policed lists the addresses of the local pods that policies isolate in a
// direction: only their packets need to be judged.
func (t *Tree) Policed(d Direction) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for a := range t.locals.all() {
			if t.Isolated(a, d) && !yield(a) {
				return
			}
		}
	}
}

// Isolated reports whether an address is a local pod's that policies isolate in
// a direction.
func (t *Tree) Isolated(a netip.Addr, d Direction) bool {
	return t.endpoint(a).row[d] >= firstRow
}

// Outcomes are what the tree can answer, each at the index that is its ID, and
// perhaps more. A tree's outcomes begin with those of the tree before it, if they
// are at the same place in memory. They must not be changed.
func (t *Tree) Outcomes() []Outcome { return t.outcomes }

// Policies lists the policies that isolate a local pod, by name, and the
// directions in which they do, by Direction.
func (t *Tree) Policies() iter.Seq2[PolicyRef, [2]bool] {
	return func(yield func(PolicyRef, [2]bool) bool) {
		for _, p := range t.policies {
			if !yield(p.ref, p.isolates) {
				return
			}
		}
	}
}

// Conflicts lists the addresses that several live pods claim, by address.
func (t *Tree) Conflicts() []Conflict { return t.conflicts }

// Stats says how big a tree is.
type Stats struct {
	Policies  int // that select a local pod
	Addresses int // of pods and nodes
	Classes   int // of addresses that no rule tells apart
	Programs  int // distinct sets of policies × direction
}

// Footprint says how much a tree holds. Unlike Stats it depends on how the tree came
// to be: what its predecessors left is in it, up to as much again as there is.
type Footprint struct {
	Cells    int // answers held in rows and pages
	Spans    int // port runs
	Outcomes int
}

// Footprint counts.
func (t *Tree) Footprint() Footprint {
	r := &t.rows
	return Footprint{
		Cells: len(r.roots) + len(r.mids) + len(r.pages) + len(r.cells), Spans: len(r.ports.spans),
		Outcomes: len(t.outcomes),
	}
}

// Stats counts the parts of the tree.
func (t *Tree) Stats() Stats { return t.stats }
