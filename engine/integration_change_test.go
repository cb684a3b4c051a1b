package engine_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/policy"
)

// cutWithin is how long after a change something may still pass: replies do
// until the next packet of the original direction is judged, which may be an
// acknowledgement that the receiver delays by 40 ms (TCP_DELACK_MIN), and the
// machine is busy.
const cutWithin = 250 * time.Millisecond

// demandCut checks that nothing passes from cutWithin after the change on.
func (s *stream) demandCut(changed time.Time) {
	s.t.Helper()
	time.Sleep(time.Until(changed.Add(cutWithin + silence)))
	if late := s.last().Sub(changed); late > cutWithin {
		s.t.Errorf("%s: something arrived %v after the change", s.name, late)
	}
}

// TestRevocation: a change that denies what is going on cuts it in both
// directions; what stays allowed goes on without a loss; and when the policy goes,
// what was cut comes back to life.
func TestRevocation(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.start(isolate(ingress, "other"))
		denied, allowed := openStreams(t, n.other, n.server), openStreams(t, n.client, n.server)
		n.demandQueued("before any policy is about them", 0)
		change := n.apply(isolate(ingress, "other"), allow("client", "server"))
		changed := time.Now()
		if !change.Revokes {
			t.Errorf("change %+v", change)
		}
		for _, s := range allowed {
			s.awaitLines(50)
		}
		for _, s := range denied {
			s.demandCut(changed)
		}
		for _, s := range allowed {
			s.awaitLines(50)
		}
		if n.queued() < 8 {
			t.Errorf("user space saw %d packets, want one of each stream at least", n.queued())
		}
		n.apply(isolate(ingress, "other"))
		for _, s := range denied {
			s.awaitLines(50)
		}
	})
}

// TestRevocationOfAJudgedFlow: a flow that was allowed by a verdict, and is
// believed by its connection mark and the allow set, is cut as well, and comes
// back when it is allowed again.
func TestRevocationOfAJudgedFlow(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.start(allow("client", "server"))
		streams := openStreams(t, n.client, n.server)
		demand(t, http(policy.Allow, n.client, n.server, 80)...)
		n.apply(allow("other", "server"))
		changed := time.Now()
		demand(t, http(policy.Deny, n.client, n.server, 80)...)
		for _, s := range streams {
			s.demandCut(changed)
		}
		n.apply(allow("client", "server"))
		demand(t, http(policy.Allow, n.client, n.server, 80)...)
		for _, s := range streams {
			s.awaitLines(50)
		}
	})
}

// narrow leaves room for four generations in the connection mark, in bits that are
// not next to each other, and for four epochs in the packet mark.
func narrow(o *options) { o.hook.ConnmarkMask, o.hook.MarkMask = 0x00030d00, 0x000001f0 }

// TestGenerationsLoseNothing: while other pods' policies change back and forth,
// until generations have come round, allowed UDP loses no datagram, which nobody
// would send again.
func TestGenerationsLoseNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.startWith(narrow, allow("client", "server"))
		var flows []*datagrams
		families(n.server, func(_ string, a netip.Addr) { flows = append(flows, openDatagrams(t, n.client, n.server, a)) })
		n.revoke(5, allow("client", "server"))
		for _, f := range flows {
			f.demandAll()
		}
		if got := n.matched(hook.PurposeDrop) + n.matched(hook.PurposeStaleDenied) + n.matched(hook.PurposeInvalid); got != 0 {
			t.Errorf("%d packets were dropped", got)
		}
	})
}

// revoke begins as many generations, without a change for the pods that the given
// policies are about, and ends with these alone.
func (n *network) revoke(generations int, policies ...*networkingv1.NetworkPolicy) {
	n.t.Helper()
	for range generations {
		change := n.apply(append(slices.Clone(policies), isolate(ingress, "other"))...)
		if !change.Revokes {
			n.t.Fatalf("change %+v, want one that revokes", change)
		}
		n.apply(policies...)
	}
}

