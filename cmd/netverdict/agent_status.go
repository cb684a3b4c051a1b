package main

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/kube"
	"github.com/netverdict/netverdict/policy"
)

// ready says why the agent is not ready, or nil: it is once the first tree is
// enforced, and stays so when its source goes away.
func (a *agent) ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.state.enforcing:
		return nil
	case a.state.problem() != "":
		return errors.New("not enforcing: " + a.state.problem())
	case a.options.mode.audits():
		return errors.New("not auditing: waiting for the first state from " + a.source.String())
	}
	return errors.New("not enforcing: waiting for the first state from " + a.source.String())
}

// serveHealth answers probes until ctx ends.
func (a *agent) serveHealth(ctx context.Context, group *errgroup.Group) {
	if a.options.health.given() {
		group.Go(func() error { return serveHealth(ctx, a.options.health, a.ready, a.options.mode.readyText()) })
	}
}

// serveStatus answers netverdict status until ctx ends.
func (a *agent) serveStatus(ctx context.Context, group *errgroup.Group) {
	if a.options.statusSocket != "" {
		group.Go(func() error { return serveStatus(ctx, a.options.statusSocket, a.status, a.log) })
	}
}

// status collects what netverdict status shows.
func (a *agent) status() Status {
	a.mu.Lock()
	state := a.state
	a.mu.Unlock()
	s := Status{
		Version: versionText(), Node: a.options.nodeName, Source: a.source.String(),
		Mode: a.options.mode.mode, Problem: state.problem(), Applied: state.applied,
	}
	if !a.options.mode.audits() {
		s.Enforcing, s.FailMode, s.OnStop, s.Backend = state.enforcing, "closed", a.options.onStop, a.rules.Backend().String()
		if a.options.hook.FailOpen {
			s.FailMode = "open"
		}
	}
	if !a.options.mode.audits() {
		s.Deny, s.AntiSpoof, s.Bridges = a.denyStatus(), a.spoofStatus(), a.bridgeStatus()
	}
	a.addCluster(&s, state.waiting)
	if k := a.kernel.Load(); k != nil {
		s.addTree(k.engine)
		s.addQueues(k, k.first)
	}
	if auditor := a.auditor.Load(); auditor != nil {
		s.addAudit(auditor)
	}
	s.ListenLater = a.options.turn.late.names()
	s.FlowsLost = a.collector.Stats().Lost
	a.addNode(&s)
	return s
}

// addCluster adds what is known of the API server, and the lag: the age of the
// oldest change that came from it, or waits to be built, and is not in force.
func (a *agent) addCluster(s *Status, waiting time.Time) {
	if c, ok := a.source.(*clusterSource); ok {
		known := c.Status()
		for i := range known.Kinds {
			s.Cluster = append(s.Cluster, kindStatus(&known.Kinds[i]))
		}
	}
	if oldest := a.oldestChange(waiting); !oldest.IsZero() {
		s.LagSeconds = time.Since(oldest).Seconds()
	}
}

func kindStatus(k *kube.KindStatus) KindStatus {
	return KindStatus{Kind: k.Kind, Objects: k.Objects, Connected: k.Connected, Revision: k.Revision, Error: k.Error}
}

func (s *Status) addTree(e judge) {
	tree, revision := e.Tree()
	if tree == nil {
		return
	}
	s.Revision = revision
	if _, enforces := e.(*engine.Engine); enforces {
		s.PodStart, _ = podStart(tree.LocalPodCIDRs(), tree.Locals())
	}
	s.Policies, s.Addresses = tree.Stats().Policies, tree.Stats().Addresses
	s.OverLimit = tree.OverLimit()
	for range tree.Policed(policy.Egress) {
		s.Policed++
	}
	for addr := range tree.Policed(policy.Ingress) {
		if !tree.Isolated(addr, policy.Egress) {
			s.Policed++
		}
	}
	decided := e.Stats()
	s.Allowed, s.Denied, s.Holding = decided.Decided(policy.Allow), decided.Decided(policy.Deny), decided.HeldNow
	s.Audited = decided.Decided(policy.Audit)
}

func (s *Status) addQueues(k *kernel, first uint16) {
	for i, q := range k.queues {
		st := q.Stats()
		s.Queues = append(s.Queues, QueueStatus{
			Number: first + uint16(i), Packets: st.Packets, Waiting: st.Kernel.Waiting,
			QueueDropped: st.Kernel.QueueDropped, BufferDropped: st.Kernel.UserDropped,
		})
	}
}
