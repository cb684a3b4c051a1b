package engine

import (
	"sync"
	"testing"
	"time"

	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// slowLog stops the worker while it judges, once.
type slowLog struct {
	once        sync.Once
	judging, on chan struct{}
}

func (l *slowLog) Keep(policy.Verdict) bool {
	l.once.Do(func() {
		close(l.judging)
		<-l.on
	})
	return false
}

// TestLateVerdict: a connection that begins with a verdict of the tree before, given
// when the next one is in force already, is found and cut like any other.
func TestLateVerdict(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		trees  func(*testing.T) [2]*policy.Tree
		packet func(*testing.T) []byte
		flow   hook.Flow
	}{
		{
			"a change for all",
			func(t *testing.T) [2]*policy.Tree {
				return [2]*policy.Tree{sceneTree(t, allow("web", "db")), sceneTree(t, isolate("db"))}
			},
			func(t *testing.T) []byte { return packetOf(t, web4, db4, policy.TCP, tcpPort) }, liveFlow(web4, db4, false),
		},
		{
			"a confined one",
			func(t *testing.T) [2]*policy.Tree {
				trees := comingAndGoing(t)
				return [2]*policy.Tree{trees.build(true), trees.build(false)}
			},
			func(t *testing.T) []byte { return packetOf(t, late4, db4, policy.TCP, tcpPort) }, liveFlow(late4, db4, false),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			log := &slowLog{judging: make(chan struct{}), on: make(chan struct{})}
			r := newRig(t, func(cfg *Config) { cfg.Log, cfg.ConfineTo = log, 8 })
			trees := c.trees(t)
			r.run(trees[0])
			r.source.Inject(queue.Packet{Payload: c.packet(t)})
			<-log.judging
			applied := make(chan error)
			go func() {
				_, err := r.engine.Apply(trees[1])
				applied <- err
			}()
			eventually(t, "the tree to be in force", func() bool { tree, _ := r.engine.Tree(); return tree == trees[1] })
			time.Sleep(50 * time.Millisecond) // enough to look through a table with nothing in it
			r.rules.mu.Lock()
			r.rules.flows = append(r.rules.flows, c.flow)
			r.rules.mu.Unlock()
			close(log.on)
			if err := <-applied; err != nil {
				t.Fatal(err)
			}
			r.awaitCuts("a late verdict", true)
		})
	}
}
