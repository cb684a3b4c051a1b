package engine

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/netverdict/netverdict/policy"
)

// cells count the outcomes that one set of outcomes has had, exactly: flow records
// may be lost, these are not. A worker pays one addition for each end that a policy
// decided, to memory that is its own; which policies an outcome names is worked out
// when somebody asks.
type cells struct {
	outcomes []policy.Outcome
	workers  [][directions][]atomic.Uint64 // by worker, direction and Outcome.ID
}

func newCells(outcomes []policy.Outcome, workers int) *cells {
	c := &cells{outcomes: outcomes, workers: make([][directions][]atomic.Uint64, workers)}
	for w := range c.workers {
		for d := range directions {
			c.workers[w][d] = make([]atomic.Uint64, len(outcomes))
		}
	}
	return c
}

// of reports whether the cells are for a tree's outcomes.
func (c *cells) of(outcomes []policy.Outcome) bool {
	return c != nil && len(c.outcomes) == len(outcomes) && len(outcomes) > 0 && &c.outcomes[0] == &outcomes[0]
}

// decided counts a decision for the outcomes that made it what it is: both ends'
// when it allows, that of the end that denied when it denies.
func (c *cells) decided(worker int, d *policy.Decision) {
	if d.Verdict == policy.Deny {
		c.add(worker, d.Direction, d.Outcome())
		return
	}
	c.add(worker, policy.Egress, d.Egress)
	c.add(worker, policy.Ingress, d.Ingress)
}

func (c *cells) add(worker int, d policy.Direction, o *policy.Outcome) {
	if o.Reason == policy.ReasonPolicy || o.Reason == policy.ReasonDefaultDeny {
		c.workers[worker][d][o.ID].Add(1)
	}
}

// drain moves what was counted to take.
func (c *cells) drain(take func(*policy.Outcome, policy.Direction, uint64)) {
	for w := range c.workers {
		for _, d := range policy.Directions {
			for id := range c.workers[w][d] {
				cell := &c.workers[w][d][id]
				if cell.Load() != 0 {
					take(&c.outcomes[id], d, cell.Swap(0))
				}
			}
		}
	}
}

// PolicyHits counts the connections that a policy decided in user space: a rule of
// it allowed them, or it isolates the pod and no rule of any policy allowed them,
// which in an audited namespace counts as Audit.
type PolicyHits struct {
	// Policy is zero for all policies beyond the limit together.
	Policy    policy.PolicyRef
	Direction policy.Direction
	Verdict   policy.Verdict
	Count     uint64
}

// hits collects the counters of all trees.
//
// A tree with other outcomes than the one before gets new cells. The old ones are
// read until every worker has been seen between two packets since: from then on none
// counts there any more.
type hits struct {
	mu      sync.Mutex
	limit   int // policies that are counted by name
	workers []*worker

	now     *cells
	retired []retired
	counts  map[policy.PolicyRef]*[directions][verdicts]uint64
	named   map[policy.PolicyRef]bool // policies that have a place among the limit
	others  [directions][verdicts]uint64
}

// retired are cells and how often each worker had rested when they were replaced.
type retired struct {
	cells  *cells
	rested []uint64
}

func newHits(limit int, workers []*worker) *hits {
	return &hits{
		limit: limit, workers: workers,
		counts: map[policy.PolicyRef]*[directions][verdicts]uint64{}, named: map[policy.PolicyRef]bool{},
	}
}

// cellsFor returns where the decisions of a tree are to be counted.
func (h *hits) cellsFor(t *policy.Tree) *cells {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.now.of(t.Outcomes()) {
		h.now = newCells(t.Outcomes(), len(h.workers))
	}
	return h.now
}

// retire takes note that cells were replaced by those of now, if they were.
func (h *hits) retire(old *cells) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drainRetired()
	if old != nil && old != h.now {
		h.retired = append(h.retired, retired{old, h.rested()})
	}
}

