package flow

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/netverdict/netverdict/policy"
)

// Demand is what the sinks want at the moment. A worker asks it before it pushes,
// so that the packet path pays only for records that somebody will look at: one
// load of a cache line that is rarely written. The zero Demand wants nothing.
type Demand struct {
	most atomic.Uint32 // reported verdicts wanted, one bit each

	mu      sync.Mutex
	wanted  [3]int // by Filter
	changed []func(allowed bool)
}

// Keep reports whether some sink wants flows of that reported verdict.
func (d *Demand) Keep(v policy.Verdict) bool { return d.most.Load()&(1<<v) != 0 }

// Want adds a wish that stands until release is called, which may be done more
// than once.
func (d *Demand) Want(f Filter) (release func()) {
	d.add(f, 1)
	return sync.OnceFunc(func() { d.add(f, -1) })
}

// OnAllowed calls f with whether allowed flows are wanted, now and whenever that
// changes. The calls come one at a time; f must not call the Demand.
func (d *Demand) OnAllowed(f func(wanted bool)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = append(slices.Clip(d.changed), f)
	f(d.Keep(policy.Allow))
}

func (d *Demand) add(f Filter, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted[f] += n
	before := d.Keep(policy.Allow)
	most := uint32(0)
	for _, v := range [...]policy.Verdict{policy.Deny, policy.Allow, policy.Audit} {
		if d.wanted[All] > 0 && All.Keep(v) || d.wanted[Denied] > 0 && Denied.Keep(v) {
			most |= 1 << v
		}
	}
	d.most.Store(most)
	if now := d.Keep(policy.Allow); now != before {
		for _, f := range d.changed {
			f(now)
		}
	}
}
