package policy

import (
	"errors"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
)

// Compile turns a snapshot into a tree:
//
//	Policies ─▶ parse ─┬─▶ vocabulary ─▶ groups (pods that no selector tells apart)
//	                   │                   │
//	                   ├─▶ targets ────────┤ which groups each policy isolates; policies
//	                   │                   │ without a local group are left out here
//	                   └─▶ peers ──────────┴─▶ classes (group's peers × address's blocks)
//	                                                      │
//	   Pods ─▶ holders ─▶ addresses ──────────────────────┤
//	                                                      ▼
//	          programs (policies of a local group, one direction) ─▶ rows over classes
//
// It fails on policies that the API would have refused, naming policy and field;
// all of them are reported. The result depends on the objects only, not on their
// order.
func Compile(s *Snapshot) (*Tree, error) {
	c := &compiler{
		snapshot: s,
		local:    s.Local,
		peers:    newPeerTable(),
		outcomes: newOutcomeTable(s.UnknownPod),

		audited:   auditedNamespaces(s),
		endpoints: map[endpoint]uint32{},
	}
	if c.local == nil {
		c.local = func(*Pod) bool { return true }
	}
	if err := c.parse(); err != nil {
		return nil, err
	}
	c.group()
	c.target()
	c.classify()
	return c.tree(), nil
}

// compiler carries the state between the stages of Compile.
type compiler struct {
	snapshot *Snapshot
	local    func(*Pod) bool

	audited  map[string]bool // namespaces whose denials do not count
	policies []*parsedPolicy // sorted by name; only those with a local target after target
	words    vocabulary
	peers    *peerTable
	outcomes *outcomeTable

	held      map[netip.Addr]*Pod
	conflicts []Conflict
	holdings  []holding // in no order
	groups    *groups
	groupOf   []uint32 // of each holding
	isLocal   []bool   // by group: one of its pods is local

	isolating [2][][]uint32 // by Direction and group: policies, ascending
	classes   *classes
	rows      *rowTable
	programs  []*program
	endpoints map[endpoint]uint32
}

// parse reads the policies in order of their names: that order is also the one
// in which rules are tried and reported.
func (c *compiler) parse() error {
	sorted := slices.SortedFunc(slices.Values(c.snapshot.Policies), func(a, b *networkingv1.NetworkPolicy) int {
		return (NamespacedName{a.Namespace, a.Name}).Compare(NamespacedName{b.Namespace, b.Name})
	})
	var errs []error
	c.words = newVocabulary()
	for _, p := range sorted {
		parsed, err := parsePolicy(p, c.peers, c.outcomes)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.policies = append(c.policies, parsed)
		c.words.addPolicy(parsed)
	}
	for i := range c.peers.all {
		if p := &c.peers.all[i]; p.block == nil {
			c.words.addSelector(p.pods)
		}
	}
	return errors.Join(errs...)
}

func (v vocabulary) addPolicy(p *parsedPolicy) {
	v.addSelector(p.target)
	for d := range p.rules {
		for _, r := range p.rules[d] {
			for _, port := range r.ports {
				if port.name != "" {
					v.portNames[port.name] = true
				}
			}
		}
	}
}

// group settles who holds which address and sorts the holders into groups.
func (c *compiler) group() {
	c.held, c.conflicts = holders(c.snapshot.Pods)
	c.holdings = holdingsOf(c.held)
	pods := make([]*Pod, len(c.holdings))
	for i, h := range c.holdings {
		pods[i] = h.pod
	}
	c.groups, c.groupOf = newGroups(namespaceLabels(c.snapshot), pods, c.words)
	c.isLocal = make([]bool, len(c.groups.all))
	for i, p := range pods {
		c.isLocal[c.groupOf[i]] = c.isLocal[c.groupOf[i]] || c.local(p)
	}
}

// target finds the local groups that each policy isolates and drops the
// policies that isolate none: their peers need no classes here.
func (c *compiler) target() {
	for d := range c.isolating {
		c.isolating[d] = make([][]uint32, len(c.groups.all))
	}
	var kept []*parsedPolicy
	for _, p := range c.policies {
		targets := c.groups.inNamespace(p.ref.Namespace, p.target)
		targets = slices.DeleteFunc(targets, func(g uint32) bool { return !c.isLocal[g] })
		if len(targets) == 0 {
			continue
		}
		for _, d := range Directions {
			for _, g := range targets {
				if p.isolates[d] {
					c.isolating[d][g] = append(c.isolating[d][g], uint32(len(kept)))
				}
			}
		}
		kept = append(kept, p)
	}
	c.policies = kept
}

func (c *compiler) classify() {
	used := make([]bool, len(c.peers.all))
	for _, p := range c.policies {
		for _, d := range Directions {
			for i := range p.rules[d] {
				for _, id := range p.rules[d][i].peers {
					used[id] = used[id] || p.isolates[d]
				}
			}
		}
	}
	regions := newRegions(c.peers.all, used, c.snapshot.LocalPodCIDRs)
	selected := selectGroups(c.groups, c.peers.all, used)
	c.classes = newClasses(c.groups, selected, regions, c.peers.all, c.holdings, c.groupOf)
	c.rows = newRowTable(c.classes.pages())
}

