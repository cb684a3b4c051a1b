package hubble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// patience bounds every wait for something that must happen.
const patience = 60 * time.Second

var (
	clientAddr  = netip.MustParseAddr("10.1.0.1")
	serverAddr  = netip.MustParseAddr("10.1.0.2")
	nodeAddr    = netip.MustParseAddr("192.168.0.1")
	otherNode   = netip.MustParseAddr("192.168.0.2")
	unknownAddr = netip.MustParseAddr("10.1.0.99")
	worldAddr   = netip.MustParseAddr("203.0.113.7")
	serverAddr6 = netip.MustParseAddr("fd00:1::2")
)

var (
	client = &policy.Pod{
		NamespacedName: policy.NamespacedName{Namespace: "shop", Name: "client-5d4f-x7k"},
		Labels:         map[string]string{"app": "client", "app.kubernetes.io/part-of": "web"},
		Workload:       policy.Workload{Kind: "Deployment", Name: "client"},
	}
	server = &policy.Pod{NamespacedName: policy.NamespacedName{Namespace: "default", Name: "server"}, Labels: map[string]string{"app": "server"}}
)

// town is a cluster that fits in a switch.
type town struct{}

func (town) Pod(a netip.Addr) (*policy.Pod, bool) {
	switch a {
	case clientAddr:
		return client, true
	case serverAddr, serverAddr6:
		return server, true
	}
	return nil, false
}

func (town) Node(a netip.Addr) (string, bool) {
	switch a {
	case nodeAddr:
		return "node-1", true
	case otherNode:
		return "node-2", true
	}
	return "", false
}

func (town) Unknown(a netip.Addr) bool { return a == unknownAddr }

func ref(name string) policy.PolicyRef {
	return policy.PolicyRef{Kind: "NetworkPolicy", NamespacedName: policy.NamespacedName{Namespace: "default", Name: name}}
}

var (
	noPolicy    = &policy.Outcome{Verdict: policy.Allow, Reason: policy.ReasonNoPolicy}
	byRule      = &policy.Outcome{Verdict: policy.Allow, Reason: policy.ReasonPolicy, Policy: ref("let-in"), Rule: 2}
	byRuleDeny  = &policy.Outcome{Reason: policy.ReasonPolicy, Policy: ref("keep-out"), Rule: 1}
	defaultDeny = &policy.Outcome{Reason: policy.ReasonDefaultDeny, IsolatedBy: []policy.PolicyRef{ref("a"), ref("b")}}
	unknownPod  = &policy.Outcome{Reason: policy.ReasonUnknownPod}
	malformed   = &policy.Outcome{Reason: policy.ReasonMalformed}
)

// record is a connection from client to server that ingress decides.
func record(ingress *policy.Outcome) flow.Record {
	return flow.Record{
		Time: time.Now().UnixNano(), Src: clientAddr, Dst: serverAddr, SrcPort: 40000, DstPort: 80,
		Protocol: policy.TCP, TCPFlags: 2, Malformed: packet.OK, Names: town{}, Revision: 7,
		Decision: policy.Decision{Verdict: ingress.Verdict, Direction: policy.Ingress, Egress: noPolicy, Ingress: ingress},
	}
}

// numbered makes denied records with the source ports from, from+1, …
func numbered(from, n int) []flow.Record {
	all := make([]flow.Record, n)
	for i := range all {
		all[i] = record(defaultDeny)
		all[i].SrcPort = uint16(from + i)
	}
	return all
}

func newServer(t testing.TB, opts Options) *Server {
	t.Helper()
	if opts.NodeName == "" {
		opts.NodeName = "node-1"
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// dial serves s on a socket and connects to it.
func dial(t testing.TB, s *Server) *grpc.ClientConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hubble.sock")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(ServerOptions()...)
	s.Register(g)
	go func() { _ = g.Serve(l) }() // it ends with Stop
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func observer(t testing.TB, s *Server) observerpb.ObserverClient {
	t.Helper()
	return observerpb.NewObserverClient(dial(t, s))
}

// answer is all responses to a request that does not follow.
func answer(t testing.TB, c observerpb.ObserverClient, req *observerpb.GetFlowsRequest) ([]*observerpb.GetFlowsResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := c.GetFlows(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	var all []*observerpb.GetFlowsResponse
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, resp)
	}
}

// sourcePorts are those of the flows in an answer, which must have no error.
func sourcePorts(t testing.TB, c observerpb.ObserverClient, req *observerpb.GetFlowsRequest) []int {
	t.Helper()
	all, err := answer(t, c, req)
	if err != nil {
		t.Fatal(err)
	}
	ports := []int{}
	for _, resp := range all {
		if f := resp.GetFlow(); f != nil {
			ports = append(ports, int(f.GetL4().GetTCP().GetSourcePort()))
		}
	}
	return ports
}

// follower reads a stream that follows.
type follower struct {
	t      testing.TB
	stream observerpb.Observer_GetFlowsClient
	cancel context.CancelFunc
}

func follow(t testing.TB, s *Server, c observerpb.ObserverClient, req *observerpb.GetFlowsRequest) *follower {
	t.Helper()
	before := s.Stats().Subscribers
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	req.Follow = true
	stream, err := c.GetFlows(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the subscription", func() bool { return s.Stats().Subscribers > before })
	return &follower{t, stream, cancel}
}

func (f *follower) next() *observerpb.GetFlowsResponse {
	f.t.Helper()
	resp, err := f.stream.Recv()
	if err != nil {
		f.t.Fatal(err)
	}
	return resp
}

// flow returns the next response, which must be one.
func (f *follower) flow() *flowpb.Flow {
	f.t.Helper()
	resp := f.next()
	if resp.GetFlow() == nil {
		f.t.Fatalf("got %v, want a flow", resp)
	}
	return resp.GetFlow()
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}

func span(from, to int) []int {
	all := []int{}
	for i := from; i <= to; i++ {
		all = append(all, i)
	}
	return all
}

func wantPorts(t testing.TB, what string, got, want []int) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: source ports %v, want %v", what, got, want)
	}
}
