package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/netverdict/netverdict/engine/flow"
)

// flowAgent is where flows are served.
type flowAgent struct {
	name       string // for messages: a node, or the address as given
	target     string // for gRPC
	serverName string // that its certificate must have; empty: the host of the target
}

// flowOverlap is how far a request looks back behind the newest flow that has
// come. The history of an agent is in order but for its workers' batches.
const flowOverlap = 2 * time.Second

// flowSession is a connection to an agent, and what is known of its flows.
type flowSession struct {
	agent flowAgent
	conn  *grpc.ClientConn
	// report is told what the stream says beside flows.
	report func(format string, args ...any)

	newest  time.Time // of the flows that have come; zero: none has
	resumed time.Time // newest when the last request was made
	// seen are the flows since two overlaps ago, at least.
	seen, before map[string]bool // by UUID
	turned       time.Time       // when seen was begun, in times of flows
}

// newFlowSession connects when it is first asked.
func newFlowSession(a flowAgent, creds *flowCredentials, report func(string, ...any)) (*flowSession, error) {
	transport := insecure.NewCredentials()
	if !a.isSocket() && !creds.plaintext {
		config, err := creds.config()
		if err != nil {
			return nil, err
		}
		config.ServerName = a.serverName
		transport = credentials.NewTLS(config)
	}
	conn, err := grpc.NewClient(a.target, grpc.WithTransportCredentials(transport),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}))
	if err != nil {
		return nil, fmt.Errorf("ask the agent at %s: %w", a.name, err)
	}
	return &flowSession{agent: a, conn: conn, report: report, seen: map[string]bool{}}, nil
}

func (a flowAgent) isSocket() bool { return strings.HasPrefix(a.target, "unix:") }

// get hands what a request gives to add, but no flow twice. add's errors are
// returned as they are.
func (s *flowSession) get(ctx context.Context, req *observerpb.GetFlowsRequest, add func(*flow.Line) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := observerpb.NewObserverClient(s.conn).GetFlows(ctx, req)
	if err != nil {
		return s.failure(err)
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return s.failure(err)
		}
		if st := resp.GetNodeStatus(); st != nil {
			s.report("%s: %v: %s", strings.Join(st.GetNodeNames(), ", "), st.GetStateChange(), st.GetMessage())
		}
		line := lineOf(resp)
		if line == nil || s.known(resp.GetFlow()) || s.told(resp.GetLostEvents()) {
			continue
		}
		if err := add(line); err != nil {
			return err
		}
	}
}

// resume changes a request to continue behind the flows that have come.
func (s *flowSession) resume(req *observerpb.GetFlowsRequest) {
	s.resumed = s.newest
	if !s.newest.IsZero() {
		req.Since = timestamppb.New(s.newest.Add(-flowOverlap))
	}
}

// known reports whether a flow has come already, and notes that it has now.
func (s *flowSession) known(f *flowpb.Flow) bool {
	id, at := f.GetUuid(), f.GetTime().AsTime()
	if f == nil || id == "" {
		return false
	}
	if s.seen[id] || s.before[id] {
		return true
	}
	if at.Sub(s.turned) > 2*flowOverlap {
		s.seen, s.before, s.turned = map[string]bool{}, s.seen, at
	}
	s.seen[id] = true
	if at.After(s.newest) {
		s.newest = at
	}
	return false
}

// told reports whether a loss has been told of by a request before: it began
// before a flow that came then.
func (s *flowSession) told(e *flowpb.LostEvent) bool {
	return e.GetFirst() != nil && e.GetFirst().AsTime().Before(s.resumed)
}

// failure says what was attempted, and what usually lies behind it.
func (s *flowSession) failure(err error) error {
	text := status.Convert(err).Message()
	hint := ""
	switch {
	case status.Code(err) == codes.Unavailable && s.agent.isSocket():
		hint = socketHint(strings.TrimPrefix(s.agent.target, "unix://"))
	case strings.Contains(text, "certificate is valid for") || strings.Contains(text, "doesn't contain any IP SANs"):
		hint = " (give --tls-server-name, usually NODE.default.hubble-grpc.cilium.io)"
	case strings.Contains(text, "unknown authority"):
		hint = " (give the authority of the agents' certificates with --tls-ca)"
	case strings.Contains(text, "certificate required") || strings.Contains(text, "bad certificate"):
		hint = " (the agent wants another client certificate: --tls-cert, --tls-key)"
	}
	return fmt.Errorf("ask the agent at %s: %s%s", s.agent.name, printable(withoutTransport(text)), hint)
}

// withoutTransport leaves of gRPC's words about a connection that failed why it did.
func withoutTransport(text string) string {
	quoted, ok := strings.CutPrefix(text, "connection error: desc = ")
	if !ok {
		return text
	}
	if plain, err := strconv.Unquote(quoted); err == nil {
		quoted = plain
	}
	return strings.TrimPrefix(quoted, "transport: Error while dialing: ")
}

// socketHint says what is wrong with a socket.
func socketHint(path string) string {
	f, err := os.Stat(path)
	switch {
	case err != nil:
		return " (no agent runs here, or with another --hubble-socket)"
	case f.Mode()&os.ModeSocket == 0:
		return " (it is no socket)"
	}
	return " (the agent has ended, or you are neither root nor in its --hubble-group)"
}