func (h *hits) rested() []uint64 {
	rested := make([]uint64, len(h.workers))
	for i, w := range h.workers {
		rested[i] = w.rests.Load()
	}
	return rested
}

func (h *hits) drainRetired() {
	now := h.rested() // before the cells are read
	h.retired = slices.DeleteFunc(h.retired, func(r retired) bool {
		r.cells.drain(h.count)
		for i := range now {
			if now[i] == r.rested[i] {
				return false
			}
		}
		return true
	})
}

func (h *hits) count(o *policy.Outcome, d policy.Direction, n uint64) {
	if o.Reason == policy.ReasonPolicy {
		h.countFor(o.Policy, d, o.Reported(), n)
	}
	for _, ref := range o.IsolatedBy {
		h.countFor(ref, d, o.Reported(), n)
	}
}

func (h *hits) countFor(ref policy.PolicyRef, d policy.Direction, v policy.Verdict, n uint64) {
	c := h.counts[ref]
	if c == nil {
		c = new([directions][verdicts]uint64)
		h.counts[ref] = c
	}
	c[d][v] += n
}

// collect returns the totals of the policies of a tree, by name. Those that are
// gone are forgotten. Policies keep the place that they have among the limit, so
// that no counter ever falls, and free places go to the others by name.
func (h *hits) collect(t *policy.Tree) []PolicyHits {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drainRetired()
	if h.now != nil {
		h.now.drain(h.count)
	}
	h.forget(t)
	var all []PolicyHits
	for ref, isolates := range t.Policies() {
		switch {
		case h.named[ref]:
		case len(h.named) < h.limit:
			h.named[ref] = true
		default:
			h.toOthers(ref)
			continue
		}
		all = h.appendHits(all, ref, isolates)
	}
	return h.appendOthers(all)
}

// forget drops what belongs to policies that the tree does not have.
func (h *hits) forget(t *policy.Tree) {
	present := map[policy.PolicyRef]bool{}
	for ref := range t.Policies() {
		present[ref] = true
	}
	for ref := range h.named {
		if !present[ref] {
			delete(h.named, ref)
		}
	}
	for ref := range h.counts {
		if !present[ref] {
			delete(h.counts, ref)
		}
	}
}

func (h *hits) toOthers(ref policy.PolicyRef) {
	if c := h.counts[ref]; c != nil {
		for d := range c {
			for v := range c[d] {
				h.others[d][v] += c[d][v]
			}
		}
		delete(h.counts, ref)
	}
}

// appendHits appends what a policy can decide, zero or not: a counter that
// is there from the start shows its first increase.
func (h *hits) appendHits(all []PolicyHits, ref policy.PolicyRef, isolates [2]bool) []PolicyHits {
	c := h.counts[ref]
	if c == nil {
		c = new([directions][verdicts]uint64)
	}
	for _, d := range policy.Directions {
		for v := range verdicts {
			possible := isolates[d] && policy.Verdict(v) != policy.Audit // few namespaces are audited
			if possible || c[d][v] > 0 {
				all = append(all, PolicyHits{ref, d, policy.Verdict(v), c[d][v]})
			}
		}
	}
	return all
}

func (h *hits) appendOthers(all []PolicyHits) []PolicyHits {
	for _, d := range policy.Directions {
		for v, n := range h.others[d] {
			if n > 0 {
				all = append(all, PolicyHits{Direction: d, Verdict: policy.Verdict(v), Count: n})
			}
		}
	}
	return all
}

// PolicyHits returns what the policies of the tree in force have decided since the
// engine started, or since they select a local pod: at most Config.PolicyLimit by
// name, the others together. Decisions that the kernel repeats from memory are not
// among them.
func (e *Engine) PolicyHits() []PolicyHits {
	by := e.by.Load()
	if by == nil {
		return nil
	}
	return e.hits.collect(by.tree)
}
