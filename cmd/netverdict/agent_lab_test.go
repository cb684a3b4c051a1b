package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/bench/netlab/netlabtest"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/seccomp/seccomptest"
)

const (
	// agentPatience bounds every wait for something that must happen, on a machine that is
	// slow and busy with other tests.
	agentPatience = 90 * time.Second
	// agentSilence is how long no answer must come to be called denied.
	agentSilence      = 600 * time.Millisecond
	agentSilenceSteps = 6
	// agentSaid is how many of an agent's last messages a failed test shows.
	agentSaid = 25
)

// agentLab is a node with three pods in namespaces, a directory of manifests
// about them, and room for agents, which are processes of their own on the node.
type agentLab struct {
	t                     *testing.T
	node                  *netlab.Node
	client, server, other *netlab.Host
	dir                   string // of manifests
}

// eachIptables runs a test with both of the kernel's packet filters.
func eachIptables(t *testing.T, test func(t *testing.T, l *agentLab, backend string)) {
	t.Helper()
	t.Parallel()
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			test(t, newAgentLab(t), "--iptables-backend="+backend)
		})
	}
}

func newAgentLab(t *testing.T) *agentLab {
	t.Helper()
	lab := netlabtest.New(t)
	var err error
	l := &agentLab{t: t, dir: filepath.Join(t.TempDir(), "manifests")}
	if l.node, err = lab.AddNode("node", netlab.NodeOptions{}); err != nil {
		t.Fatal(err)
	}
	cluster := "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
	for i, host := range []**netlab.Host{&l.client, &l.server, &l.other} {
		name, number := []string{"client", "server", "other"}[i], byte(i+1)
		v4, v6 := netip.AddrFrom4([4]byte{10, 1, 0, number}), netip.MustParseAddr(fmt.Sprintf("fd00:1::%d", number))
		if *host, err = l.node.AddHost(name, v4, v6); err != nil {
			t.Fatal(err)
		}
		cluster += podManifest(name, v4, v6)
	}
	if err := os.Mkdir(l.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// The agent of one test runs as somebody who may not enter t.TempDir.
	for dir := l.dir; strings.HasPrefix(dir, os.TempDir()) && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l.write("cluster.yaml", cluster)
	return l
}

func podManifest(name string, v4, v6 netip.Addr) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: shop, labels: {app: %[1]s}}
spec: {nodeName: node-1, containers: [{name: main, image: registry.k8s.io/pause:3.10}]}
status: {phase: Running, podIP: %[2]q, podIPs: [{ip: %[2]q}, {ip: %[3]q}]}
`, name, v4, v6)
}

// policyFor lets one pod, and nobody else, reach another.
func policyFor(from, to string) string {
	return fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: %[1]s-to-%[2]s, namespace: shop}
spec:
  podSelector: {matchLabels: {app: %[2]s}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: %[1]s}}}]
`, from, to)
}

// write puts a manifest in place at once, as careful editors do.
func (l *agentLab) write(file, content string) {
	l.t.Helper()
	path := filepath.Join(l.dir, file)
	temporary := filepath.Join(filepath.Dir(l.dir), file)
	if err := os.WriteFile(temporary, []byte(content), 0o644); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(temporary, path); err != nil {
		l.t.Fatal(err)
	}
}

func (l *agentLab) remove(file string) {
	l.t.Helper()
	if err := os.Remove(filepath.Join(l.dir, file)); err != nil {
		l.t.Fatal(err)
	}
}

// serve starts servers on a pod.
func (l *agentLab) serve(h *netlab.Host, ports ...uint16) {
	l.t.Helper()
	for _, port := range ports {
		if _, err := h.ServeHTTP(port); err != nil {
			l.t.Fatal(err)
		}
	}
}

