package engine

import (
	"time"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// hold is where packets wait whose local pod is not known yet: the kernel keeps
// them in its queue. The bounds are the operator's.
type hold struct {
	limit   int           // packets; 0 holds none
	atMost  time.Duration // then the tree's verdict for unknown pods counts
	waiting []waiting     // oldest first
}

// waiting is one held packet, as much of it as a decision needs.
type waiting struct {
	id       uint32
	mark     uint32
	packet   packet.Packet
	deadline time.Time
}

// wants reports whether a decision is for want of a pod.
func (h *hold) wants(d *policy.Decision) bool {
	return h.limit > 0 && (d.Egress.Reason == policy.ReasonUnknownPod || d.Ingress.Reason == policy.ReasonUnknownPod)
}

// keep puts the packet at hand on hold, if there is room.
func (w *worker) keep(q *queue.Packet) bool {
	h := &w.hold
	if len(h.waiting) >= h.limit {
		return false
	}
	h.waiting = append(h.waiting, waiting{id: q.ID, mark: q.Mark, packet: w.packet, deadline: time.Now().Add(h.atMost)})
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
	by := w.by.Load()
	kept := h.waiting[:0]
	for i := range h.waiting {
		p := &h.waiting[i]
		d := by.tree.Decide(p.packet.Src, p.packet.Dst, p.packet.Protocol, p.packet.DstPort)
		expired := !now.IsZero() && !now.Before(p.deadline)
		if h.wants(&d) && !expired {
			kept = append(kept, *p)
			continue
		}
		if h.wants(&d) {
			w.counters.expired.Add(1)
		}
		w.account(by, &p.packet, d, false)
		w.source.Release(p.id, w.answer(by, p.mark, d.Verdict))
	}
	h.waiting = kept
	w.counters.heldNow.Store(int64(len(kept)))
	w.now = 0
}
