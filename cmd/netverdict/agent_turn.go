package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/pause"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/engine/turn"
)

// turnOptions are the flags about agents that follow each other on a host.
type turnOptions struct {
	replace    bool
	onReplaced string
	late       *latecomers // nil without replace
}

// firstReserved is where the queue numbers begin that are locks (queue.ReservedFor).
const firstReserved = 0xf000

const (
	onReplacedExit    = "exit"
	onReplacedStandby = "standby"
)

func (o *turnOptions) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.replace, "replace", false, "take over from an agent that enforces here already, without a gap")
	f.StringVar(&o.onReplaced, "on-replaced", onReplacedExit, "what to do when another agent has taken over: exit, or standby, to go on when that one is gone (for a supervisor that starts again what exits)")
}

func (o *turnOptions) validate() error {
	if o.onReplaced != onReplacedExit && o.onReplaced != onReplacedStandby {
		return fmt.Errorf("--on-replaced %q: want %s or %s", o.onReplaced, onReplacedExit, onReplacedStandby)
	}
	return nil
}

// errReplaced ends an agent whose rules are another's now.
var errReplaced = errors.New("another agent has taken over")

// standbyIdle is how long nobody must enforce before an agent in standby does: a
// process that comes back after a crash is quicker.
const standbyIdle = 5 * time.Second

// standbyAfter is how long an agent that was replaced leaves the addresses that both
// are to listen on to its successor. Those that differ it gets back.
const standbyAfter = time.Second

// standby waits until the agent that has taken over is gone. Meanwhile it says that it
// lives, and does not enforce.
func (o *agentOptions) standby(ctx context.Context, a *agent) error {
	a.log.Info("another agent has taken over; this one waits for its end", "pid", os.Getpid())
	group, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	group.Go(func() error {
		if a.options.health.own() {
			a.serveHealth(ctx, group)
		}
		if !pause.For(ctx, standbyAfter) {
			return nil
		}
		if !a.options.health.own() {
			a.serveHealth(ctx, group)
		}
		a.serveStatus(ctx, group)
		return nil
	})
	group.Go(func() error {
		defer cancel()
		return turn.AwaitFree(ctx, a.rules, hook.DefaultPrefix, standbyIdle)
	})
	return group.Wait()
}

// ignoreEnd returns nil for an error that only says that ctx has ended.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// takeTurn waits for the right to change the rules.
func (a *agent) takeTurn(ctx context.Context) (*turn.Turn, error) {
	return turn.Take(ctx, a.rules, hook.DefaultPrefix, a.options.turn.replace)
}

// openQueues binds every queue before any rule refers to it: those that the rules
// name, if nobody has them, so that what an agent left them waiting for is judged
// again; otherwise the range next to them, which an agent that is being replaced
// has not.
func (a *agent) openQueues() ([]queue.Source, uint16, error) {
	first := a.options.hook.QueueNum
	ranges := [...]uint16{first, first + a.options.queues}
	used, ok, err := a.rules.QueueInForce()
	if err != nil {
		return nil, 0, err
	}
	if ok && used == ranges[1] {
		ranges[0], ranges[1] = ranges[1], ranges[0]
	}
	queues, err := a.openRange(ranges[0])
	if !errors.Is(err, queue.ErrTaken) {
		return queues, ranges[0], err
	}
	queues, again := a.openRange(ranges[1])
	if again != nil {
		return nil, 0, errors.Join(err, again)
	}
	return queues, ranges[1], nil
}

func (a *agent) openRange(first uint16) ([]queue.Source, error) {
	var queues []queue.Source
	for i := range a.options.queues {
		cfg := a.options.queue
		cfg.Num = first + i
		cfg.Tick = 100 * time.Millisecond
		q, err := queue.Open(cfg)
		if err != nil {
			return nil, errors.Join(err, closeAll(queues))
		}
		queues = append(queues, q)
	}
	return queues, nil
}
