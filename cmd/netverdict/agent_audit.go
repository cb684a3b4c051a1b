package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/engine/audit"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/policy"
)

// modeOptions are the flags about what becomes of decisions.
type modeOptions struct {
	mode  string
	flows int
}

const (
	modeEnforce = "enforce"
	modeAudit   = "audit"
)

func (o *modeOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.mode, "mode", modeEnforce, "`mode`: enforce, or audit: judge copies of the traffic, enforce nothing, install nothing, and report what would be denied with the verdict audit; needs CAP_NET_RAW alone")
	f.IntVar(&o.flows, "audit-flows", 65536, "`number` of flows that an audit remembers, to tell replies and later packets from new flows")
}

func (o *modeOptions) validate() error {
	switch {
	case o.mode != modeEnforce && o.mode != modeAudit:
		return fmt.Errorf("--mode %q: want %s or %s", o.mode, modeEnforce, modeAudit)
	case o.flows < 1:
		return fmt.Errorf("--audit-flows %d: want 1 or more flows", o.flows)
	}
	return nil
}

func (o *modeOptions) audits() bool { return o.mode == modeAudit }

// verb is what the agent does with a state.
func (o *modeOptions) verb() string {
	if o.audits() {
		return "auditing"
	}
	return "enforcing"
}

// readyText is what /readyz says when all is well.
func (o *modeOptions) readyText() string {
	if o.audits() {
		return "ok: " + notEnforced
	}
	return "ok"
}

// notEnforced is what an agent that audits says of itself.
const notEnforced = "audit, nothing is enforced"

// judge is what decides in an agent: the engine, which enforces, or the auditor.
type judge interface {
	Apply(*policy.Tree) (policy.Change, error)
	Tree() (tree *policy.Tree, serial uint64)
	Stats() engine.Stats
	PolicyHits() []engine.PolicyHits
}

var (
	_ judge = (*engine.Engine)(nil)
	_ judge = (*audit.Auditor)(nil)
)

// prepare opens the rules of an agent that enforces. One that audits has none, and
// learns here, not when the first policies have come, that it may not copy packets.
func (o *agentOptions) prepare(log *slog.Logger) (*hook.Hook, error) {
	if !o.mode.audits() {
		o.askEach(log)
		return o.openRules()
	}
	s, err := audit.Open()
	if err == nil {
		s.Close()
	}
	return nil, err
}

// audit judges copies of packets by a first tree and beside it runs the builder.
func (a *agent) audit(ctx context.Context, group *errgroup.Group, first *policy.Tree, start time.Time) error {
	socket, err := audit.Open()
	if err != nil {
		return err
	}
	defer socket.Close()
	o := a.options
	auditor, err := audit.New(audit.Config{
		Socket: socket, Collector: a.collector, RingSize: 8192, Log: &a.demand,
		Flows: o.mode.flows, PolicyLimit: o.metrics.policies,
		AllowTimeout: o.hook.AllowTimeout, DenyTimeout: o.hook.DenyTimeout,
		HoldLimit: o.holdLimit, HoldTime: o.holdTime, HoldRemote: o.live.holdRemote,
	})
	if err != nil {
		return err
	}
	a.auditor.Store(auditor)
	a.kernel.Store(&kernel{engine: auditor})
	return auditor.Run(ctx, first, func() {
		a.enforced(first)
		a.log.Info("auditing; nothing is enforced", "policies", first.Stats().Policies, "addresses", first.Stats().Addresses,
			"source", a.source.String(), "after", time.Since(start), "pid", os.Getpid())
		group.Go(func() error { return a.build(ctx, auditor) })
	})
}

// AuditStatus is about the copies of packets that an audit has seen.
type AuditStatus struct {
	Copied    uint64 `json:"copied"`
	Dropped   uint64 `json:"dropped"` // found the buffer full
	Malformed uint64 `json:"malformed"`
	NotIP     uint64 `json:"notIP"`
}

func (s *Status) addAudit(a *audit.Auditor) {
	c := a.Copies()
	s.Audit = &AuditStatus{Copied: c.Copied, Dropped: c.KernelDropped, Malformed: c.Malformed, NotIP: c.NotIP}
}

func auditText(s *AuditStatus) string {
	return fmt.Sprintf("%d packets that may begin a flow were copied, %d dropped (buffer full), %d malformed, %d not IP",
		s.Copied, s.Dropped, s.Malformed, s.NotIP)
}
