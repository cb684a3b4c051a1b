package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/netverdict/netverdict/engine/flow"
)

// flowsLive shows the flows of running agents.
//
//	agents ─▶ history of each ─▶ sorted by time, cut to --last ─▶ view
//	     └──▶ one session each ─▶ flows ─▶ held shortly, sorted ─▶ view      (--follow)
type flowsLive struct {
	options *flowsOptions
	agents  flowAgents
	view    *flowView

	mu       sync.Mutex
	stderr   io.Writer
	sessions map[flowAgent]*flowSession // of the agents that were asked for their history
	flows    chan *flow.Line
}

const (
	// flowAsked bounds the agents that are asked for their history at once.
	flowAsked = 32
	// flowHold is how long flows of several agents wait for older ones.
	flowHold = 300 * time.Millisecond
	// defaultLast is how many flows are shown when no flag says which.
	defaultLast = 20
)

// live shows flows of running agents until there are no more or ctx ends.
func (o *flowsOptions) live(ctx context.Context, e env) error {
	agents, err := o.agents.find(o.credentials.serverName)
	if err != nil {
		return err
	}
	return o.ask(ctx, e, agents)
}

// ask shows flows of some agents.
func (o *flowsOptions) ask(ctx context.Context, e env, agents flowAgents) error {
	if !o.follow && o.last == 0 && !o.since.set && !o.until.set {
		o.last = defaultLast
	}
	view, err := o.newView(e)
	if err != nil {
		return err
	}
	one, fixed := agents.(oneAgent)
	view.printer.hideNode = fixed && flowAgent(one).isSocket()
	l := &flowsLive{options: o, agents: agents, view: view, stderr: e.stderr, sessions: map[flowAgent]*flowSession{}, flows: make(chan *flow.Line)}
	defer l.close()
	if !o.follow || o.last > 0 || o.since.set {
		if err := l.history(ctx); err != nil || !o.follow {
			return view.end(err)
		}
		if err := view.showKept(); err != nil {
			return err
		}
	}
	return l.follow(ctx)
}

func (l *flowsLive) close() {
	for _, s := range l.sessions {
		s.conn.Close()
	}
}

// report says something beside flows.
func (l *flowsLive) report(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.stderr, "netverdict: %s\n", printable(fmt.Sprintf(format, args...)))
}

// history shows what the agents remember. Those that cannot be asked are
// reported; the others' flows are shown all the same.
func (l *flowsLive) history(ctx context.Context) error {
	agents, err := l.agents.List(ctx)
	if err != nil {
		return err
	}
	answers, failed := make([][]flow.Line, len(agents)), make([]error, len(agents))
	var asked errgroup.Group
	asked.SetLimit(flowAsked)
	for i, a := range agents {
		asked.Go(func() error {
			answers[i], failed[i] = l.remembered(ctx, a)
			return nil
		})
	}
	_ = asked.Wait() // each has its own error
	all := slices.Concat(answers...)
	slices.SortStableFunc(all, func(a, b flow.Line) int { return a.Time.Compare(b.Time) })
	for i := range all {
		if err := l.view.add(&all[i]); err != nil {
			return err
		}
	}
	return l.unreached(agents, failed)
}

// unreached reports the agents that could not be asked. While flows are followed
// that is no reason to end: they may come back.
func (l *flowsLive) unreached(agents []flowAgent, failed []error) error {
	if !l.agents.Several() {
		return failed[0]
	}
	n := 0
	for _, err := range failed {
		if err != nil {
			n++
			l.report("%v", err)
		}
	}
	if n > 0 && !l.options.follow {
		return fmt.Errorf("agents that could not be asked: %d of %d", n, len(agents))
	}
	return nil
}

// remembered asks one agent for its history. Where more flows than --last are
// needed to know the last ones, it asks for all.
func (l *flowsLive) remembered(ctx context.Context, a flowAgent) (lines []flow.Line, err error) {
	s, err := l.session(a)
	if err != nil {
		return nil, err
	}
	req, exact := l.options.request()
	if exact && !l.options.follow {
		req.Number = uint64(l.options.last)
	}
	err = s.get(ctx, req, func(line *flow.Line) error {
		lines = append(lines, *line)
		return nil
	})
	return lines, err
}

