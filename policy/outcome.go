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

// outcomeTable collects what a tree can answer.
type outcomeTable struct {
	all  []Outcome
	deny map[string]uint32 // default denies by the policies that isolate
}

func newOutcomeTable(unknownPod Verdict) *outcomeTable {
	t := &outcomeTable{all: make([]Outcome, fixedOutcomes), deny: map[string]uint32{}}
	t.all[outcomeExternal] = Outcome{Verdict: Allow, Reason: ReasonExternal}
	t.all[outcomeNoPolicy] = Outcome{Verdict: Allow, Reason: ReasonNoPolicy}
	t.all[outcomeNotLocal] = Outcome{Verdict: Allow, Reason: ReasonNotLocal}
	t.all[outcomeNode] = Outcome{Verdict: Allow, Reason: ReasonNodeTraffic}
	t.all[outcomeUnknownPod] = Outcome{Verdict: unknownPod, Reason: ReasonUnknownPod}
	t.all[outcomeSelf] = Outcome{Verdict: Allow, Reason: ReasonSelf}
	for i := range t.all {
		t.all[i].ID = uint32(i)
	}
	return t
}

func (t *outcomeTable) add(o Outcome) uint32 {
	o.ID = uint32(len(t.all))
	t.all = append(t.all, o)
	return o.ID
}

// defaultDeny returns the outcome of being isolated by these policies, sorted,
// and allowed by none. They are of one namespace, so the same policies are always
// audited, or never.
func (t *outcomeTable) defaultDeny(ids []uint32, policies []*parsedPolicy, audit bool) uint32 {
	key := string(idsKey(nil, ids))
	at, ok := t.deny[key]
	if !ok {
		o := Outcome{Verdict: Deny, Reason: ReasonDefaultDeny, Audit: audit}
		for _, id := range ids {
			o.IsolatedBy = append(o.IsolatedBy, policies[id].ref)
		}
		at = t.add(o)
		t.deny[key] = at
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
