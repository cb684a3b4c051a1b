package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netverdict/netverdict/engine/hook"
)

func exampleStatus() Status {
	return Status{
		Version: "v1.2.3", Node: "node-1", Source: "API server https://10.0.0.1:6443", Enforcing: true,
		Revision: 7, Applied: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC), Policies: 3, Addresses: 40, Policed: 5, LagSeconds: 0.25,
		Cluster:  []KindStatus{{Kind: "Pod", Objects: 12, Revision: "99", Error: "connection refused"}, {Kind: "Node"}},
		FailMode: "closed", OnStop: "keep-closed", Backend: "nft",
		Queues:  []QueueStatus{{Number: 8050, Packets: 100, Waiting: 1, QueueDropped: 2, BufferDropped: 3}},
		Allowed: 90, Denied: 10, Holding: 4, FlowsLost: 6,
		NodeFacts: NodeStatus{KubeProxy: []string{"ipvs"}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00::/64")}},
		Rules: []RuleStatus{
			{hook.PurposeEstablished, hook.Count{Packets: 8, Bytes: 800}}, {hook.PurposeReply, hook.Count{Packets: 7, Bytes: 700}},
			{hook.PurposeFlood, hook.Count{Packets: 9, Bytes: 540}}, {hook.PurposeQueue, hook.Count{Packets: 100, Bytes: 6000}},
		},
	}
}

// ask starts an agent's status socket, runs the verb against it and returns what
// it printed.
func ask(t *testing.T, s Status, args ...string) (code int, stdout string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "run", "agent.sock")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- serveStatus(ctx, socket, func() Status { return s }, slog.New(slog.NewTextHandler(io.Discard, nil)))
	}()
	awaitSocket(t, socket)
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v (%v), want 0600: other users must not read it", info.Mode(), err)
	}
	var out, errs bytes.Buffer
	code = run(t.Context(), env{strings.NewReader(""), &out, &errs}, append([]string{"status", "--socket", socket}, args...))
	stop()
	if err := <-ended; err != nil {
		t.Errorf("serving ended with %v, want nothing", err)
	}
	if errs.Len() > 0 {
		t.Errorf("stderr: %s", &errs)
	}
	return code, out.String()
}

func awaitSocket(t *testing.T, path string) {
	t.Helper()
	for end := time.Now().Add(agentPatience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if c, err := new(net.Dialer).DialContext(t.Context(), "unix", path); err == nil {
			c.Close()
			return
		}
	}
	t.Fatalf("nobody listens on %s", path)
}

func TestStatusText(t *testing.T) {
	t.Parallel()
	code, got := ask(t, exampleStatus())
	want := `enforcing   yes
version     v1.2.3
node        node-1
host        iptables nft; kube-proxy ipvs; pods in 10.244.1.0/24,fd00::/64
source      API server https://10.0.0.1:6443
            Pod: 12 objects at resourceVersion 99, not connected: connection refused
            Node: 0 objects, not connected
revision    7, applied 2026-11-21T10:00:00Z, 0.250 s behind what is known
policies    3 select pods of this node; 5 of its pods' addresses are policed, 40 addresses known
packets     100 asked about, 15 of allowed connections, 0 allowed from memory, 0 denied from memory, 0 of the node, 0 of nobody policed, 9 dropped unasked, of sources beyond --ask-limit
decisions   90 allowed, 10 denied, 0 audited, 4 packets on hold, 6 flow records lost
queue 8050  100 packets judged, 1 waiting, 2 dropped (queue full), 3 dropped (buffer full)
fails       closed: without an agent, or with a full queue, new connections of policed pods are dropped; on stop keep-closed
`
	if diff := cmp.Diff(want, got); diff != "" || code != exitOK {
		t.Errorf("exit code %d (-want +got):\n%s", code, diff)
	}
}

func TestStatusJSON(t *testing.T) {
	t.Parallel()
	s := exampleStatus()
	s.Enforcing, s.Problem = false, "the API server is away"
	code, out := ask(t, s, "-o", "json")
	var got Status
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" || code != exitNo {
		t.Errorf("exit code %d, want %d as it does not enforce (-want +got):\n%s", code, exitNo, diff)
	}
}

func TestStatusWithoutAgent(t *testing.T) {
	t.Parallel()
	_, err := askStatus(t.Context(), filepath.Join(t.TempDir(), "none.sock"))
	if err == nil || !strings.Contains(err.Error(), "no agent runs here") {
		t.Errorf("got %v, want a hint that no agent runs", err)
	}
}

// A mistyped --status-socket must not delete anything, and two agents must not
// take each other's socket.
func TestStatusSocketSparesFilesAndAgents(t *testing.T) {
	t.Parallel()
	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenPrivate(t.Context(), "--status-socket", precious); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("listening in place of a file: %v, want an error that says so", err)
	}
	if data, err := os.ReadFile(precious); err != nil || string(data) != "data" {
		t.Errorf("the file is gone or changed: %q, %v", data, err)
	}
	path := filepath.Join(t.TempDir(), "agent.sock")
	first, err := listenPrivate(t.Context(), "--status-socket", path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := listenPrivate(t.Context(), "--status-socket", path); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("listening in place of an agent: %v, want an error that says so", err)
	}
}

func TestHealthEndpoints(t *testing.T) {
	t.Parallel()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	notYet := errors.New("waiting for the first state")
	ready := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serveHealth(ctx, healthAddress{address}, func() error { return <-ready }, "ok") }()
	for _, c := range []struct {
		path  string
		ready error
		code  int
		body  string
	}{
		{pathHealth, nil, http.StatusOK, "ok"},
		{pathReady, notYet, http.StatusServiceUnavailable, notYet.Error()},
		{pathReady, nil, http.StatusOK, "ok"},
		{"/other", nil, http.StatusNotFound, ""},
	} {
		if c.path == pathReady {
			ready <- c.ready
		}
		code, body := get(t, "http://"+address+c.path)
		if code != c.code || !strings.Contains(body, c.body) {
			t.Errorf("%s: %d %q, want %d %q", c.path, code, body, c.code, c.body)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("serving ended with %v, want nothing", err)
	}
}

// get asks until somebody listens.
func get(t *testing.T, url string) (code int, body string) {
	t.Helper()
	for end := time.Now().Add(agentPatience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			return read(t, resp)
		}
	}
	t.Fatalf("nobody answers at %s", url)
	return 0, ""
}

func read(t *testing.T, resp *http.Response) (code int, body string) {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
