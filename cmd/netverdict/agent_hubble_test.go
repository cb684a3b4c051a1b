package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// subscribe asks the agent behind a socket for flows.
func subscribe(t *testing.T, socket string, req *observerpb.GetFlowsRequest) observerpb.Observer_GetFlowsClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), agentPatience)
	t.Cleanup(cancel)
	stream, err := observerpb.NewObserverClient(conn).GetFlows(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// TestAgentHubble: an agent serves its flows on a socket for root and a group.
func TestAgentHubble(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.serve(l.server, 80)
	l.write("policy.yaml", policyFor("client", "server"))
	socket := filepath.Join(t.TempDir(), "run", "hubble.sock")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	a := l.agent("--flow-log=none", "--node-name=node-1", "--hubble-socket", socket, "--hubble-group=4711")
	info, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != 0o660 || st.Uid != 0 || st.Gid != 4711 {
		t.Errorf("the socket has mode %v, owner %d, group %d", info.Mode(), st.Uid, st.Gid)
	}
	stream := subscribe(t, socket, &observerpb.GetFlowsRequest{
		Follow: true, Since: nil, Number: 1,
		Whitelist: []*flowpb.FlowFilter{{SourcePod: []string{"shop/other"}, DestinationPort: []string{"80"}}},
	})
	l.expect("denied", false, l.other, l.server, 80)
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	f := resp.GetFlow()
	if by := f.GetIngressDeniedBy(); f.GetVerdict() != flowpb.Verdict_DROPPED || len(by) != 1 || by[0].GetName() != "client-to-server" || f.GetNodeName() != "node-1" {
		t.Errorf("%v", f)
	}
	// What is left by an agent that was killed is no obstacle to the next.
	a.kill()
	l.agent("--hubble-socket", socket).terminate()
}

// TestAgentHubbleFlags: what cannot be served is said at the start.
func TestAgentHubbleFlags(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	for _, c := range []struct{ flags, want string }{
		{"--hubble-listen=:4244", "--hubble-listen :4244: flows are served with mutual TLS only; give --hubble-tls-cert"},
		{"--hubble-listen=:4244 --hubble-tls-cert=/a --hubble-tls-key=/b", "give .*--hubble-tls-client-ca"},
		{"--hubble-listen=:4244 --hubble-tls-cert=/a --hubble-tls-key=/b --hubble-tls-client-ca=/c", "load the certificate of the Hubble server from /a"},
		{"--hubble-listen=4244 --hubble-tls-cert=/a --hubble-tls-key=/b --hubble-tls-client-ca=/c", "--hubble-listen: .*missing port"},
		{"--hubble-listen=:0 --hubble-tls-cert=/a --hubble-tls-key=/b --hubble-tls-client-ca=/c", "want a port number"},
		{"--hubble-tls-cert=/a", "there is nothing to protect; give --hubble-listen"},
		{"--hubble-group=4711", "--hubble-group: there is no socket"},
		{"--hubble-socket=/tmp/x --hubble-group=no-such-group", "--hubble-group: .*no-such-group"},
		{"--hubble-socket=/tmp/x --hubble-history=0", "--hubble-history 0: want 1 or more"},
		{"--hubble-socket=/etc/passwd", "/etc/passwd: there is a file, and it is no socket"},
	} {
		args := append([]string{"agent", "--manifests", l.dir}, strings.Fields(c.flags)...)
		l.launch(l.command(args...)).demandFailure(c.want)
	}
	l.demandNothingLeft("after refused flags")
}
