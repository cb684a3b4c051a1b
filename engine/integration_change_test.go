package engine_test

import (
	"errors"
	"fmt"
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

// deny applies policies that deny what goes on over the streams, and returns when.
func (n *network) deny(streams []*stream, policies ...*networkingv1.NetworkPolicy) (change policy.Change, at time.Time) {
	n.t.Helper()
	change = n.apply(policies...)
	for _, s := range streams {
		s.denied = s.begun[0].Load()
	}
	return change, time.Now()
}

// demandCut waits until nothing passes any more, and then until both ends have sent
// more, of which nothing must arrive (TCP sends again by itself, and soon takes no more
// to send). Nothing that the client began to send after the change may have arrived at
// all; what the server sends may, until a packet of the client is judged, and no longer
// than -prompt allows.
func (s *stream) demandCut(changed time.Time) {
	s.t.Helper()
	awaitSilence(s.t, s.name, s.last)
	if late := s.last().Sub(changed); late > *prompt {
		s.t.Errorf("%s: something arrived %v after the change", s.name, late)
	}
	if got := s.received[1].highest.Load(); got >= s.denied {
		s.t.Errorf("%s: line %d arrived, of which the sending began after the change (%d)", s.name, got, s.denied)
	}
	last := s.last()
	for end := range s.conns {
		want := s.begun[end].Load() + 20
		eventually(s.t, fmt.Sprintf("%s: end %d to send", s.name, end), func() bool { return s.tcp || s.begun[end].Load() >= want })
	}
	time.Sleep(settling)
	if !s.last().Equal(last) {
		s.t.Errorf("%s: something arrived %v after silence", s.name, s.last().Sub(last))
	}
}

// awaitSilence waits until nothing has arrived for silence, in steps: after a time
// without the CPU, what waits in sockets is read first.
func awaitSilence(t testing.TB, what string, last func() time.Time) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		before, quiet := last(), 0
		for ; quiet < silenceSteps && last().Equal(before); quiet++ {
			time.Sleep(silence / silenceSteps)
		}
		if quiet == silenceSteps && last().Equal(before) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: no silence within %v", what, patience)
		}
	}
}

// settling is how long what has been sent may be on its way to its reader.
const settling = 50 * time.Millisecond

// TestRevocation: a change that denies what is going on cuts it in both
// directions; what stays allowed goes on without a loss; and when the policy goes,
// what was cut comes back to life.
func TestRevocation(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.start(isolate(ingress, "other"))
		denied, allowed := openStreams(t, n.other, n.server), openStreams(t, n.client, n.server)
		n.demandQueued("before any policy is about them", 0)
		change, changed := n.deny(denied, isolate(ingress, "other"), allow("client", "server"))
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
		_, changed := n.deny(streams, allow("other", "server"))
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
		_, changed := n.deny(streams, isolate(ingress, "server"))
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
		eventually(t, "the time of a packet of each family to be over", func() bool {
			s := n.engine.Stats()
			return s.HeldNow == 0 && s.HoldExpired >= 2
		})
		// What was denied for want of a pod is not remembered when it is known.
		n.applyTree(n.compile(n.snapshot(true, allow("late", "server"))))
		demand(t, http(policy.Allow, n.late, n.server, 80)...)
	})
}
