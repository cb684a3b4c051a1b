package engine

import (
	"sync/atomic"
	"time"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// judgement is what a worker judges by: a tree, its serial, the epoch in which the
// kernel may remember its verdicts, and where its outcomes are counted. It never
// changes once published.
type judgement struct {
	tree   *policy.Tree
	serial uint64
	epoch  uint32
	cells  *cells
}

// worker judges the packets of one queue. Everything in it belongs to the
// queue's thread, but for by, which Apply replaces, and the counters.
type worker struct {
	index    int // among the engine's workers
	by       *atomic.Pointer[judgement]
	marks    Marks
	source   queue.Source
	decoder  *packet.Decoder
	packet   packet.Packet
	cache    *cache
	ring     *flow.Ring
	log      Log
	rejecter Rejecter // nil: nothing is answered
	deny     policy.Denial
	counters counters
	rests    atomic.Uint64 // times between two packets, when it judged by nothing
	hold     hold
	forward  atomic.Bool // another process judges: send packets through its rules
	now      int64       // Unix nanoseconds, read once per batch; 0 when not read yet
}

var (
	_ queue.Handler = (*worker)(nil)
	_ queue.Waker   = (*worker)(nil)
	_ queue.Ticker  = (*worker)(nil)
)

// Handle judges one packet: the whole packet path.
func (w *worker) Handle(q *queue.Packet) queue.Answer {
	if w.forward.Load() {
		return forwarded
	}
	by := w.by.Load()
	w.decoder.Decode(q.Payload, &w.packet)
	if w.packet.State.Malformed() {
		return w.malformed(by)
	}
	d, hit := w.decide(by)
	if w.keep(by, q, &d) {
		return queue.Answer{Action: queue.Hold}
	}
	w.account(by, &w.packet, d, hit)
	if w.rejects(&d) && w.rejecter.Reject(&w.packet, q.Payload) {
		return w.answerRejected(q.Mark)
	}
	return w.answer(by, q.Mark, d.Verdict)
}

// decide asks the cache, then the tree.
func (w *worker) decide(by *judgement) (d policy.Decision, hit bool) {
	p := &w.packet
	if w.cache == nil {
		return by.tree.Decide(p.Src, p.Dst, p.Protocol, p.DstPort), false
	}
	key := keyOf(p)
	if d, hit = w.cache.get(key, by.serial); hit {
		w.counters.hits.Add(1)
		return d, true
	}
	w.counters.misses.Add(1)
	d = by.tree.Decide(p.Src, p.Dst, p.Protocol, p.DstPort)
	w.cache.put(key, by.serial, d)
	return d, false
}

// answer sends the packet through the hook again with the verdict in its mark,
// so that the kernel remembers it. A packet that carries a verdict already has
// been around: the rules that would act on it are gone, so it is answered for good.
func (w *worker) answer(by *judgement, mark uint32, v policy.Verdict) queue.Answer {
	if !w.marks.Decided(mark) {
		return queue.Answer{Action: queue.Repeat, SetMark: true, Mark: w.marks.Verdict(mark, v, by.epoch)}
	}
	if v == policy.Allow {
		return queue.Answer{Action: queue.Accept, SetMark: true, Mark: w.marks.Clear(mark)}
	}
	return queue.Answer{Action: queue.Drop}
}

var malformedOutcome = &policy.Outcome{Verdict: policy.Deny, Reason: policy.ReasonMalformed}

// malformed drops a packet that cannot be decoded. It has no flow that the
// kernel could remember.
func (w *worker) malformed(by *judgement) queue.Answer {
	d := policy.Decision{Verdict: policy.Deny, Egress: malformedOutcome, Ingress: malformedOutcome}
	w.account(by, &w.packet, d, false)
	return queue.Answer{Action: queue.Drop}
}

// account counts a decision and, if the flow log wants it, records it.
func (w *worker) account(by *judgement, p *packet.Packet, d policy.Decision, hit bool) {
	w.counters.decided(&d)
	by.cells.decided(w.index, &d)
	if !w.log.Keep(d.Reported()) {
		return
	}
	if w.now == 0 {
		w.now = time.Now().UnixNano()
	}
	r := w.ring.Reserve()
	if r == nil {
		return
	}
	r.Time = w.now
	r.Src, r.Dst, r.SrcPort, r.DstPort = p.Src, p.Dst, p.SrcPort, p.DstPort
	r.Protocol, r.TCPFlags, r.ICMPType, r.ICMPCode = p.Protocol, p.TCPFlags, p.ICMPType, p.ICMPCode
	r.Malformed, r.Cached = p.State, hit
	r.Decision, r.Names, r.Revision = d, by.tree, by.serial
	w.ring.Publish()
}

// BatchEnd forgets the time: the next batch reads it again.
func (w *worker) BatchEnd() {
	w.now = 0
	w.rests.Add(1)
}
