package engine

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

const holdTime = 3 * time.Second

// holding is an engine that holds up to two packets.
func holding(t *testing.T) *rig {
	return newRig(t, func(c *Config) { c.HoldLimit, c.HoldTime = 2, holdTime })
}

// unknownTree knows no late pod; its verdict for such addresses is given.
func unknownTree(t *testing.T, v policy.Verdict) *policy.Tree {
	s := sceneSnapshot()
	s.UnknownPod = v
	return compile(t, s)
}

func (r *rig) demandStats(when string, now int64, held, expired uint64) {
	r.t.Helper()
	s := r.engine.Stats()
	if s.HeldNow != now || s.Held != held || s.HoldExpired != expired {
		r.t.Errorf("%s: held now %d, ever %d, expired %d, want %d, %d, %d", when, s.HeldNow, s.Held, s.HoldExpired, now, held, expired)
	}
}

// TestHoldUntilKnown: a packet to a pod that is not known yet waits, and is
// judged by the first tree that knows it. One from there waits as well.
func TestHoldUntilKnown(t *testing.T) {
	t.Parallel()
	r := holding(t)
	r.run(unknownTree(t, policy.Deny))
	allowed := r.source.Inject(queue.Packet{Mark: foreign, Payload: packetOf(t, web4, late4, policy.TCP, tcpPort)})
	denied := r.source.Inject(queue.Packet{Payload: packetOf(t, ops6, late6, policy.TCP, tcpPort)})
	r.source.Settle()
	r.demandStats("before", 2, 2, 0)
	if n := len(r.source.Answers()); n != 0 {
		t.Fatalf("%d packets were answered", n)
	}

	r.apply(sceneTree(t)) // another tree that does not know the pod either
	r.source.Settle()
	r.demandStats("after a tree without the pod", 2, 2, 0)

	r.apply(lateTree(t))
	r.source.Settle()
	r.demandStats("after", 0, 2, 0)
	want := []queue.Answered{
		{ID: allowed, Answer: queue.Answer{Action: queue.Repeat, SetMark: true, Mark: r.marks.Verdict(foreign, policy.Allow, 3)}},
		{ID: denied, Answer: r.verdict(policy.Deny, 3)},
	}
	if diff := cmp.Diff(want, r.source.Answers()); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	if records := r.records(); len(records) != 2 || records[0].Revision != 3 || records[0].Src != web4 || records[1].Src != ops6 {
		t.Errorf("records %+v", records)
	}
}

func TestHoldFromUnknown(t *testing.T) {
	t.Parallel()
	r := holding(t)
	r.run(unknownTree(t, policy.Deny))
	if a, ok := r.judge(queue.Packet{Payload: packetOf(t, late4, web4, policy.UDP, 99)}); ok {
		t.Fatalf("answered %v", a)
	}
	r.apply(lateTree(t))
	r.source.Settle()
	if a, ok := r.answer(1); !ok || a != r.verdict(policy.Allow, 2) {
		t.Errorf("answered %t: %s, want allow in epoch 2", ok, describe(r.marks, a))
	}
}

// TestHoldLimit: beyond the limit packets are decided at once, and the others
// go on waiting.
func TestHoldLimit(t *testing.T) {
	t.Parallel()
	for _, v := range []policy.Verdict{policy.Deny, policy.Allow} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			r := holding(t)
			r.run(unknownTree(t, v))
			p := queue.Packet{Payload: packetOf(t, web4, late4, policy.TCP, tcpPort)}
			for range 2 {
				if a, ok := r.judge(p); ok {
					t.Fatalf("answered %v, want hold", a)
				}
			}
			if a, ok := r.judge(p); !ok || a != r.verdict(v, 1) {
				t.Errorf("the third: %s, want %v", describe(r.marks, a), v)
			}
			r.demandStats("full", 2, 2, 0)
		})
	}
}

