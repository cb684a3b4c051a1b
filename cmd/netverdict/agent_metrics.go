package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/pflag"

	"github.com/netverdict/netverdict/engine/metrics"
)

const pathMetrics = "/metrics"

// metricsOptions are the flags about metrics.
type metricsOptions struct {
	address  string
	policies int
}

func (o *metricsOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.address, "metrics-address", "", "`address` to serve Prometheus metrics on, at /metrics, such as :8052; whoever reaches it learns names of policies; none by default")
	f.IntVar(&o.policies, "metrics-policies", 500, "`number` of policies that metrics count by name; the others are counted together")
}

func (o *metricsOptions) validate() error {
	if o.policies < 0 {
		return fmt.Errorf("--metrics-policies %d: want 0 or more", o.policies)
	}
	if o.address == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(o.address); err != nil {
		return fmt.Errorf("--metrics-address: %w (want host:port, such as 127.0.0.1:8052, or :8052 for every address of the host)", err)
	}
	return nil
}

// serveMetrics answers scrapes until ctx ends.
func (a *agent) serveMetrics(ctx context.Context) error {
	l, err := listenTCP(ctx, "--metrics-address", a.options.metrics.address)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+pathMetrics, metrics.Handler(a.measured(), a.changes, a.log))
	return serve(ctx, l, mux)
}

// measured is what metrics are made from.
func (a *agent) measured() *metrics.Agent {
	m := &metrics.Agent{
		Version: versionText(),
		State:   a.measuredState,
		Kernel: func() *metrics.Kernel {
			k := a.kernel.Load()
			if k == nil {
				return nil
			}
			return &metrics.Kernel{Engine: k.engine, Queues: k.queues, First: k.first}
		},
		Flows: a.collector.Stats,
		Log:   a.flowLog.Stats,
	}
	if a.rules != nil {
		m.Answers = a.answered
		m.Rules = a.rules
	}
	if c, ok := a.source.(*clusterSource); ok {
		m.Kinds = c.measuredKinds
	}
	return m
}

func (a *agent) measuredState() metrics.State {
	a.mu.Lock()
	state := a.state
	a.mu.Unlock()
	overLimit := 0
	if k := a.kernel.Load(); k != nil {
		if tree, _ := k.engine.Tree(); tree != nil {
			overLimit = len(tree.OverLimit())
		}
	}
	return metrics.State{
		Enforcing: state.enforcing && !a.options.mode.audits(), Failing: state.problem() != "", OverLimit: overLimit,
		Waiting: len(a.options.turn.late.names()), Oldest: a.oldestChange(state.waiting),
	}
}

// oldestChange is when the oldest change came that is known and not in force, whether
// it waits to be built or for the snapshot that shows it; zero if there is none.
func (a *agent) oldestChange(waiting time.Time) time.Time {
	c, ok := a.source.(*clusterSource)
	if !ok {
		return waiting
	}
	if p := c.Status().Pending(); !p.IsZero() && (waiting.IsZero() || p.Before(waiting)) {
		return p
	}
	return waiting
}

func (s *clusterSource) measuredKinds() (kinds []metrics.Kind) {
	known := s.Status()
	for i := range known.Kinds {
		k := &known.Kinds[i]
		kinds = append(kinds, metrics.Kind{Name: k.Kind, Connected: k.Connected, Synced: k.Synced, Objects: k.Objects, Pending: k.Pending})
	}
	return kinds
}
