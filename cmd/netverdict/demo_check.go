package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

const (
	// denyWindow is how long a request that must be denied gets no connection.
	denyWindow = 900 * time.Millisecond
	// A request that must be allowed may meet a busy machine and, with UDP, be
	// lost: it is tried allowTries times for allowWindow each.
	allowWindow = 2 * time.Second
	allowTries  = 3
	// recordPatience is how long a denied request's flow record may take.
	recordPatience = 15 * time.Second
)

// observation is what became of a request.
type observation struct {
	verdict policy.Verdict
	// trouble is set when the answer is no verdict: another server answered, the
	// connection was refused, …
	trouble error
}

// result is a check and what came of it.
type result struct {
	check
	observed observation
	record   *flow.Line // of a denied request; nil if the flow log has none
}

// ask makes the requests of a step, all at once, and finds the flow records of
// those that were denied.
func (st *stage) ask(ctx context.Context, s *step) ([]result, error) {
	seen := st.agent.flows.length()
	results := make([]result, len(s.checks))
	var wg sync.WaitGroup
	for i, c := range s.checks {
		wg.Go(func() { results[i] = result{check: c, observed: st.observe(ctx, c)} })
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := st.agent.alive(); err != nil {
		return nil, err
	}
	st.findRecords(ctx, results, seen)
	return results, context.Cause(ctx)
}

// observe makes one request, as patiently as its expectation asks for.
func (st *stage) observe(ctx context.Context, c check) observation {
	window, tries := denyWindow, 1
	if c.want.verdict == policy.Allow {
		window, tries = allowWindow, allowTries
	}
	var o observation
	for range tries {
		o = verdictOf(st.request(ctx, c, window))
		if o.verdict == policy.Allow || o.trouble != nil {
			break
		}
	}
	return o
}

// verdictOf takes silence for a denial; that is what a dropped packet looks like.
func verdictOf(err error) observation {
	var timeout net.Error
	switch {
	case err == nil:
		return observation{verdict: policy.Allow}
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return observation{verdict: policy.Deny}
	}
	return observation{trouble: err}
}

// request makes a check's request once: HTTP over TCP, a datagram and its answer
// over UDP. It succeeds if the right host answers.
func (st *stage) request(ctx context.Context, c check, window time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, window)
	defer cancel()
	from, known := st.hosts[c.from]
	if !known {
		return fmt.Errorf("story %s: %s is neither a pod nor an outsider", st.story.key, c.from)
	}
	to := netip.AddrPortFrom(st.address(c.to), c.port)
	who, err := exchange(ctx, from, c.protocol, to)
	if err == nil && who != c.to {
		err = fmt.Errorf("%s answered instead of %s", who, c.to)
	}
	return err
}

// address is where a host is asked in this story.
func (st *stage) address(host string) netip.Addr {
	if st.story.overIPv6 {
		return st.hosts[host].Addr6()
	}
	return st.hosts[host].Addr4()
}

func exchange(ctx context.Context, from *netlab.Host, p policy.Protocol, to netip.AddrPort) (who string, err error) {
	if p == policy.UDP {
		reply, err := from.UDPExchange(ctx, to, []byte("netverdict demo"))
		return reply.Host, err
	}
	return from.HTTPGet(ctx, to)
}

// findRecords looks in the flow log, from index since on, for the records of
// the requests that were denied.
func (st *stage) findRecords(ctx context.Context, results []result, since int) {
	patience := time.After(recordPatience)
	for {
		lines, more := st.agent.flows.since(since)
		missing := false
		for i := range results {
			r := &results[i]
			r.record = st.recordOf(r.check, lines)
			missing = missing || r.record == nil && r.denied()
		}
		if !missing {
			return
		}
		select {
		case <-more:
		case <-st.agent.ended:
			return
		case <-patience:
			return
		case <-ctx.Done():
			return
		}
	}
}

// recordOf finds the record of a check's denied request.
func (st *stage) recordOf(c check, lines []flow.Line) *flow.Line {
	src, dst := st.address(c.from), st.address(c.to)
	i := slices.IndexFunc(lines, func(l flow.Line) bool {
		return l.Lost == 0 && l.Verdict == policy.Deny && l.Protocol == c.protocol &&
			l.Source.IP == src && l.Destination.IP == dst && l.Destination.Port == c.port
	})
	if i < 0 {
		return nil
	}
	return &lines[i]
}

func (r *result) denied() bool { return r.observed.trouble == nil && r.observed.verdict == policy.Deny }

// fault says what is not as expected; "" if all is.
func (r *result) fault() string {
	switch {
	case r.observed.trouble != nil:
		return fmt.Sprintf("neither allowed nor denied: %v", r.observed.trouble)
	case r.observed.verdict != r.want.verdict && r.record != nil:
		return fmt.Sprintf("must be %s; the flow log says denied by %s", r.want.text(), causeText(r.record))
	case r.observed.verdict != r.want.verdict:
		return fmt.Sprintf("must be %s, was %s", r.want.text(), verdictText(r.observed.verdict))
	case r.want.verdict == policy.Allow:
		return ""
	case r.record == nil:
		return "denied, but the flow log has no record of it"
	case r.record.Reason != policy.ReasonDefaultDeny || r.record.Direction != r.want.direction ||
		!slices.Equal(r.record.IsolatedBy, r.want.isolatedBy):
		return fmt.Sprintf("must be %s; the flow log says denied by %s", r.want.text(), causeText(r.record))
	}
	return ""
}

func (e expectation) text() string {
	if e.verdict == policy.Allow {
		return verdictText(e.verdict)
	}
	return fmt.Sprintf("%s by %s: isolated by %s", verdictText(e.verdict), e.direction, strings.Join(e.isolatedBy, ", "))
}

func verdictText(v policy.Verdict) string {
	if v == policy.Allow {
		return "allowed"
	}
	return "denied"
}