// expect makes a request over each family, all at once; allowed is what must
// come of them.
func (l *agentLab) expect(when string, allowed bool, from, to *netlab.Host, port uint16) {
	l.t.Helper()
	ctx, cancel := untilSilence()
	if allowed {
		ctx, cancel = context.WithTimeout(context.Background(), agentPatience)
	}
	defer cancel()
	var wg sync.WaitGroup
	for _, a := range to.Addrs() {
		wg.Go(func() {
			who, err := from.HTTPGet(ctx, netip.AddrPortFrom(a, port))
			what := fmt.Sprintf("%s: %s > %s port %d", when, from.Name(), a, port)
			switch {
			case allowed && (err != nil || who != to.Name()):
				l.t.Errorf("%s: want an answer, got %q: %v", what, who, err)
			case !allowed && !errors.Is(err, context.DeadlineExceeded):
				l.t.Errorf("%s: want silence, got %q: %v", what, who, err)
			}
		})
	}
	wg.Wait()
}

// untilSilence is a context whose deadline is over when nothing has come for
// agentSilence, in steps: if this process does not get the CPU for a while, what waits
// for an answer gets the rest of the steps to try in.
func untilSilence() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		for range agentSilenceSteps {
			select {
			case <-ctx.Done():
				return
			case <-time.After(agentSilence / agentSilenceSteps):
			}
		}
		cancel(context.DeadlineExceeded)
	}()
	return ctx, func() { cancel(nil) }
}

// demandNothingLeft checks that no rule and no set of an agent exists.
func (l *agentLab) demandNothingLeft(when string) {
	l.t.Helper()
	if left := l.leftovers(); len(left) > 0 {
		l.t.Errorf("%s: %v", when, left)
	}
}

func (l *agentLab) leftovers() (left []string) {
	l.t.Helper()
	err := l.node.Do(func() (err error) {
		left, err = hook.Leftovers(hook.Config{})
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return left
}

// echoes are connections over each family to an echo server.
type echoes struct {
	t     *testing.T
	conns []net.Conn
}

func (l *agentLab) openEchoes(from, to *netlab.Host) *echoes {
	l.t.Helper()
	server, err := to.ServeTCP(0)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), agentPatience)
	defer cancel()
	e := &echoes{t: l.t}
	for _, a := range to.Addrs() {
		c, err := from.DialContext(ctx, "tcp", netip.AddrPortFrom(a, server.Port).String())
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() {
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		})
		e.conns = append(e.conns, c)
	}
	e.demandAlive("at the start")
	return e
}

// demandAlive sends something over each connection and wants it back.
func (e *echoes) demandAlive(when string) {
	e.t.Helper()
	for _, c := range e.conns {
		if err := echo(c, agentPatience); err != nil {
			e.t.Errorf("%s: connection to %s: %v", when, c.RemoteAddr(), err)
		}
	}
}

// demandCut wants nothing back.
func (e *echoes) demandCut(when string) {
	e.t.Helper()
	for _, c := range e.conns {
		if err := echo(c, agentSilence); !errors.Is(err, os.ErrDeadlineExceeded) {
			e.t.Errorf("%s: connection to %s: %v, want silence", when, c.RemoteAddr(), err)
		}
	}
}

