package hubble

import (
	"net/netip"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// event is a record as the history keeps it. It refers to pods, which snapshots
// share, and to outcomes of its own, but not to the tree: a history of quiet hours
// would keep every tree of that time in memory.
type event struct {
	flow.Record // without Names
	src, dst    end
	lost        uint64 // records lost before this one, since the start
}

// end is who held an address when the flow was decided.
type end struct {
	kind endKind
	pod  *policy.Pod // of a podEnd
	node string      // of a nodeEnd; empty if its name is not known
}

type endKind uint8

const (
	noEnd      endKind = iota // the packet hid its address
	worldEnd                  // neither pod nor node
	podEnd                    // a known pod
	nodeEnd                   // an address of a node
	unknownEnd                // in this node's pod range, and nobody known has it
)

// places is what a tree knows beside its pods.
type places interface {
	Node(netip.Addr) (name string, ok bool)
	Unknown(netip.Addr) bool
}

var _ places = (*policy.Tree)(nil)

func endOf(a netip.Addr, names flow.Names) end {
	if !a.IsValid() {
		return end{}
	}
	if names == nil {
		return end{kind: worldEnd}
	}
	if pod, ok := names.Pod(a); ok {
		return end{kind: podEnd, pod: pod}
	}
	if p, ok := names.(places); ok {
		if name, ok := p.Node(a); ok {
			return end{kind: nodeEnd, node: name}
		}
		if p.Unknown(a) {
			return end{kind: unknownEnd}
		}
	}
	return end{kind: worldEnd}
}

// keeper makes events of records. It belongs to the collector's goroutine.
type keeper struct {
	events   []event
	outcomes map[*policy.Outcome]*policy.Outcome
}

func newKeeper() keeper { return keeper{outcomes: map[*policy.Outcome]*policy.Outcome{}} }

// keep returns the events of a batch, valid until the next call. Within a batch
// equal outcomes stay one; they are copied because a pointer into a tree's table
// of outcomes keeps the whole table.
func (k *keeper) keep(records []flow.Record) []event {
	clear(k.events)
	clear(k.outcomes)
	k.events = k.events[:0]
	for i := range records {
		r := records[i]
		e := event{src: endOf(r.Src, r.Names), dst: endOf(r.Dst, r.Names)}
		r.Names = nil
		r.Decision.Egress, r.Decision.Ingress = k.own(r.Decision.Egress), k.own(r.Decision.Ingress)
		e.Record = r
		k.events = append(k.events, e)
	}
	return k.events
}

func (k *keeper) own(o *policy.Outcome) *policy.Outcome {
	if o == nil {
		return &policy.Outcome{}
	}
	mine, ok := k.outcomes[o]
	if !ok {
		c := *o
		mine = &c
		k.outcomes[o] = mine
	}
	return mine
}

// decoded reports whether the fields beyond the addresses come from a packet.
func (e *event) decoded() bool {
	return e.Malformed == packet.OK || e.Malformed == packet.Undecoded
}

// outcome is what one direction's rules said.
func (e *event) outcome(d policy.Direction) *policy.Outcome {
	if d == policy.Ingress {
		return e.Decision.Ingress
	}
	return e.Decision.Egress
}
