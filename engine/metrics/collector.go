package metrics

import (
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/engine/audit"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/engine/reject"
	"github.com/netverdict/netverdict/policy"
)

// collector reads an agent when it is asked.
type collector struct {
	agent Agent
	rules ruleReader
}

func newCollector(a *Agent) *collector {
	return &collector{agent: *a, rules: ruleReader{rules: a.Rules}}
}

// Describe implements prometheus.Collector. What Changes observes describes itself.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range definitions {
		if !observed[d] {
			ch <- d.desc
		}
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	send(ch, buildInfo, 1, c.agent.Version, runtime.Version())
	c.collectState(ch)
	c.collectKinds(ch)
	c.collectFlows(ch)
	if c.agent.Rules != nil {
		c.rules.collect(ch)
	}
	if c.agent.Answers != nil {
		collectAnswers(ch, c.agent.Answers())
	}
	k := c.agent.Kernel()
	if k == nil {
		return
	}
	collectTree(ch, k.Engine)
	collectDecisions(ch, k.Engine)
	if a, ok := k.Engine.(interface{ Copies() audit.Stats }); ok {
		collectCopies(ch, a.Copies())
	}
	for i, q := range k.Queues {
		collectQueue(ch, strconv.Itoa(int(k.First)+i), q.Stats())
	}
}

func collectCopies(ch chan<- prometheus.Metric, s audit.Stats) {
	send(ch, auditPackets, s.Copied, "copied")
	send(ch, auditPackets, s.KernelDropped, "dropped")
	send(ch, auditPackets, s.Malformed, "malformed")
	send(ch, auditPackets, s.NotIP, "not-ip")
}

func collectAnswers(ch chan<- prometheus.Metric, s reject.Stats) {
	send(ch, answers, s.Resets, "reset")
	send(ch, answers, s.Errors, "icmp")
	send(ch, unanswered, s.Limited, "limited")
	send(ch, unanswered, s.Lost, "lost")
	send(ch, unanswered, s.Failed, "failed")
}

func (c *collector) collectState(ch chan<- prometheus.Metric) {
	s := c.agent.State()
	sendBool(ch, enforcing, s.Enforcing)
	sendBool(ch, sourceFailing, s.Failing)
	send(ch, overLimit, s.OverLimit)
	send(ch, listenersWaiting, s.Waiting)
	send(ch, changeAge, age(s.Oldest))
}

func (c *collector) collectKinds(ch chan<- prometheus.Metric) {
	if c.agent.Kinds == nil {
		return
	}
	for _, k := range c.agent.Kinds() {
		sendBool(ch, sourceConnected, k.Connected, k.Name)
		sendBool(ch, sourceSynced, k.Synced, k.Name)
		send(ch, sourceObjects, k.Objects, k.Name)
		send(ch, sourcePending, age(k.Pending), k.Name)
	}
}

// age is the time in seconds since t; 0 if there was no t.
func age(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return time.Since(t).Seconds()
}

func (c *collector) collectFlows(ch chan<- prometheus.Metric) {
	s := c.agent.Flows()
	send(ch, flowRecords, s.Records)
	send(ch, flowLost, s.Lost)
	l := c.agent.Log()
	send(ch, logLines, l.Lines)
	send(ch, logFolded, l.Folded)
	send(ch, logWithheld, l.Withheld)
	send(ch, logFailures, l.Errors)
}

func collectTree(ch chan<- prometheus.Metric, e Engine) {
	tree, serial := e.Tree()
	if tree == nil {
		return
	}
	send(ch, revision, serial)
	s := tree.Stats()
	send(ch, policies, s.Policies)
	send(ch, addresses, s.Addresses)
	held := tree.Footprint()
	for part, n := range map[string]int{
		"classes": s.Classes, "programs": s.Programs, "cells": held.Cells, "spans": held.Spans, "outcomes": held.Outcomes,
	} {
		send(ch, treeParts, n, part)
	}
	for _, d := range policy.Directions {
		n := 0
		for range tree.Policed(d) {
			n++
		}
		send(ch, policed, n, d.String())
	}
}

// otherPolicies is the name for those beyond the limit. No policy is without a
// namespace, so none can be mistaken for it.
const otherPolicies = "other"

func collectDecisions(ch chan<- prometheus.Metric, e Engine) {
	s := e.Stats()
	for _, d := range s.Decisions {
		send(ch, decisions, d.Count, d.Verdict.String(), d.Reason.String(), d.Direction.String())
	}
	send(ch, epoch, s.Epoch)
	send(ch, ruleRepairs, s.Repairs)
	send(ch, cacheHits, s.CacheHits)
	send(ch, cacheMisses, s.CacheMisses)
	send(ch, held, s.HeldNow)
	send(ch, holds, s.Held)
	send(ch, holdExpired, s.HoldExpired)
	for _, h := range e.PolicyHits() {
		name := h.Policy.Name
		if h.Policy == (policy.PolicyRef{}) {
			name = otherPolicies
		}
		send(ch, policyHits, h.Count, h.Policy.Kind, h.Policy.Namespace, name, h.Direction.String(), h.Verdict.String())
	}
}

func collectQueue(ch chan<- prometheus.Metric, number string, s queue.Stats) {
	send(ch, queuePackets, s.Packets, number)
	send(ch, queueBatches, s.Batches, number)
	send(ch, queueAnswers, s.Accepted, number, "accept")
	send(ch, queueAnswers, s.Dropped, number, "drop")
	send(ch, queueAnswers, s.Repeated, number, "repeat")
	send(ch, queueWaiting, s.Kernel.Waiting, number)
	send(ch, queueDrops, s.Kernel.QueueDropped, number)
	send(ch, queueBufferDrops, s.Kernel.UserDropped, number)
	send(ch, queueOverruns, s.Overruns, number)
	send(ch, queueMalformed, s.Malformed+s.Unidentified, number)
	send(ch, sendRetries, s.SendRetries, number)
	for errno, n := range s.Errors {
		send(ch, queueErrors, n, number, unix.ErrnoName(errno))
	}
	ch <- &latency{labels: []string{number}, stats: s.Latency}
}