func (l *flowsLive) session(a flowAgent) (*flowSession, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sessions[a]; s != nil {
		return s, nil
	}
	s, err := newFlowSession(a, &l.options.credentials, l.report)
	if err == nil {
		l.sessions[a] = s
	}
	return s, err
}

// follow shows what the agents decide from now on, until ctx ends.
func (l *flowsLive) follow(ctx context.Context) error {
	if u := l.options.until; u.set {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, u.Add(flowOverlap))
		defer cancel()
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.attend(ctx) })
	group.Go(func() error { return l.merge(ctx) })
	err := group.Wait()
	if flushErr := l.view.printer.flush(); err == nil {
		err = flushErr
	}
	return err
}

// attend keeps a stream from each agent there is.
func (l *flowsLive) attend(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	running := map[flowAgent]context.CancelFunc{}
	first := true
	group.Go(func() error {
		return l.agents.Watch(ctx, func(agents []flowAgent) {
			for a, stop := range running {
				if !slices.Contains(agents, a) {
					l.report("the agent at %s has gone", a.name)
					stop()
					delete(running, a)
				}
			}
			for _, a := range agents {
				if running[a] != nil {
					continue
				}
				own, stop := context.WithCancel(ctx)
				running[a] = stop
				late := !first
				group.Go(func() error { return l.attendOne(own, a, late) })
			}
			first = false
		})
	})
	return group.Wait()
}

// attendOne hands on the flows of an agent until ctx ends. The only one there is
// may not fail; one of several is asked again. Of one that came late everything
// is news.
func (l *flowsLive) attendOne(ctx context.Context, a flowAgent, late bool) error {
	s, err := l.session(a)
	if err != nil {
		return err
	}
	for pause, said := time.Second, ""; ; pause = min(2*pause, 30*time.Second) {
		err := s.get(ctx, l.following(s, late), func(line *flow.Line) error {
			pause, said = time.Second, ""
			select {
			case l.flows <- line:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if ctx.Err() != nil || err == nil && l.options.until.set {
			return nil //nolint:nilerr // somebody wanted the end
		}
		if err == nil {
			err = fmt.Errorf("the agent at %s has ended the stream", a.name)
		}
		if !l.agents.Several() {
			return err
		}
		if err.Error() != said {
			said = err.Error()
			l.report("%v; trying again", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// following asks for what comes, without a gap behind what has come.
func (l *flowsLive) following(s *flowSession, late bool) *observerpb.GetFlowsRequest {
	req, _ := l.options.request()
	req.Follow = true
	if s.newest.IsZero() && req.GetSince() == nil && (late || l.options.last > 0) {
		req.Since = timestamppb.New(time.Unix(0, 0))
	}
	s.resume(req)
	return req
}

// merge shows flows in the order of their times, as far as they come within
// flowHold of each other.
func (l *flowsLive) merge(ctx context.Context) error {
	if !l.agents.Several() {
		return l.pass(ctx)
	}
	type held struct {
		line *flow.Line
		came time.Time
	}
	var waiting []held
	tick := time.NewTicker(flowHold / 3)
	defer tick.Stop()
	show := func(until time.Time) error {
		slices.SortStableFunc(waiting, func(a, b held) int { return a.line.Time.Compare(b.line.Time) })
		n := 0
		for n < len(waiting) && waiting[n].came.Before(until) {
			if err := l.view.show(waiting[n].line); err != nil {
				return err
			}
			n++
		}
		waiting = slices.Delete(waiting, 0, n)
		return nil
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return show(time.Now().Add(time.Hour))
		case line := <-l.flows:
			waiting = append(waiting, held{line, time.Now()})
		case now := <-tick.C:
			err = show(now.Add(-flowHold))
		}
		if err != nil {
			return err
		}
	}
}

// pass shows the flows of one agent as they come.
func (l *flowsLive) pass(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case line := <-l.flows:
			if err := l.view.show(line); err != nil {
				return err
			}
		}
	}
}