// tree compiles the programs and enters every address.
func (c *compiler) tree() *Tree {
	t := &Tree{
		regions:   c.classes.regions,
		nodes:     nodeAddrs(c.snapshot),
		ranges:    newPodRanges(c.snapshot),
		policies:  c.policies,
		peers:     c.peers.all,
		classes:   c.classes,
		groups:    c.groups,
		conflicts: c.conflicts,
	}
	t.endpoints = externals(t.regions)
	c.enterPods(t)
	for a := range t.nodes {
		if c.held[a] == nil {
			ep := endpoint{class: t.regions.of(a), row: [2]uint32{outcomeNode, outcomeNode}}
			t.addrs.insert(a, c.intern(t, ep), nil)
		}
	}
	t.rows, t.programs, t.outcomes = c.rows, c.programs, c.outcomes.all
	return t
}

// externals are the endpoints of addresses that nobody holds, by region.
func externals(r *regions) []endpoint {
	var eps []endpoint
	for region, local := range r.local {
		row := outcomeExternal
		if local {
			row = outcomeUnknownPod
		}
		eps = append(eps, endpoint{class: uint32(region), row: [2]uint32{row, row}})
	}
	return eps
}

func (c *compiler) enterPods(t *Tree) {
	rowOf := c.programRows()
	for i, h := range c.classes.holdings {
		ep := endpoint{class: c.classes.ofHolding[i], row: [2]uint32{outcomeNotLocal, outcomeNotLocal}}
		if c.local(h.pod) {
			g := c.classes.groupOf[i]
			ep.row = [2]uint32{rowOf[Egress][g], rowOf[Ingress][g]}
		}
		t.addrs.insert(h.addr, c.intern(t, ep), h.pod)
	}
}

// intern numbers equal endpoints once.
func (c *compiler) intern(t *Tree, ep endpoint) uint32 {
	n, ok := c.endpoints[ep]
	if !ok {
		n = uint32(len(t.endpoints))
		t.endpoints = append(t.endpoints, ep)
		c.endpoints[ep] = n
	}
	return n
}

// programRows compiles one program for each distinct combination of isolating
// policies (and named ports, where those matter) and says which row judges
// each local group.
func (c *compiler) programRows() (rowOf [2][]uint32) {
	known := map[string]uint32{}
	for _, d := range Directions {
		rowOf[d] = make([]uint32, len(c.groups.all))
		for g, ids := range c.isolating[d] {
			if len(ids) == 0 {
				rowOf[d][g] = outcomeNoPolicy
				continue
			}
			key := append(idsKey(nil, ids), byte(d))
			if d == Ingress && c.usesNames(ids) {
				key = portsKey(key, c.groups.all[g].ports)
			}
			row, ok := known[string(key)]
			if !ok {
				row = c.program(d, ids, c.groups.all[g].ports)
				known[string(key)] = row
			}
			rowOf[d][g] = row
		}
	}
	return rowOf
}

func (c *compiler) usesNames(ids []uint32) bool {
	return slices.ContainsFunc(ids, func(id uint32) bool {
		return slices.ContainsFunc(c.policies[id].rules[Ingress], func(r parsedRule) bool { return hasNames(r.ports) })
	})
}

// program binds the rules of the isolating policies and builds their row.
func (c *compiler) program(d Direction, ids []uint32, named []ContainerPort) uint32 {
	np := tier{otherwise: c.outcomes.ref(c.defaultDeny(ids))}
	for _, id := range ids {
		for i := range c.policies[id].rules[d] {
			r := &c.policies[id].rules[d][i]
			b := boundRule{peers: r.peers, anyPeer: r.anyPeer, anyPort: r.anyPort, ports: r.ports, then: c.outcomes.ref(r.outcome)}
			if d == Ingress {
				b.resolve(named)
			}
			np.rules = append(np.rules, b)
		}
	}
	p := &program{policies: ids, tiers: []tier{np}}
	p.hash = fingerprint(p.tiers, c.peers.all)
	c.programs = append(c.programs, p)
	return c.rows.add(p.tiers, c.peers.all, c.classes)
}

// defaultDeny is the outcome of the pods that these policies isolate, where none
// of their rules allows.
func (c *compiler) defaultDeny(ids []uint32) uint32 {
	namespace := c.policies[ids[0]].ref.Namespace // of all: a policy isolates pods of its own
	return c.outcomes.defaultDeny(ids, c.policies, c.audited[namespace])
}

func auditedNamespaces(s *Snapshot) map[string]bool {
	audited := map[string]bool{}
	for _, n := range s.Namespaces {
		if n.Audit {
			audited[n.Name] = true
		}
	}
	return audited
}
