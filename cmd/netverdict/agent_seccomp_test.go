package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netverdict/netverdict/engine/seccomp"
)

// withoutSeccomp, in the environment of this test binary as netverdict, makes the kernel
// one that has no seccomp filters.
const withoutSeccomp = "NETVERDICT_TEST_WITHOUT_SECCOMP"

func init() {
	if os.Getenv(withoutSeccomp) == "" {
		return
	}
	p := seccomp.Profile{Default: seccomp.Allow, Rules: []seccomp.Rule{{Calls: []string{"seccomp"}, Action: seccomp.Missing}}}
	if err := p.Install(); err != nil {
		panic(err)
	}
}

// Every agent that agentLab starts is watched: a call that the list lacks fails its test.
// The tests of this file are about the rest.

// filters returns how many filters confine each of an agent's threads: the same number.
func (a *agentProcess) filters() string {
	a.t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", a.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		a.t.Fatalf("threads: %v, %v", files, err)
	}
	found := ""
	for _, f := range files {
		status, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		_, after, _ := strings.Cut(string(status), "\nSeccomp_filters:\t")
		n, _, _ := strings.Cut(after, "\n")
		if found != "" && n != found {
			a.t.Errorf("one thread has %s filters, another %s", found, n)
		}
		found = n
	}
	return found
}

// unwatched starts an agent that confines itself as it does for users: what it may not
// call is refused.
func (l *agentLab) unwatched(environment string, args ...string) *agentProcess {
	l.t.Helper()
	cmd := l.command(append([]string{"agent", "--manifests", l.dir}, args...)...)
	cmd.Env = append(cmd.Env, environment)
	return l.launchUnwatched(cmd)
}

// TestSeccomp: an agent confines itself unless told not to, and enforces either way.
func TestSeccomp(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		l.serve(l.server, 80)
		l.write("policy.yaml", policyFor("client", "server"))
		for _, c := range []struct{ flag, says, filters string }{
			{"--worker-nice=0", `msg="confined to the system calls of an agent`, "1"},
			{"--seccomp=true", `msg="confined to the system calls of an agent`, "1"},
			{"--seccomp=false", `msg=enforcing`, "0"},
		} {
			a := l.unwatched("", backend, c.flag, "--deny=reject")
			a.await(0, c.says)
			a.await(0, `msg=enforcing`)
			if got := a.filters(); got != c.filters {
				t.Errorf("%s: %s filters, want %s", c.flag, got, c.filters)
			}
			l.expect(c.flag, true, l.client, l.server, 80)
			l.refused(c.flag, l.other, l.server, 80)
			a.terminate()
			l.demandNothingLeft(c.flag)
		}
	})
}

// TestWithoutSeccomp: where the kernel has none, an agent says so and enforces; one that
// was told to confine itself ends.
func TestWithoutSeccomp(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.serve(l.server, 80)
	l.write("policy.yaml", policyFor("client", "server"))
	a := l.unwatched(withoutSeccomp + "=1")
	a.await(0, `level=WARN .*not confined.*CONFIG_SECCOMP`)
	a.await(0, `msg=enforcing`)
	l.expect("unconfined", false, l.other, l.server, 80)
	a.terminate()
	l.unwatched(withoutSeccomp+"=1", "--seccomp=true").demandFailure("--seccomp: install a seccomp filter: function not implemented", "CONFIG_SECCOMP")
}

// TestRareCalls: the list has what an agent needs seldom: a flow log that is rotated, flows
// over TLS, a profile of CPU time, interfaces' addresses, a second agent that takes over.
func TestRareCalls(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.serve(l.server, 80)
	l.write("policy.yaml", policyFor("client", "server"))
	p := newFlowPKI(t)
	logFile := filepath.Join(t.TempDir(), "flows.json")
	if err := os.WriteFile(logFile, []byte(strings.Repeat("\n", 1<<20)), 0o600); err != nil { // it is full
		t.Fatal(err)
	}
	args := []string{
		"--node-name=node-1", "--replace", "--on-replaced=exit", "--anti-spoof", "--deny=reject", "--flow-log=all", "--flow-log-file=" + logFile, "--flow-log-max-size=1",
		"--flow-log-fold=0", "--hubble-listen=127.0.0.1:4244", "--hubble-tls-cert=" + p.path("servers.crt"), "--hubble-tls-key=" + p.path("servers.key"),
		"--hubble-tls-client-ca=" + p.path("ca.crt"), "--metrics-address=127.0.0.1:8052", "--pprof=127.0.0.1:6060", "--health-address=127.0.0.1:8051", "--queues=2",
	}
	first := l.agent(args...)
	second := l.agent(args...)
	if code := first.exitCode(); code != exitOK {
		t.Errorf("the agent that was replaced ended with %d", code)
	}
	for _, address := range []string{"127.0.0.1:4244", "127.0.0.1:6060", "127.0.0.1:8051", "127.0.0.1:8052"} {
		l.awaitListener(address)
	}
	for _, url := range []string{"http://127.0.0.1:8051/healthz", "http://127.0.0.1:8052/metrics", "http://127.0.0.1:6060/debug/pprof/profile?seconds=1", "http://127.0.0.1:6060/debug/pprof/trace?seconds=1"} {
		l.fetch(url)
	}
	l.refused("denied", l.other, l.server, 80)
	l.await("flows over TLS", func() bool { // on a busy machine some time after the packets
		args := append([]string{"flows", "--server=127.0.0.1:4244", "--tls-server-name=node-1.default.hubble-grpc.cilium.io", "--last=1"}, p.clientArgs()...)
		out, err := l.command(args...).Output()
		return err == nil && len(out) > 0
	})
	second.terminate()
	if full, err := filepath.Glob(filepath.Join(filepath.Dir(logFile), "flows-*.json")); err != nil || len(full) == 0 {
		t.Errorf("the flow log was not rotated: %v, %v", full, err)
	}
}

// fetch asks the node.
func (l *agentLab) fetch(url string) {
	l.t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: l.node.DialContext, DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n == 0 || resp.StatusCode != http.StatusOK {
		l.t.Errorf("%s: %s, %d bytes, %v", url, resp.Status, n, err)
	}
}

// awaitListener waits until somebody listens on an address of the node.
func (l *agentLab) awaitListener(address string) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), agentPatience)
	defer cancel()
	for {
		c, err := l.node.DialContext(ctx, "tcp", address)
		if err == nil {
			c.Close()
			return
		}
		if ctx.Err() != nil {
			l.t.Fatal(err)
		}
	}
}
