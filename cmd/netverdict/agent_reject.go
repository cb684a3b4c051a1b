package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/engine/reject"
	"github.com/netverdict/netverdict/policy"
)

// rejectOptions are the flags about how connections are denied.
type rejectOptions struct {
	deny policy.Denial
	rate uint32
}

func (o *rejectOptions) addFlags(f *pflag.FlagSet) {
	f.TextVar(&o.deny, "deny", policy.DenialDrop, "`how` connections are denied: drop is silence, reject answers TCP with a reset and everything else with an ICMP error, so that clients fail at once; a namespace's annotation netverdict.io/deny overrides it for what its policies deny")
	f.Uint32Var(&o.rate, "reject-rate", 1000, "answers a second to denied packets, of which one source gets an eighth at most; what is denied beyond is dropped, and all of its kind for --deny-timeout")
}

func (o *rejectOptions) validate() error {
	if o.rate == 0 {
		return errors.New("--reject-rate 0: nobody would be answered; want 1 or more, or --deny drop")
	}
	return nil
}

// useQueue makes the rules send packets to the queues from a number on, and what is
// answered of them be known by it.
func (a *agent) useQueue(number uint16) (*reject.Rejecter, error) {
	if err := a.rules.UseQueue(number); err != nil {
		return nil, err
	}
	return a.openRejecter(number)
}

// openRejecter opens what answers need, beside the queues of which the first has a
// number. An agent that rejects must be able to; where it is up to namespaces, they
// are told that they are not obeyed.
func (a *agent) openRejecter(number uint16) (*reject.Rejecter, error) {
	o := a.options
	r, partly, err := reject.Open(reject.Config{
		IPv4: o.hook.IPv4, IPv6: o.hook.IPv6, Rate: o.reject.rate,
		Mark: a.rules.Marks().Own(), Group: number,
	})
	if err != nil && o.reject.deny == policy.DenialReject {
		return nil, fmt.Errorf("--deny reject: %w", err)
	}
	a.warn("answer denied packets; what namespaces want to be rejected is dropped", err)
	if !a.rules.NotesDialed() {
		partly = errors.Join(partly, errors.New("no target NFLOG or match hashlimit (kernel options CONFIG_NETFILTER_XT_TARGET_NFLOG, CONFIG_NETFILTER_XT_MATCH_HASHLIMIT)"))
	}
	if partly != nil && o.reject.deny == policy.DenialReject {
		a.warn("answer connections through Services in a way that clients believe; they time out, direct ones are rejected", partly)
	}
	return r, nil
}

// startRejecting runs a rejecter, which may be nil, until the function that it
// returns is called.
func (a *agent) startRejecting(r *reject.Rejecter) (end func()) {
	if r == nil {
		return func() {}
	}
	a.rejecter.Store(r)
	ctx, stop := context.WithCancel(context.Background())
	var running errgroup.Group
	running.Go(func() error { return r.Run(ctx) })
	return func() {
		stop()
		a.warn("stop answering denied packets", running.Wait())
	}
}

// answered is what senders of denied packets were told so far.
func (a *agent) answered() (s reject.Stats) {
	if r := a.rejecter.Load(); r != nil {
		s = r.Stats()
	}
	return s
}

// DenyStatus is how connections are denied.
type DenyStatus struct {
	// Default is drop or reject: what counts for namespaces that do not say.
	Default policy.Denial `json:"default"`
	// Answered packets got a TCP reset or an ICMP error; Unanswered were to get one.
	Answered   uint64 `json:"answered"`
	Unanswered uint64 `json:"unanswered"`
}

func (a *agent) denyStatus() *DenyStatus {
	s := a.answered()
	return &DenyStatus{a.options.reject.deny, s.Resets + s.Errors, s.Limited + s.Lost + s.Failed}
}

// rejecterOf keeps an interface nil whose value is.
func rejecterOf(r *reject.Rejecter) engine.Rejecter {
	if r == nil {
		return nil
	}
	return r
}
