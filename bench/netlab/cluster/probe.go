//go:build linux

package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/netverdict/netverdict/bench/netlab"
)

const (
	// Silence is how long a check waits in vain before it calls a connection denied.
	Silence = 600 * time.Millisecond
	// Patience bounds the wait for what must come to pass on a busy machine.
	Patience = 30 * time.Second
)

// Reach makes a new connection from a host (Pod.Host, Node.Host) to a pod's server
// and returns who answered: the Name of the answering Host. UDP datagrams are
// repeated until one is answered. Bound it with ctx.
func Reach(ctx context.Context, from *netlab.Host, protocol corev1.Protocol, to netip.AddrPort) (string, error) {
	switch protocol {
	case corev1.ProtocolTCP:
		return from.HTTPGet(ctx, to)
	case corev1.ProtocolUDP:
		return reachUDP(ctx, from, to)
	}
	return "", fmt.Errorf("reach %s: no client for protocol %q", to, protocol)
}

// reachUDP uses one socket for each attempt: an answer to an earlier one, late, is
// that of another flow.
func reachUDP(ctx context.Context, from *netlab.Host, to netip.AddrPort) (string, error) {
	for {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		r, err := from.UDPExchange(attempt, to, nil)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return r.Host, err
		}
	}
}

// Check is a connection and what should come of it.
type Check struct {
	From     *netlab.Host
	Protocol corev1.Protocol // default TCP
	To       netip.AddrPort
	Want     string // the Name of the host that answers; empty: nobody, it is denied
}

// Anybody is what a Check wants that only cares for an answer, such as one through
// a Service.
const Anybody = "*"

// Allowed checks that a host reaches a pod's port at each of its addresses.
func Allowed(from *netlab.Host, to *Pod, protocol corev1.Protocol, port uint16) []Check {
	return checks(from, to, protocol, port, to.Host.Name())
}

// Denied checks that it does not.
func Denied(from *netlab.Host, to *Pod, protocol corev1.Protocol, port uint16) []Check {
	return checks(from, to, protocol, port, "")
}

func checks(from *netlab.Host, to *Pod, protocol corev1.Protocol, port uint16, want string) (out []Check) {
	for _, target := range to.Targets(port) {
		out = append(out, Check{from, protocol, target, want})
	}
	return out
}

// Demand makes all connections at once, and repeats each until it is as wanted, at
// most for Patience: changes take effect shortly after they were written. It fails
// the test for those that never are.
func Demand(t testing.TB, when string, checks ...[]Check) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	var group sync.WaitGroup
	for _, list := range checks {
		for _, c := range list {
			group.Go(func() {
				if err := c.await(ctx); err != nil {
					t.Errorf("%s: %v", when, err)
				}
			})
		}
	}
	group.Wait()
}

func (c Check) await(ctx context.Context) error {
	for {
		err := c.try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// try makes the connection once.
func (c Check) try(ctx context.Context) error {
	protocol, limit := c.Protocol, Silence
	if protocol == "" {
		protocol = corev1.ProtocolTCP
	}
	if c.Want != "" {
		limit = 5 * time.Second // the first SYN may be lost, and the third
	}
	attempt, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	who, err := Reach(attempt, c.From, protocol, c.To)
	what := fmt.Sprintf("%s > %s/%s", c.From.Name(), c.To, protocol)
	switch {
	case c.Want != "" && err != nil:
		return fmt.Errorf("%s: want an answer of %s: %w", what, c.Want, err)
	case c.Want != who && c.Want != Anybody:
		return fmt.Errorf("%s: %q answers, want %q", what, who, c.Want)
	case c.Want == "" && !errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: want silence: %w", what, err)
	}
	return nil
}

// Stream is a TCP connection to a pod's server that stays open.
type Stream struct {
	net.Conn
	reader *bufio.Reader
}

// OpenStream connects a host with a TCP server of a pod. The caller closes it.
func OpenStream(ctx context.Context, from *netlab.Host, to netip.AddrPort) (*Stream, error) {
	conn, err := from.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return &Stream{conn, bufio.NewReader(conn)}, nil
}

// Exchange sends a request and waits for the answer. On a stream that was cut it
// fails with an error that wraps os.ErrDeadlineExceeded.
func (s *Stream) Exchange(limit time.Duration) error {
	if err := s.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(s.Conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", s.RemoteAddr()); err != nil {
		return err
	}
	resp, err := http.ReadResponse(s.reader, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// Close resets the connection, so that nothing of it outlives a pod.
func (s *Stream) Close() error {
	reset(s.Conn)
	return nil
}
