//go:build linux

package suite

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
)

const (
	// answer is how long an attempt waits. The machine may be busy: what must pass is
	// tried again for as long as settle.
	answer = 1500 * time.Millisecond
	// late is how long it waits once the thing has passed: then silence is a failure,
	// and must not be a busy machine.
	late = 10 * time.Second
	// settle bounds the time until a change is in force, and until a server listens.
	settle = 45 * time.Second
	// hopeless is as long as upstream waits for a denial. Without agents none comes.
	hopeless = 10 * time.Second
	// sure is how often a result must be seen in a row.
	sure = 3
)

// errBlocked: no sign that the packet arrived.
var errBlocked = errors.New("no answer")

// ErrPasses is in the error of a test in which something passes that should not.
var ErrPasses = errors.New("passes")

var errDoesNotPass = errors.New("does not pass")

// attempt tries something once: nil if it arrived, errBlocked if nothing came back.
type attempt func(ctx context.Context) error

// passes demands that an attempt succeeds, now or soon, and then again and again.
func (t *T) passes(what string, try attempt) { t.demand(what, errDoesNotPass, try, nil) }

// blocked demands that an attempt gets no answer, now or soon, and stays so.
func (t *T) blocked(what string, try attempt) { t.demand(what, ErrPasses, try, errBlocked) }

// staysBlocked demands that an attempt gets no answer, from the first on: it was
// blocked before.
func (t *T) staysBlocked(what string, try attempt) {
	for range sure {
		switch err := t.once(try, answer); {
		case t.ctx.Err() != nil:
			t.fail("%s: %w", what, context.Cause(t.ctx))
		case err == nil:
			t.fail("%s %w", what, ErrPasses)
		case !errors.Is(err, errBlocked):
			t.fail("%s: %w", what, err)
		}
	}
}

func (t *T) demand(what string, otherwise error, try attempt, want error) {
	patience, firm := settle, 1
	if errors.Is(want, errBlocked) {
		// One silence may be a packet that waits for its pod to be known, before the policy
		// is: on a busy machine that takes longer than an attempt.
		patience, firm = t.untilDenied(), 2
	}
	deadline := time.Now().Add(patience)
	for row := 0; row < sure; {
		wait := answer
		if want == nil && row > 0 {
			wait = late
		}
		err := t.once(try, wait)
		if t.ctx.Err() != nil {
			t.fail("%s: %w", what, context.Cause(t.ctx))
		}
		if errors.Is(err, want) {
			row++
			continue
		}
		if !errors.Is(err, errBlocked) && err != nil {
			t.fail("%s: %w", what, err)
		}
		if row >= firm || time.Now().After(deadline) {
			t.fail("%s %w (seen as it should be %d times in a row, then not)", what, otherwise, row)
		}
		row = 0
		time.Sleep(100 * time.Millisecond)
	}
}

// untilDenied bounds the time until something that is forbidden no longer passes.
func (t *T) untilDenied() time.Duration {
	if t.rig.Enforces() {
		return settle
	}
	return hopeless
}

func (t *T) once(try attempt, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(t.ctx, wait)
	defer cancel()
	return try(ctx)
}

// verdict tells arrival from silence. A refusal has arrived; an unreachable network
// is a broken test.
func verdict(err error) error {
	var t interface{ Timeout() bool }
	switch {
	case err == nil, errors.Is(err, syscall.ECONNREFUSED):
		return nil
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &t) && t.Timeout():
		return errBlocked
	}
	return err
}

// tcp connects.
func tcp(from *netlab.Host, to netip.Addr, port uint16) attempt {
	return func(ctx context.Context) error {
		conn, err := from.DialContext(ctx, "tcp", netip.AddrPortFrom(to, port).String())
		if err == nil {
			conn.Close()
		}
		return verdict(err)
	}
}

// udp sends a datagram and waits for what agnhost's porter answers.
func udp(from *netlab.Host, to netip.Addr, port uint16) attempt {
	return func(ctx context.Context) error {
		conn, err := from.DialContext(ctx, "udp", netip.AddrPortFrom(to, port).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
		_, err = conn.Read(make([]byte, 256))
		if errors.Is(err, syscall.ECONNREFUSED) {
			return err // the server is not there, or not yet
		}
		return verdict(err)
	}
}

// ping sends an echo request.
func ping(from *netlab.Host, to netip.Addr) attempt {
	return func(ctx context.Context) error { return verdict(from.Ping(ctx, to)) }
}

// pairs runs a check for both families.
func pairs(from, to *peer, check func(family string, from, to netip.Addr)) {
	for _, four := range []bool{true, false} {
		check(map[bool]string{true: "IPv4", false: "IPv6"}[four], from.of(four), to.of(four))
	}
}

// tcpPasses and the next demand a result for both families.
func (t *T) tcpPasses(from, to *peer, port uint16) {
	pairs(from, to, func(family string, _, dst netip.Addr) {
		t.passes(fmt.Sprintf("%s TCP %s → %s:%d", family, from.name, to.name, port), tcp(from.host, dst, port))
	})
}

func (t *T) tcpBlocked(from, to *peer, port uint16) {
	pairs(from, to, func(family string, _, dst netip.Addr) {
		t.blocked(fmt.Sprintf("%s TCP %s → %s:%d", family, from.name, to.name, port), tcp(from.host, dst, port))
	})
}

func (t *T) tcpStaysBlocked(from, to *peer, port uint16) {
	pairs(from, to, func(family string, _, dst netip.Addr) {
		t.staysBlocked(fmt.Sprintf("%s TCP %s → %s:%d, which was blocked,", family, from.name, to.name, port), tcp(from.host, dst, port))
	})
}

func (t *T) udpPasses(from, to *peer, port uint16) {
	pairs(from, to, func(family string, _, dst netip.Addr) {
		t.passes(fmt.Sprintf("%s UDP %s → %s:%d", family, from.name, to.name, port), udp(from.host, dst, port))
	})
}

func (t *T) udpBlocked(from, to *peer, port uint16) {
	pairs(from, to, func(family string, _, dst netip.Addr) {
		t.blocked(fmt.Sprintf("%s UDP %s → %s:%d", family, from.name, to.name, port), udp(from.host, dst, port))
	})
}
