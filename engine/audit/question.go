package audit

import (
	"time"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// question is a flow that began.
type question struct {
	at     int64         // Unix nanoseconds
	packet packet.Packet // its first, with the ends that it is judged by
}

// ask judges a flow that the rules would ask about, unless its kind was judged
// lately.
func (a *Auditor) ask(by *judgement, q question) {
	p := &q.packet
	k := kind{p.Src, p.Dst, p.Protocol, p.DstPort}
	if !policed(by.tree, p) || a.recent.has(k, policy.Deny, q.at) ||
		a.recent.has(k, policy.Allow, q.at) && !a.cfg.Log.Keep(policy.Allow) {
		return
	}
	d := by.tree.Decide(p.Src, p.Dst, p.Protocol, p.DstPort)
	if a.patience(by, &q, &d) > 0 && len(a.waiting) < a.cfg.HoldLimit {
		a.waiting = append(a.waiting, q)
		a.counters.held.Add(1)
		a.counters.heldNow.Store(int64(len(a.waiting)))
		return
	}
	a.settle(by, &q, d)
}

// policed reports whether the rules would ask about a packet.
func policed(t *policy.Tree, p *packet.Packet) bool {
	return t.Isolated(p.Src, policy.Egress) || t.Isolated(p.Dst, policy.Ingress) || t.Unknown(p.Src) || t.Unknown(p.Dst)
}

// patience is how long a flow has to wait for its pod to become known, as the
// engine's packets do.
func (a *Auditor) patience(by *judgement, q *question, d *policy.Decision) time.Duration {
	p := &q.packet
	switch {
	case d.Egress.Reason == policy.ReasonUnknownPod || d.Ingress.Reason == policy.ReasonUnknownPod:
		return a.cfg.HoldTime
	case d.Reported() != policy.Allow && (by.tree.Missing(p.Src) || by.tree.Missing(p.Dst)):
		return a.cfg.HoldRemote
	}
	return 0
}

// review settles the flows whose pods are known by now, or that have waited long
// enough.
func (a *Auditor) review(by *judgement) {
	now := time.Now().UnixNano()
	kept := a.waiting[:0]
	for i := range a.waiting {
		q := a.waiting[i]
		d := by.tree.Decide(q.packet.Src, q.packet.Dst, q.packet.Protocol, q.packet.DstPort)
		wait := a.patience(by, &q, &d)
		if wait > 0 && now-q.at < int64(wait) {
			kept = append(kept, q)
			continue
		}
		if wait > 0 {
			a.counters.expired.Add(1)
		}
		if policed(by.tree, &q.packet) {
			a.settle(by, &q, d)
		}
	}
	a.waiting = kept
	a.counters.heldNow.Store(int64(len(kept)))
}

// settle remembers, counts and reports a decision. Nothing is denied here: what
// would be is audited.
func (a *Auditor) settle(by *judgement, q *question, d policy.Decision) {
	if d.Egress == d.Ingress && d.Egress.Reason == policy.ReasonNodeTraffic {
		return // a pod and its own node: not for the rules
	}
	p := &q.packet
	a.recent.add(kind{p.Src, p.Dst, p.Protocol, p.DstPort}, d.Verdict, q.at)
	if d.Verdict == policy.Deny {
		d.Verdict, d.Audit = policy.Allow, true
	}
	a.counters.decided(&d)
	a.hits.decided(&d)
	if a.cfg.Log.Keep(d.Reported()) {
		a.ring.Push(Record(p, q.at, d, by.tree, by.serial))
	}
}

// Record is the flow record of a packet that was judged at a time (Unix
// nanoseconds) by the tree with a serial.
func Record(p *packet.Packet, at int64, d policy.Decision, names flow.Names, serial uint64) *flow.Record {
	return &flow.Record{
		Time: at,
		Src:  p.Src, Dst: p.Dst, SrcPort: p.SrcPort, DstPort: p.DstPort,
		Protocol: p.Protocol, TCPFlags: p.TCPFlags, ICMPType: p.ICMPType, ICMPCode: p.ICMPCode,
		Malformed: p.State,
		Decision:  d,
		Names:     names,
		Revision:  serial,
	}
}
