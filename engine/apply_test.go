package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// TestApplyOrder judges the same packet at every step of Apply. Until the switch
// is over the old tree judges in the old epoch, afterwards the new tree in the
// new one: no verdict of the old tree ever carries the new epoch.
func TestApplyOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.run(sceneTree(t, allow("web", "db")))
	p := queue.Packet{Payload: packetOf(t, web4, db4, policy.TCP, tcpPort)}
	r.rules.taken()
	var seen []string
	r.rules.watch(func(call string) {
		a, _ := r.judge(p)
		seen = append(seen, call+": "+describe(r.marks, a))
	})
	change := r.apply(sceneTree(t, isolate("db")))
	r.rules.watch(nil)
	a, _ := r.judge(p)
	seen = append(seen, "after: "+describe(r.marks, a))

	if want := (policy.Change{Revokes: true}); change != want {
		t.Errorf("change %+v, want %+v", change, want)
	}
	want := []string{
		"prepare: allow in epoch 1",
		"switch revokes=true adds=false: allow in epoch 1",
		"finish: deny in epoch 2",
		"after: deny in epoch 2",
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}

// describe reads a verdict back from its mark.
func describe(m hook.Marks, a queue.Answer) string {
	if a.Action != queue.Repeat || !a.SetMark {
		return fmt.Sprintf("%v", a)
	}
	for _, v := range []policy.Verdict{policy.Deny, policy.Allow} {
		for epoch := range m.Numbers() {
			if m.Verdict(a.Mark, v, epoch) == a.Mark {
				return fmt.Sprintf("%v in epoch %d", v, epoch)
			}
		}
	}
	return fmt.Sprintf("mark %#x", a.Mark)
}

// TestApplySaysWhatChanges: what the rules are told follows from the verdicts.
func TestApplySaysWhatChanges(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		before, after *policy.Tree
		revokes, adds bool
	}{
		{"revoking", sceneTree(t), sceneTree(t, isolate("db")), true, false},
		{"adding", sceneTree(t, isolate("db")), sceneTree(t), false, true},
		{"both", sceneTree(t, isolate("db")), sceneTree(t, isolate("web")), true, true},
		{"auditing", sceneTree(t), auditedTree(t, isolate("db")), true, false},
		{"no more auditing", auditedTree(t, isolate("db")), sceneTree(t), false, false},
		{"neither", sceneTree(t, allow("web", "db")), sceneTree(t, allow("web", "db"), isolate("db")), false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			r.run(c.before)
			if got := r.apply(c.after); (got.Revokes || got.Audits) != c.revokes || got.Adds != c.adds {
				t.Errorf("change %+v, want one that revokes or audits: %t, adds: %t", got, c.revokes, c.adds)
			}
			want := []string{"install", "prepare", fmt.Sprintf("switch revokes=%t adds=%t", c.revokes, c.adds), "finish"}
			if diff := cmp.Diff(want, r.rules.taken()); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPolicedAddresses: the rules learn both families of exactly the isolated pods.
func TestPolicedAddresses(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.run(sceneTree(t, isolate("db")))
	r.apply(sceneTree(t, isolate("db"), allow("web", "ops")))
	want := [][]netip.Addr{{db4, db6}, {db4, ops4, db6, ops6}}
	for i, p := range r.rules.policed {
		slices.SortFunc(p.Ingress, netip.Addr.Compare)
		if len(p.Egress) != 0 || !slices.Equal(p.Ingress, want[i]) {
			t.Errorf("call %d: egress %v, ingress %v, want none and %v", i, p.Egress, p.Ingress, want[i])
		}
	}
}

// TestApplyErrorKeepsTheOldTree: a change that cannot be made leaves everything
// as it was, and can be made later, with all that it revokes.
func TestApplyErrorKeepsTheOldTree(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"prepare", "switch"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			old := sceneTree(t)
			r.run(old)
			_, serial := r.engine.Tree()
			r.rules.failing(step, errFake)
			if _, err := r.engine.Apply(sceneTree(t, isolate("db"))); !errors.Is(err, errFake) {
				t.Fatalf("Apply: %v, want %v", err, errFake)
			}
			if tree, now := r.engine.Tree(); tree != old || now != serial {
				t.Errorf("another tree is in force, serial %d, was %d", now, serial)
			}
			p := queue.Packet{Payload: packetOf(t, web4, db4, policy.TCP, tcpPort)}
			if a, _ := r.judge(p); a != r.verdict(policy.Allow, 1) {
				t.Errorf("after the error: %s, want allow in epoch 1", describe(r.marks, a))
			}
			r.rules.failing(step, nil)
			if change := r.apply(sceneTree(t, isolate("db"))); !change.Revokes {
				t.Error("the second attempt does not revoke")
			}
			if a, _ := r.judge(p); a != r.verdict(policy.Deny, r.rules.Epoch()) {
				t.Errorf("after the second attempt: %s, want deny in epoch %d", describe(r.marks, a), r.rules.Epoch())
			}
		})
	}
}

// TestFinishErrorIsReported: the new tree is in force by then, and stays.
func TestFinishErrorIsReported(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.run(sceneTree(t))
	r.rules.failing("finish", errFake)
	after := sceneTree(t, isolate("db"))
	if _, err := r.engine.Apply(after); !errors.Is(err, errFake) {
		t.Errorf("Apply: %v, want %v", err, errFake)
	}
	if tree, _ := r.engine.Tree(); tree != after {
		t.Error("the new tree is not in force")
	}
	p := queue.Packet{Payload: packetOf(t, web4, db4, policy.TCP, tcpPort)}
	if a, _ := r.judge(p); a != r.verdict(policy.Deny, 2) {
		t.Errorf("judged %s, want deny in epoch 2", describe(r.marks, a))
	}
}

func TestApplyNeedsARunningEngine(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	if tree, serial := r.engine.Tree(); tree != nil || serial != 0 {
		t.Errorf("before Run: tree %p, serial %d", tree, serial)
	}
	if _, err := r.engine.Apply(sceneTree(t)); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before Run: %v, want %v", err, ErrNotRunning)
	}
	r.run(sceneTree(t))
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.engine.Apply(sceneTree(t)); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after Run: %v, want %v", err, ErrNotRunning)
	}
}

// TestSerialCountsTrees: what flow records carry as revision.
func TestSerialCountsTrees(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	trees := []*policy.Tree{sceneTree(t), sceneTree(t, isolate("db")), sceneTree(t)}
	r.run(trees[0])
	for i, want := range trees {
		if i > 0 {
			r.apply(want)
		}
		if tree, serial := r.engine.Tree(); tree != want || serial != uint64(i+1) {
			t.Errorf("tree %d: serial %d, the right one: %t", i, serial, tree == want)
		}
	}
}
