package engine

import (
	"net/netip"
	"time"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// hold is where packets wait whose pod is not known yet: the kernel keeps them in
// its queue. The bounds are the operator's.
//
// A local pod that is not known waits in any case, for nobody knows which
// policies are about it. A remote one, whose address another node's range
// contains, is enforced by its own node; here it is only a peer, and waits for a
// shorter time, when it would be denied for being a stranger.
type hold struct {
	limit    int           // packets; 0 holds none
	atMost   time.Duration // then the tree's verdict for unknown pods counts
	remote   time.Duration // the same for remote pods; 0 does not wait for them
	waiting  []waiting     // oldest first
	bySource [sourceSlots]uint16
	remotes  int // how many of waiting wait for a remote pod
}

// waiting is one held packet, as much of it as a decision needs.
type waiting struct {
	id       uint32
	mark     uint32
	packet   packet.Packet
	deadline time.Time
	remote   bool
}

// sourceSlots is over how many counters sources are spread; two that share one
// share what each of them may hold.
const sourceSlots = 256

// minShare is how many packets one source may always hold, if the limit allows.
const minShare = 64

func newHold(cfg *Config) hold {
	return hold{
		limit: cfg.HoldLimit, atMost: cfg.HoldTime, remote: cfg.HoldRemote,
		waiting: make([]waiting, 0, cfg.HoldLimit),
	}
}

// wants returns how long the packet of a decision should wait for its pod: 0 not
// at all.
func (h *hold) wants(by *judgement, p *packet.Packet, d *policy.Decision) (wait time.Duration, remote bool) {
	switch {
	case h.limit == 0:
		return 0, false
	case d.Egress.Reason == policy.ReasonUnknownPod || d.Ingress.Reason == policy.ReasonUnknownPod:
		return h.atMost, false
	case d.Verdict == policy.Deny && h.remote > 0 && (by.tree.Missing(p.Src) || by.tree.Missing(p.Dst)):
		return h.remote, true
	}
	return 0, false
}

// room reports whether one more packet of a source may wait. No source may fill
// more than an eighth, and remote pods not more than half: a flood of packets to
// or from nobody must not keep those waiting out that have just started.
func (h *hold) room(source netip.Addr, remote bool) bool {
	return len(h.waiting) < h.limit &&
		int(h.bySource[sourceSlot(source)]) < max(h.limit/8, minShare) &&
		(!remote || h.remotes < (h.limit+1)/2)
}

func sourceSlot(a netip.Addr) uint8 {
	hi, lo := halves(a)
	return uint8((hi ^ lo) * 0x9e3779b97f4a7c15 >> 56)
}

// count enters or takes out a packet.
func (h *hold) count(w *waiting, by int) {
	h.bySource[sourceSlot(w.packet.Src)] += uint16(by)
	if w.remote {
		h.remotes += by
	}
}

// keep puts the packet at hand on hold if its decision is for want of a pod, and
// there is room.
func (w *worker) keep(by *judgement, q *queue.Packet, d *policy.Decision) bool {
	h := &w.hold
	wait, remote := h.wants(by, &w.packet, d)
	if wait == 0 || !h.room(w.packet.Src, remote) {
		return false
	}
	h.waiting = append(h.waiting, waiting{id: q.ID, mark: q.Mark, packet: w.packet, deadline: time.Now().Add(wait), remote: remote})
	h.count(&h.waiting[len(h.waiting)-1], 1)
	w.counters.held.Add(1)
	w.counters.heldNow.Store(int64(len(h.waiting)))
	return true
}

// OnWake judges the held packets again: there is a new tree.
func (w *worker) OnWake() {
	w.rests.Add(1)
	w.review(time.Time{})
}

// OnTick lets go of the packets that have waited long enough.
func (w *worker) OnTick(now time.Time) { w.review(now) }

// review answers every held packet whose pods are known by now, or whose
// deadline has passed. Deadlines do not count when now is zero.
func (w *worker) review(now time.Time) {
	h := &w.hold
	if len(h.waiting) == 0 {
		return
	}
	if w.forward.Load() {
		w.letGo()
		return
	}
	by := w.by.Load()
	kept := h.waiting[:0]
	for i := range h.waiting {
		p := &h.waiting[i]
		d := by.tree.Decide(p.packet.Src, p.packet.Dst, p.packet.Protocol, p.packet.DstPort)
		expired := !now.IsZero() && !now.Before(p.deadline)
		wait, _ := h.wants(by, &p.packet, &d)
		if wait > 0 && !expired {
			kept = append(kept, *p)
			continue
		}
		if wait > 0 {
			w.counters.expired.Add(1)
		}
		h.count(p, -1)
		w.account(by, &p.packet, d, false)
		a := w.answer(by, p.mark, d.Verdict)
		if w.rejects(&d) { // its bytes are not here any more: when it is sent again
			a = w.answerRejected(p.mark)
		}
		w.source.Release(p.id, a)
	}
	h.waiting = kept
	w.counters.heldNow.Store(int64(len(kept)))
	w.now = 0
}