// TestGenerationsComeRound: a connection that was allowed in a generation, and was
// idle until that number is in use again, is not believed to be allowed.
func TestGenerationsComeRound(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		server, err := n.server.ServeTCP(0)
		if err != nil {
			t.Fatal(err)
		}
		n.startWith(narrow, allow("client", "server"))
		const generations = 4
		for passed := generations - 1; passed <= generations+1; passed++ {
			n.apply(allow("client", "server"))
			var idle []net.Conn
			families(n.server, func(family string, a netip.Addr) {
				c, err := n.client.DialContext(within(t, patience), "tcp", netip.AddrPortFrom(a, server.Port).String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					_ = c.(*net.TCPConn).SetLinger(0)
					c.Close()
				})
				if err := exchange(c, patience); err != nil {
					t.Fatalf("%s: %v", family, err)
				}
				idle = append(idle, c)
			})
			n.revoke(passed-1, allow("client", "server"))
			n.apply(allow("other", "server"))
			for _, c := range idle {
				if err := exchange(c, silence); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%v, idle for %d generations: %v, want silence", c.RemoteAddr(), passed, err)
				}
			}
		}
	})
}

// TestAddingDisturbsNobody: a change that only adds asks about no live flow, and
// what it allows was not forgotten to be denied.
func TestAddingDisturbsNobody(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.start(allow("client", "server"))
		streams := openStreams(t, n.client, n.server)
		demand(t, http(policy.Deny, n.other, n.server, 80)...)
		before := n.queued()
		change := n.apply(allow("client", "server"), allow("other", "server"))
		if want := (policy.Change{Adds: true}); change != want {
			t.Errorf("change %+v, want %+v", change, want)
		}
		for _, s := range streams {
			s.awaitLines(50)
		}
		n.demandQueued("live flows after an addition", before)
		demand(t, http(policy.Allow, n.other, n.server, 80)...)
	})
}

// TestFreedPodTalksAgain: a flow that was cut both ways goes on when its pod is
// isolated no more, replies included, although nobody is asked then.
func TestFreedPodTalksAgain(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.start()
		streams := openStreams(t, n.client, n.server)
		n.apply(isolate(ingress, "server"))
		changed := time.Now()
		for _, s := range streams {
			s.demandCut(changed)
		}
		n.apply()
		before := n.queued()
		for _, s := range streams {
			s.awaitLines(50)
		}
		n.demandQueued("after the pod is free", before)
	})
}

// TestHeldUntilKnown: the first packets to an isolated pod from one that the
// engine does not know yet wait in the kernel, and are let through by the tree
// that knows it; its verdict counts, not that for unknown pods.
func TestHeldUntilKnown(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.startWith(func(o *options) { o.engine.HoldLimit, o.engine.HoldTime = 16, time.Minute },
			allow("late", "server"))
		var wg sync.WaitGroup
		wg.Go(func() { demand(t, http(policy.Allow, n.late, n.server, 80)...) })
		eventually(t, "a packet of each family on hold", func() bool { return n.engine.Stats().HeldNow >= 2 })
		n.applyTree(n.compile(n.snapshot(true, allow("late", "server"))))
		wg.Wait()
		if s := n.engine.Stats(); s.HeldNow != 0 || s.HoldExpired != 0 {
			t.Errorf("held now %d, expired %d", s.HeldNow, s.HoldExpired)
		}
	})
}

// TestHeldTooLong: after its time a packet gets the verdict for unknown pods.
func TestHeldTooLong(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.startWith(func(o *options) { o.engine.HoldLimit, o.engine.HoldTime = 16, 50*time.Millisecond },
			allow("late", "server"))
		demand(t, http(policy.Deny, n.late, n.server, 80)...)
		if s := n.engine.Stats(); s.HeldNow != 0 || s.HoldExpired < 2 {
			t.Errorf("held now %d, expired %d", s.HeldNow, s.HoldExpired)
		}
		// What was denied for want of a pod is not remembered when it is known.
		n.applyTree(n.compile(n.snapshot(true, allow("late", "server"))))
		demand(t, http(policy.Allow, n.late, n.server, 80)...)
	})
}
