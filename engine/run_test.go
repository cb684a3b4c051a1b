package engine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// TestRulesOnlyWhileJudged: packets are judged before the first rule sends any
// and until the last rule is gone.
func TestRulesOnlyWhileJudged(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	p := queue.Packet{Payload: packetOf(t, ops4, db4, policy.TCP, tcpPort)}
	judged := map[string]string{}
	r.rules.watch(func(call string) {
		a, _ := r.judge(p)
		judged[call] = describe(r.marks, a)
	})
	r.run(sceneTree(t, isolate("db")))
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if calls := r.rules.taken(); !slices.Equal(calls, []string{"install", "remove"}) {
		t.Errorf("calls %v, want install and remove", calls)
	}
	// The epoch of the rules is not known before they are installed.
	if want := "deny in epoch 0"; judged["install"] != want {
		t.Errorf("during install: %q, want %q", judged["install"], want)
	}
	if want := "deny in epoch 1"; judged["remove"] != want {
		t.Errorf("during remove: %q, want %q", judged["remove"], want)
	}
}

func TestKeepRules(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.KeepRules = true })
	r.run(sceneTree(t))
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if calls := r.rules.taken(); !slices.Equal(calls, []string{"install"}) {
		t.Errorf("calls %v, want install only", calls)
	}
}

// TestInstallError: Run is never ready, cleans up and says what failed.
func TestInstallError(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.rules.failing("install", errFake)
	ready := r.start(sceneTree(t))
	err := r.wait()
	if !errors.Is(err, errFake) || !strings.Contains(err.Error(), "install rules") {
		t.Errorf("Run: %v, want %v and what failed", err, errFake)
	}
	select {
	case <-ready:
		t.Error("ready although nothing is enforced")
	default:
	}
	if calls := r.rules.taken(); !slices.Equal(calls, []string{"install", "remove"}) {
		t.Errorf("calls %v, want install and remove", calls)
	}
}

func TestRemoveErrorIsReported(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.run(sceneTree(t))
	r.rules.failing("remove", errFake)
	if err := r.stop(); !errors.Is(err, errFake) {
		t.Errorf("Run: %v, want %v", err, errFake)
	}
}

// mortal is a source that ends when it is told to, whatever its context says.
type mortal struct {
	*queue.Memory
	die chan error
}

func (m *mortal) Run(ctx context.Context, h queue.Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- m.Memory.Run(ctx, h) }()
	select {
	case err := <-m.die:
		cancel()
		<-ended
		return err
	case err := <-ended:
		return err
	}
}

// TestDeadSourceEndsRun: nothing goes on without enforcing, and one dead queue of
// two takes the other with it.
func TestDeadSourceEndsRun(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"with an error", errFake, "queue worker 1: " + errFake.Error()},
		{"without a word", nil, "queue worker 1: ended although nobody asked it to"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := &mortal{queue.NewMemory(), make(chan error)}
			r := newRig(t, func(cfg *Config) { cfg.Sources = append(cfg.Sources, m) })
			<-r.start(sceneTree(t))
			m.die <- c.err
			err := r.wait()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Run: %v, want %q", err, c.want)
			}
			if c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("Run: %v does not wrap %v", err, c.err)
			}
			if calls := r.rules.taken(); !slices.Equal(calls, []string{"install"}) {
				t.Errorf("calls %v, want install alone: a failure must not open the node", calls)
			}
			if a, ok := r.judge(queue.Packet{Payload: packetOf(t, web4, db4, policy.TCP, 1)}); !ok || a != (queue.Answer{}) {
				t.Errorf("the other source still judges: %v", a)
			}
		})
	}
}

// TestVerifyRepairs: the rules that were put back are in a new epoch, and so are
// the verdicts from then on.
func TestVerifyRepairs(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.VerifyEvery = time.Millisecond })
	r.run(sceneTree(t, isolate("db")))
	r.rules.vandalize(0)
	p := queue.Packet{Payload: packetOf(t, ops4, db4, policy.TCP, tcpPort)}
	eventually(t, "a verdict of the new epoch", func() bool {
		a, _ := r.judge(p)
		return a == r.verdict(policy.Deny, 2)
	})
	if want := "put back"; strings.Count(r.log.String(), want) != 1 {
		t.Errorf("log %q does not say once that the rules were %s", r.log.String(), want)
	}
	if n := r.engine.Stats().Repairs; n != 1 {
		t.Errorf("%d repairs counted, want 1", n)
	}
	if _, serial := r.engine.Tree(); serial != 1 {
		t.Errorf("serial %d after a repair, want 1: the tree is the same", serial)
	}
}

// TestVerifyError: the engine lives with one that passes, and ends when it stays.
func TestVerifyError(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.VerifyEvery = time.Millisecond })
	<-r.start(sceneTree(t))
	r.rules.vandalize(verifyAttempts - 1)
	eventually(t, "the repair", func() bool { return strings.Contains(r.log.String(), "put back") })
	r.rules.vandalize(verifyAttempts)
	if err := r.wait(); !errors.Is(err, errFake) || !strings.Contains(err.Error(), "verify rules") {
		t.Errorf("Run: %v, want %v and what failed", err, errFake)
	}
	if n, want := strings.Count(r.log.String(), "trying again"), 2*(verifyAttempts-1); n != want {
		t.Errorf("%d complaints before the end, want %d", n, want)
	}
}

func TestNewRefusesANegativeCache(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.cfg.CacheSize = -1
	if _, err := New(r.cfg); err == nil || !strings.Contains(err.Error(), "-1") {
		t.Errorf("New: %v, want an error that names the size", err)
	}
}