// TestHoldDeadline: after the time the verdict for unknown pods counts, for
// each packet by its own clock.
func TestHoldDeadline(t *testing.T) {
	t.Parallel()
	for _, v := range []policy.Verdict{policy.Deny, policy.Allow} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			r := holding(t)
			r.run(unknownTree(t, v))
			before := time.Now()
			p := queue.Packet{Payload: packetOf(t, web4, late4, policy.TCP, tcpPort)}
			r.judge(p)
			r.source.Tick(before.Add(holdTime - time.Millisecond))
			r.source.Settle()
			r.demandStats("a little before", 1, 1, 0)
			between := time.Now()
			r.judge(p)
			r.source.Tick(between.Add(holdTime)) // the second came later
			r.source.Settle()
			r.demandStats("when the first is due", 1, 2, 1)
			r.source.Tick(time.Now().Add(holdTime))
			r.source.Settle()
			r.demandStats("when both are due", 0, 2, 2)
			for _, a := range r.source.Answers() {
				if a.Answer != r.verdict(v, 1) {
					t.Errorf("packet %d: %s, want %v", a.ID, describe(r.marks, a.Answer), v)
				}
			}
			if n := len(r.source.Answers()); n != 2 {
				t.Errorf("%d answers, want 2", n)
			}
		})
	}
}

// TestNoHold: with limit 0 nothing waits.
func TestNoHold(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.run(unknownTree(t, policy.Deny))
	if a, ok := r.judge(queue.Packet{Payload: packetOf(t, web4, late4, policy.TCP, tcpPort)}); !ok || a != r.verdict(policy.Deny, 1) {
		t.Errorf("answered %t: %s, want deny at once", ok, describe(r.marks, a))
	}
	r.demandStats("after", 0, 0, 0)
}

// TestOthersDoNotWait while packets are on hold.
func TestOthersDoNotWait(t *testing.T) {
	t.Parallel()
	r := holding(t)
	r.run(sceneTree(t, isolate("db")))
	r.judge(queue.Packet{Payload: packetOf(t, web4, late4, policy.TCP, tcpPort)})
	if a, ok := r.judge(queue.Packet{Payload: packetOf(t, web4, ops4, policy.TCP, tcpPort)}); !ok || a != r.verdict(policy.Allow, 1) {
		t.Errorf("answered %t: %s, want allow", ok, describe(r.marks, a))
	}
	if a, ok := r.judge(queue.Packet{Payload: truncated(t)}); !ok || a != (queue.Answer{}) {
		t.Errorf("answered %t: %v, want drop", ok, a)
	}
	r.demandStats("meanwhile", 1, 1, 0)
}

// TestHeldAtTheEnd: Run leaves nobody waiting in the kernel.
func TestHeldAtTheEnd(t *testing.T) {
	t.Parallel()
	r := holding(t)
	r.run(unknownTree(t, policy.Allow))
	r.judge(queue.Packet{Payload: packetOf(t, web4, late4, policy.TCP, tcpPort)})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if a, ok := r.answer(1); !ok || a != (queue.Answer{}) {
		t.Errorf("answered %t: %v, want drop", ok, a)
	}
}

// TestPodKnownAfterExpiry: a verdict given for want of a pod may have been
// remembered by the kernel; the tree that knows the pod must say that it adds.
func TestPodKnownAfterExpiry(t *testing.T) {
	t.Parallel()
	r := holding(t)
	r.run(unknownTree(t, policy.Deny))
	r.judge(queue.Packet{Payload: packetOf(t, web4, late4, policy.TCP, tcpPort)})
	r.source.Tick(time.Now().Add(holdTime))
	r.source.Settle()
	if change := r.apply(lateTree(t)); !change.Adds {
		t.Errorf("change %+v, want one that adds", change)
	}
}

