package policy

// ref is what a row, a page or a span holds: an outcome with its verdict beside
// it, so that a decision need not read the outcome, or a port program.
type ref uint32

const (
	refPorts ref = 1 << 30   // the index is a port program
	refAllow ref = 1 << 29   // the index is an outcome that lets the connection pass
	refAudit ref = 1 << 28   // with refAllow: an outcome that would deny, but is only audited
	refIndex ref = 1<<28 - 1 // mask of the index

	// refNone: the tier says nothing, ask the next one.
	refNone ref = 1<<28 - 1
	// refPass: a rule hands the connection to the next tier (ClusterNetworkPolicy's Pass).
	refPass ref = 1<<28 - 2
)

// Outcomes that need no policy have fixed places at the start of the table.
const (
	outcomeExternal uint32 = iota
	outcomeNoPolicy
	outcomeNotLocal
	outcomeNode
	outcomeUnknownPod
	outcomeSelf
	fixedOutcomes
)

// outcomeTable collects what trees can answer. It only grows, so Decisions may point
// into the part that a tree has seen of it.
type outcomeTable struct {
	all  []Outcome
	deny map[string]uint32 // default denies by the policies that isolate
}

func newOutcomeTable(unknownPod Verdict) *outcomeTable {
	t := &outcomeTable{deny: map[string]uint32{}}
	for at, o := range [fixedOutcomes]Outcome{
		outcomeExternal:   {Verdict: Allow, Reason: ReasonExternal},
		outcomeNoPolicy:   {Verdict: Allow, Reason: ReasonNoPolicy},
		outcomeNotLocal:   {Verdict: Allow, Reason: ReasonNotLocal},
		outcomeNode:       {Verdict: Allow, Reason: ReasonNodeTraffic},
		outcomeUnknownPod: {Verdict: unknownPod, Reason: ReasonUnknownPod},
		outcomeSelf:       {Verdict: Allow, Reason: ReasonSelf},
	} {
		if t.add(o) != uint32(at) {
			panic("fixed outcomes come first")
		}
	}
	return t
}

func (t *outcomeTable) add(o Outcome) uint32 {
	o.ID = uint32(len(t.all))
	t.all = append(t.all, o)
	return o.ID
}

// defaultDeny returns the outcome of being isolated by these policies, sorted,
// and allowed by none. They are of one namespace, whose manner goes for all.
func (t *outcomeTable) defaultDeny(policies []*parsedPolicy, m manner) uint32 {
	key := policiesKey([]byte{m.key()}, policies)
	at, ok := t.deny[string(key)]
	if !ok {
		o := Outcome{Verdict: Deny, Reason: ReasonDefaultDeny, Audit: m.audit, Denial: m.denial}
		for _, p := range policies {
			o.IsolatedBy = append(o.IsolatedBy, p.ref)
			if p.overLimit != "" {
				o.OverLimit = append(o.OverLimit, p.ref)
			}
		}
		at = t.add(o)
		t.deny[string(key)] = at
	}
	return at
}

func (t *outcomeTable) ref(at uint32) ref {
	switch o := &t.all[at]; {
	case o.Verdict == Allow:
		return ref(at) | refAllow
	case o.Audit:
		return ref(at) | refAllow | refAudit
	}
	return ref(at)
}

// manner is how the policies of a namespace deny.
type manner struct {
	audit  bool
	denial Denial
}

// manner of a namespace that nobody has described is the ordinary one.
func (n *Namespace) manner() manner {
	if n == nil {
		return manner{}
	}
	return manner{n.Audit, n.Denial}
}

// key is a different byte for each manner.
func (m manner) key() byte {
	key := byte(m.denial) << 1
	if m.audit {
		key |= 1
	}
	return key
}
