package engine

import (
	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// Rejecter answers denied packets; *reject.Rejecter is one. See there for what the
// call does, and does not.
type Rejecter interface {
	Reject(p *packet.Packet, payload []byte) bool
}

// rejects reports whether the sender of a packet is to learn that it was denied:
// as the namespace says whose policies settled it, else as the agent is told.
func (w *worker) rejects(d *policy.Decision) bool {
	if w.rejecter == nil || d.Verdict == policy.Allow {
		return false
	}
	how := d.Outcome().Denial
	if how == policy.DenialUnset {
		how = w.deny
	}
	return how == policy.DenialReject
}

// answerRejected denies a packet, and cuts the connection that it belongs to, but
// has the kernel ask about the next of its kind, so that it is answered too.
func (w *worker) answerRejected(mark uint32) queue.Answer {
	if w.marks.Decided(mark) {
		return queue.Answer{Action: queue.Drop}
	}
	return queue.Answer{Action: queue.Repeat, SetMark: true, Mark: w.marks.Rejected(mark)}
}

// answers reports whether any packet may come to be answered under a tree.
func (e *Engine) answers(t *policy.Tree) bool {
	return e.cfg.Rejecter != nil && (e.cfg.Deny == policy.DenialReject || t.Rejects())
}
