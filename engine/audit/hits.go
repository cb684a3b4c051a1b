package audit

import (
	"cmp"
	"slices"
	"sync"

	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/policy"
)

// hits count what policies decided, by name for the first of them. What was counted
// for a policy stays when it goes: audits are short, and a counter must not fall.
type hits struct {
	limit int

	mu     sync.Mutex
	named  map[policy.PolicyRef]bool
	counts map[hit]uint64
}

type hit struct {
	policy    policy.PolicyRef // zero for all beyond the limit
	direction policy.Direction
	verdict   policy.Verdict
}

func newHits(limit int) *hits {
	return &hits{limit: limit, named: map[policy.PolicyRef]bool{}, counts: map[hit]uint64{}}
}

// decided counts a decision for the policies that made it what it is.
func (h *hits) decided(d *policy.Decision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.Audit {
		h.outcome(d.Outcome(), d.Direction, policy.Audit)
		return
	}
	h.outcome(d.Egress, policy.Egress, policy.Allow)
	h.outcome(d.Ingress, policy.Ingress, policy.Allow)
}

func (h *hits) outcome(o *policy.Outcome, d policy.Direction, v policy.Verdict) {
	if o.Reason == policy.ReasonPolicy {
		h.count(o.Policy, d, v)
	}
	for _, ref := range o.IsolatedBy {
		h.count(ref, d, v)
	}
}

func (h *hits) count(ref policy.PolicyRef, d policy.Direction, v policy.Verdict) {
	switch {
	case h.named[ref]:
	case len(h.named) < h.limit:
		h.named[ref] = true
	default:
		ref = policy.PolicyRef{}
	}
	h.counts[hit{ref, d, v}]++
}

// PolicyHits counts, as an engine does, what the policies allowed and what they would
// have denied. It may be called at any time from any goroutine.
func (a *Auditor) PolicyHits() []engine.PolicyHits {
	a.hits.mu.Lock()
	defer a.hits.mu.Unlock()
	var all []engine.PolicyHits
	for h, n := range a.hits.counts {
		all = append(all, engine.PolicyHits{Policy: h.policy, Direction: h.direction, Verdict: h.verdict, Count: n})
	}
	slices.SortFunc(all, func(x, y engine.PolicyHits) int {
		return cmp.Or(x.Policy.Compare(y.Policy.NamespacedName), cmp.Compare(x.Direction, y.Direction), cmp.Compare(x.Verdict, y.Verdict))
	})
	return all
}