func echo(c net.Conn, limit time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

// agentProcess is a running `netverdict agent`.
type agentProcess struct {
	t        *testing.T
	cmd      *netlab.Cmd
	flows    journal[flow.Line]
	messages journal[string]
	stdout   *os.File // the end that is read
	ended    chan struct{}
	err      error // of the process; valid once ended is closed
}

// command prepares this binary as netverdict on the node.
func (l *agentLab) command(args ...string) *netlab.Cmd {
	l.t.Helper()
	cmd := l.node.Command(context.Background(), thisBinary(l.t), args...)
	cmd.Env = append(os.Environ(), asNetverdict+"=1")
	return cmd
}

// agent starts an agent and returns when it enforces. It dies with the test at
// the latest.
func (l *agentLab) agent(args ...string) *agentProcess {
	l.t.Helper()
	a := l.launch(l.command(append([]string{"agent", "--manifests", l.dir}, args...)...))
	a.await(0, `msg=enforcing`)
	return a
}

// launch starts a prepared agent. System calls that it should refuse itself, or what it
// runs, it may make, and the test fails: the list in engine/seccomp must be complete.
func (l *agentLab) launch(cmd *netlab.Cmd) *agentProcess {
	l.t.Helper()
	watched := seccomptest.Watch(l.t, cmd.Cmd)
	a := l.launchUnwatched(cmd)
	watched.Follow(l.t)
	l.t.Cleanup(func() {
		a.kill()
		for _, call := range watched.Missing(l.t) {
			l.t.Errorf("%s, which the list in engine/seccomp/calls.go would refuse", call)
		}
	})
	return a
}

// launchUnwatched starts a prepared agent, which confines itself as for users.
func (l *agentLab) launchUnwatched(cmd *netlab.Cmd) *agentProcess {
	l.t.Helper()
	a := &agentProcess{t: l.t, cmd: cmd, ended: make(chan struct{})}
	stdout, stdoutEnd, err := os.Pipe()
	if err != nil {
		l.t.Fatal(err)
	}
	a.stdout, cmd.Stdout = stdout, stdoutEnd
	messages, stderr := io.Pipe()
	cmd.Stderr = stderr
	err = cmd.Start()
	stdoutEnd.Close()
	if err != nil {
		l.t.Fatal(err)
	}
	var readers sync.WaitGroup
	readers.Go(func() { readLines(messages, &a.messages) })
	readers.Go(func() {
		for line, err := range flow.ReadJSON(stdout) {
			if err == nil {
				a.flows.add(line)
			} else if !errors.Is(err, os.ErrClosed) {
				a.t.Errorf("flow log: %v", err)
			}
		}
	})
	go func() {
		a.err = cmd.Wait()
		stderr.Close()
		readers.Wait()
		close(a.ended)
	}()
	l.t.Cleanup(func() {
		a.kill()
		stdout.Close()
		if l.t.Failed() {
			l.t.Logf("messages of the agent:\n%s", a.said(0))
		}
	})
	return a
}

// said is what the agent has said after its first messages, or the last of that.
func (a *agentProcess) said(since int) string {
	lines, _ := a.messages.since(since)
	if more := len(lines) - agentSaid; more > 0 {
		lines = append([]string{fmt.Sprintf("(%d messages before)", more)}, lines[more:]...)
	}
	return strings.Join(lines, "\n")
}

// await waits for a message after the first ones that matches, and returns it.
func (a *agentProcess) await(since int, pattern string) string {
	a.t.Helper()
	matches := regexp.MustCompile(pattern)
	limit := time.After(agentPatience)
	for {
		lines, more := a.messages.since(since)
		for _, l := range lines {
			if matches.MatchString(l) {
				return l
			}
		}
		select {
		case <-more:
		case <-a.ended:
			// All it said is in the journal by now.
			if lines, _ = a.messages.since(since); !matches.MatchString(strings.Join(lines, "\n")) {
				a.t.Fatalf("the agent ended (%v) and never said %q; its messages:\n%s", a.err, pattern, a.said(since))
			}
		case <-limit:
			a.t.Fatalf("after %v no message like %q; there were:\n%s", agentPatience, pattern, a.said(since))
		}
	}
}

// after runs an edit and waits for a message that follows it.
func (a *agentProcess) after(edit func(), pattern string) string {
	a.t.Helper()
	since := a.messages.length()
	edit()
	return a.await(since, pattern)
}

const newState = `msg="enforcing a new state"`

// terminate asks the agent to end, which it must do well.
func (a *agentProcess) terminate() {
	a.t.Helper()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		a.t.Fatal(err)
	}
	if code := a.exitCode(); code != exitOK {
		a.t.Errorf("exit code %d after SIGTERM: %v", code, a.err)
	}
}

// kill ends the agent without giving it a chance.
func (a *agentProcess) kill() {
	a.cmd.Process.Kill()
	<-a.ended
}

// exitCode waits for the end.
func (a *agentProcess) exitCode() int {
	a.t.Helper()
	select {
	case <-a.ended:
	case <-time.After(agentPatience):
		a.t.Fatal("the agent does not end")
	}
	return a.cmd.ProcessState.ExitCode()
}

// demandFailure wants the agent to have ended by itself with exit code 1 and
// one complaint that matches all patterns.
func (a *agentProcess) demandFailure(patterns ...string) {
	a.t.Helper()
	if code := a.exitCode(); code != exitFailed {
		a.t.Errorf("exit code %d (%v), want %d", code, a.err, exitFailed)
	}
	lines, _ := a.messages.since(0)
	said := strings.Join(lines, "\n")
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(said) {
			a.t.Errorf("it does not say %q but:\n%s", p, said)
		}
	}
}