// farTree has another node, whose range contains the far pod's address; the pod
// itself is known or not. db lets in far only, ops everybody.
func farTree(t *testing.T, known bool) *policy.Tree {
	s := sceneSnapshot(allow("far", "db"))
	s.Nodes = []*policy.Node{{Name: "elsewhere", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}}}
	if known {
		far := scenePod("far", far4)
		far.NodeName = "elsewhere"
		s.Pods = append(s.Pods, far)
	}
	s.Local = func(p *policy.Pod) bool { return p.NodeName != "elsewhere" }
	return compile(t, s)
}

var far4, stranger4 = netip.MustParseAddr("10.2.0.7"), netip.MustParseAddr("192.0.2.7")

// TestHoldRemote: a packet that would be denied waits a little if its other end
// may be a pod of another node that is not known yet. One that would be allowed
// does not wait, nor one of an address that is no pod's.
func TestHoldRemote(t *testing.T) {
	t.Parallel()
	remote := func(c *Config) { c.HoldLimit, c.HoldTime, c.HoldRemote = 4, holdTime, time.Second }
	early := queue.Packet{Payload: packetOf(t, far4, db4, policy.TCP, tcpPort)}
	t.Run("known in time", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, remote)
		r.run(farTree(t, false))
		if a, ok := r.judge(early); ok {
			t.Fatalf("answered %s, want hold", describe(r.marks, a))
		}
		r.apply(farTree(t, true))
		r.source.Settle()
		if a, ok := r.answer(1); !ok || a != r.verdict(policy.Allow, 2) {
			t.Errorf("answered %t: %s, want allow in epoch 2", ok, describe(r.marks, a))
		}
	})
	t.Run("never known", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, remote)
		r.run(farTree(t, false))
		r.judge(early)
		r.source.Tick(time.Now().Add(time.Second))
		r.source.Settle()
		if a, ok := r.answer(1); !ok || a != r.verdict(policy.Deny, 1) {
			t.Errorf("answered %t: %s, want deny", ok, describe(r.marks, a))
		}
		r.demandStats("after its time", 0, 1, 1)
	})
	for name, p := range map[string]queue.Packet{
		"allowed":            {Payload: packetOf(t, far4, ops4, policy.TCP, tcpPort)},
		"no pod's":           {Payload: packetOf(t, stranger4, db4, policy.TCP, tcpPort)},
		"known and denied":   {Payload: packetOf(t, web4, db4, policy.TCP, tcpPort)},
		"between known pods": {Payload: packetOf(t, web4, ops4, policy.TCP, tcpPort)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, remote)
			r.run(farTree(t, false))
			if _, ok := r.judge(p); !ok {
				t.Error("waits")
			}
		})
	}
}

// TestHoldIsShared: neither one source nor packets of remote pods take all the
// room, and what they had is free again afterwards.
func TestHoldIsShared(t *testing.T) {
	t.Parallel()
	const limit = 1024
	r := newRig(t, func(c *Config) { c.HoldLimit, c.HoldTime, c.HoldRemote = limit, holdTime, time.Second })
	r.run(farTree(t, false))
	for round := range uint64(2) {
		for i := range 2 * limit {
			r.source.Inject(queue.Packet{Payload: packetFrom(t, web4, late4, policy.TCP, uint16(i), tcpPort)})
		}
		r.source.Settle()
		want := uint64(limit/8) * (1 + round)
		r.demandStats("packets of one source", limit/8, want, want-limit/8)
		r.source.Tick(time.Now().Add(holdTime))
		r.source.Settle()
	}
	before := r.engine.Stats().Held
	for i := range 2 * limit {
		from := netip.AddrFrom4([4]byte{10, 2, 0, byte(i)})
		r.source.Inject(queue.Packet{Payload: packetFrom(t, from, db4, policy.TCP, uint16(i), tcpPort)})
	}
	r.source.Settle()
	if got := r.engine.Stats().Held - before; got != limit/2 {
		t.Errorf("%d packets of remote pods wait, want %d", got, limit/2)
	}
	if _, ok := r.judge(queue.Packet{Payload: packetOf(t, web4, late4, policy.TCP, tcpPort)}); ok {
		t.Error("there is no room left for a local pod")
	}
}
