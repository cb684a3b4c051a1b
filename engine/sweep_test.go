package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

func liveFlow(src, dst netip.Addr, cut bool) hook.Flow {
	return hook.Flow{Src: src, Dst: dst, Protocol: policy.TCP, Port: tcpPort, Cut: cut}
}

// cuts says which of the flows in the connection table are cut.
func (r *fakeRules) cuts() (cut []bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.flows {
		cut = append(cut, f.Cut)
	}
	return cut
}

func (r *rig) awaitCuts(what string, want ...bool) {
	r.t.Helper()
	eventually(r.t, fmt.Sprintf("%s: cut %v, is %v", what, want, r.rules.cuts()), func() bool { return slices.Equal(r.rules.cuts(), want) })
}

// TestSweepFollowsTheTree: connections are cut and freed behind each tree, those
// that are older than the engine too.
func TestSweepFollowsTheTree(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.rules.flows = []hook.Flow{liveFlow(web4, db4, false), liveFlow(ops6, db6, false), liveFlow(web4, ops4, true)}
	r.run(sceneTree(t, allow("web", "db")))
	r.awaitCuts("at the start", false, true, false)
	r.apply(sceneTree(t, allow("ops", "db")))
	r.awaitCuts("another policy", true, false, false)
	r.apply(sceneTree(t))
	r.awaitCuts("no policy", false, false, false)
	r.apply(sceneTree(t, isolate("ops")))
	r.awaitCuts("isolation", false, false, true)
	if s := r.engine.Stats().Sweeps; s.Cut != 3 || s.Freed != 3 || s.Seen < 6 {
		t.Errorf("%+v", s)
	}
}

// TestSweepSparesTheUnknown for as long as they may become known.
func TestSweepSparesTheUnknown(t *testing.T) {
	t.Parallel()
	const wait = 100 * time.Millisecond
	r := newRig(t, func(c *Config) { c.HoldLimit, c.HoldTime = 2, wait })
	r.rules.flows = []hook.Flow{liveFlow(late4, web4, false), liveFlow(web4, db4, false)}
	start := time.Now()
	r.run(sceneTree(t, isolate("db")))
	r.awaitCuts("in the end", true, true)
	if took := time.Since(start); took < wait {
		t.Errorf("a connection of an unknown pod was cut after %v", took)
	}
}

// comings makes consecutive trees, with the late pod and without.
type comings struct {
	t       *testing.T
	builder *policy.Builder
}

func comingAndGoing(t *testing.T) *comings {
	s := sceneSnapshot(allow("late", "db"))
	c := &comings{t, policy.NewBuilder(policy.Scope{Local: func(*policy.Pod) bool { return true }, LocalPodCIDRs: s.LocalPodCIDRs})}
	c.builder.Apply(policy.DeltaOf(s))
	return c
}

func (c *comings) build(late bool) *policy.Tree {
	c.t.Helper()
	pod := scenePod("late", late4, late6)
	d := &policy.Delta{Pods: map[policy.NamespacedName]*policy.Pod{pod.NamespacedName: nil}}
	if late {
		d.Pods[pod.NamespacedName] = pod
	}
	c.builder.Apply(d)
	tree, err := c.builder.Build()
	if err != nil {
		c.t.Fatal(err)
	}
	return tree
}

// TestConfinedChange: a pod that goes costs only what the kernel knows of it.
func TestConfinedChange(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.ConfineTo = 8 })
	trees := comingAndGoing(t)
	r.rules.flows = []hook.Flow{liveFlow(late4, db4, false), liveFlow(web4, ops4, false)}
	r.run(trees.build(true))
	eventually(t, "the first sweep", func() bool { return r.engine.Stats().Sweeps.Seen == 2 && !r.engine.sweeper.busy.Load() })
	r.rules.taken()
	p := queue.Packet{Payload: packetOf(t, late4, db4, policy.TCP, tcpPort)}
	if a, _ := r.judge(p); a != r.verdict(policy.Allow, 1) {
		t.Errorf("before: %s", describe(r.marks, a))
	}
	r.apply(trees.build(false))
	addrs := []netip.Addr{late4, late6}
	want := []string{"prepare", fmt.Sprintf("switch for %v", addrs), fmt.Sprintf("forget %v", addrs), fmt.Sprintf("review %v", addrs), "finish"}
	if diff := cmp.Diff(want, r.rules.taken()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if got := r.rules.cuts(); !slices.Equal(got, []bool{true, false}) {
		t.Errorf("cut %v", got)
	}
	if a, _ := r.judge(p); a != r.verdict(policy.Deny, 2) {
		t.Errorf("after: %s", describe(r.marks, a))
	}
	// What a pod that stays may do is for a new generation: its flows are cut at once.
	r.apply(sceneTree(t, isolate("web")))
	if calls := r.rules.taken(); !slices.Contains(calls, "switch revokes=true adds=true") {
		t.Errorf("calls %q", calls)
	}
}

// TestConfinedChangeThatFails: what could not be removed for a few addresses is
// forgotten for all; at once or, if that fails too, with the next tree.
func TestConfinedChangeThatFails(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"forget", "review"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(c *Config) { c.ConfineTo = 8 })
			trees := comingAndGoing(t)
			r.run(trees.build(true))
			r.rules.failing(step, errFake)
			r.apply(trees.build(false))
			all := "switch revokes=true adds=true"
			if calls := r.rules.taken(); !slices.Contains(calls, all) {
				t.Errorf("calls %q", calls)
			}
			r.rules.watch(func(call string) {
				if step == call[:len(step)] {
					r.rules.failing("switch", errFake)
				}
			})
			with := trees.build(true)
			if _, err := r.engine.Apply(with); err == nil {
				t.Error("no error, although nothing could be removed")
			}
			r.rules.watch(nil)
			r.rules.failing("switch", nil)
			r.rules.failing(step, nil)
			r.rules.taken()
			r.apply(with) // the same tree: what is owed is done
			if calls := r.rules.taken(); !slices.Contains(calls, all) {
				t.Errorf("calls %q", calls)
			}
			r.apply(trees.build(false))
			if calls := r.rules.taken(); slices.Contains(calls, all) {
				t.Errorf("calls %q: the debt is paid", calls)
			}
		})
	}
}
