package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netverdict/netverdict/engine/seccomp/seccomptest"
	"github.com/netverdict/netverdict/policy"
)

// `make promises` sets what we promise, a minute.
var demoTime = flag.Duration("demo-time", 10*time.Minute, "how long the demo may take in TestDemo")

// asNetverdict in the environment makes this test binary netverdict itself, with
// main's handling of signals, and so the agents that it starts from itself.
const asNetverdict = "NETVERDICT_TEST_RUN_MAIN"

func init() {
	if os.Getenv(asNetverdict) != "" {
		installProfile = seccomptest.Install
		main() // exits
	}
}

// thisBinary is the path of the test binary.
func thisBinary(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// needRoot fails the test when it cannot make network namespaces.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and real rules in them: run it as root")
	}
}

// demoCommand prepares `netverdict demo`, with a directory of its own for what
// it must not leave behind.
func demoCommand(t *testing.T, args ...string) (cmd *exec.Cmd, tmp string) {
	t.Helper()
	needRoot(t)
	tmp = t.TempDir()
	cmd = exec.CommandContext(t.Context(), thisBinary(t), append([]string{"demo"}, args...)...)
	cmd.Env = append(os.Environ(), asNetverdict+"=1", "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, tmp
}

// checkNothingLeft looks for manifests and for agents that enforce them.
func checkNothingLeft(t *testing.T, tmp string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(tmp, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("the demo left %v behind (%v)", left, err)
	}
	if left := processesWith(t, tmp); len(left) > 0 {
		t.Errorf("the demo left processes behind: %v", left)
	}
}

type process struct {
	pid     int
	command string
}

// processesWith lists processes that have text in an argument.
func processesWith(t *testing.T, text string) (found []process) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		cmdline, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(cmdline, []byte(text)) { // an error: it ended just now
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, process{pid, string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '}))})
	}
	return found
}

// TestDemo is the whole demo, as people run it.
func TestDemo(t *testing.T) {
	cmd, tmp := demoCommand(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	begun := time.Now()
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout, &stderr)
	}
	elapsed := time.Since(begun)
	t.Logf("demo: %v", elapsed.Round(100*time.Millisecond))
	if elapsed > *demoTime {
		t.Errorf("took %v, want at most %v", elapsed, *demoTime)
	}
	checkWidth(t, string(stdout))
	checkNothingLeft(t, tmp)
	checkShown(t, string(stdout))
	if stderr.Len() > 0 {
		t.Errorf("standard error is not empty:\n%s", &stderr)
	}
}

// checkShown looks for every cell, for the flow record of every denied one, and
// for the summary.
func checkShown(t *testing.T, stdout string) {
	t.Helper()
	text := regexp.MustCompile(`\s+`).ReplaceAllString(stdout, " ") // undoes wrapping and padding
	checks, denials := 0, 0
	for _, s := range demoStories() {
		for _, step := range s.steps {
			for _, c := range step.checks {
				checks++
				cell := fmt.Sprintf("%s → %s ✓ allowed ✓ allowed", c.from, c.target())
				if c.want.verdict == policy.Deny {
					denials++
					cell = fmt.Sprintf("%s → %s ✗ denied ✗ denied", c.from, c.target())
					record := fmt.Sprintf("%s → %s DENY %s: isolated by %s ", c.from, c.target(), c.want.direction, strings.Join(c.want.isolatedBy, ", "))
					if !strings.Contains(text, record) {
						t.Errorf("story %s: no line %q", s.key, record)
					}
				}
				if !strings.Contains(text, cell) {
					t.Errorf("story %s: no cell %q", s.key, cell)
				}
			}
		}
	}
	summary := fmt.Sprintf("PASS %d checks, %d as expected; the flow log names the policies of %d of %d denials;", checks, checks, denials, denials)
	if !strings.Contains(text, summary) {
		t.Errorf("no summary %q", summary)
	}
	if t.Failed() {
		t.Log(stdout)
	}
}

// runDemo runs stories in this process, with the agent in another.
func runDemo(t *testing.T, executable string, stories ...story) (stdout string, err error) {
	t.Helper()
	needRoot(t)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Setenv(asNetverdict, "1") // for the agent
	var b bytes.Buffer
	d := &demo{stories: stories, executable: executable, out: newScreen(&b)}
	err = d.run(t.Context())
	checkWidth(t, b.String())
	checkNothingLeft(t, tmp)
	return b.String(), err
}

// TestDemoWrongExpectation: the demo notices each kind of disagreement. (That
// errAnswerNo becomes exit code 2, the scripts of explain test.)
func TestDemoWrongExpectation(t *testing.T) {
	wrong := environments()
	wrong.steps[0].checks = []check{
		tcp("production/shop", "staging/web", 80).allowed(),
		tcp("staging/web", "production/web", 80).allowed(),
		tcp("production/web", "staging/tester", 80).noIngress("staging/from-production"),
		tcp("staging/tester", "production/shop", 80).noIngress("production/another"),
		tcp("staging/web", "production/shop", 8080).noEgress("production/only-production"),
		udp("production/web", "staging/web", 53).noIngress("staging/from-production", "staging/web-from-tester"),
	}
	stdout, err := runDemo(t, thisBinary(t), wrong)
	if !errors.Is(err, errAnswerNo) {
		t.Errorf("error %v, want the one for exit code %d", err, exitNo)
	}
	if n := strings.Count(stdout, "MISMATCH"); n != 4 {
		t.Errorf("%d cells are marked, want 4", n)
	}
	for _, want := range []string{
		"must be allowed; the flow log says denied by ingress: isolated by production/only-production",
		"must be denied by ingress: isolated by staging/from-production, was allowed",
		"must be denied by ingress: isolated by production/another; the flow log says",
		"must be denied by egress: isolated by production/only-production; the flow log says",
		"FAIL: 4 NOT AS EXPECTED   6 checks, 2 as expected; the flow log names the policies of 1 of 4",
		"msg=enforcing", // the agent's messages
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(stdout)
	}
}

// TestDemoAgentFails: what the agent said last is in the error.
func TestDemoAgentFails(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(agent, []byte("#!/bin/sh\necho 'no queue today' >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := runDemo(t, agent, metricsStory())
	if err == nil || errors.Is(err, errAnswerNo) {
		t.Fatalf("error %v, want one for exit code %d", err, exitFailed)
	}
	for _, want := range []string{"story e", "the agent ended by itself (exit status 3)", "no queue today"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
}

// TestDemoAgentVanishes: an agent that is killed between two steps is missed.
func TestDemoAgentVanishes(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "agent")
	script := "#!/bin/sh\necho 'msg=enforcing policies=1 addresses=6' >&2\nsleep 0.2\necho 'that was it' >&2\n"
	if err := os.WriteFile(agent, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := runDemo(t, agent, threeApps())
	if err == nil || !strings.Contains(err.Error(), "the agent ended by itself") || !strings.Contains(err.Error(), "that was it") {
		t.Errorf("error %v, want that the agent ended, and its last message", err)
	}
}

// TestDemoNeedsRoot runs the demo as nobody.
func TestDemoNeedsRoot(t *testing.T) {
	needRoot(t)
	// This very file: nobody may not look into the directories on the way to it.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "demo", "--story", "a")
	cmd.Env = append(os.Environ(), asNetverdict+"=1", "TMPDIR=/tmp")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailed || !strings.Contains(stderr.String(), "run this with sudo") {
		t.Errorf("as nobody: %v, want exit status %d and the fix:\n%s", err, exitFailed, &stderr)
	}
}

// startDemo starts the demo and waits until it has printed text.
func startDemo(t *testing.T, text string, args ...string) (cmd *exec.Cmd, tmp, before string, stdout io.ReadCloser) {
	t.Helper()
	cmd, tmp = demoCommand(t, args...)
	cmd.Stderr = t.Output()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// One byte at a time: what comes after text is left to the caller.
	var seen strings.Builder
	one := make([]byte, 1)
	for !strings.Contains(seen.String(), text) {
		if _, err := stdout.Read(one); err != nil {
			t.Fatalf("the demo ended (%v) before it printed %q:\n%s", err, text, &seen)
		}
		seen.Write(one)
	}
	return cmd, tmp, seen.String(), stdout
}

// finish waits for the demo's end and checks its exit code and what it left.
func finish(t *testing.T, cmd *exec.Cmd, tmp string, want int) {
	t.Helper()
	begun := time.Now()
	err := cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != want {
		t.Errorf("exit code %d (%v), want %d", got, err, want)
	}
	if elapsed := time.Since(begun); elapsed > agentPatience {
		t.Errorf("took %v to end", elapsed)
	}
	checkNothingLeft(t, tmp)
}

func TestDemoInterrupted(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		cmd, tmp, _, stdout := startDemo(t, "flow log", "--story", "a")
		if len(processesWith(t, tmp)) == 0 {
			t.Error("no agent runs: the test looks in the wrong place")
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, stdout)
		finish(t, cmd, tmp, exitFailed)
	}
}

// TestDemoReaderGone is `netverdict demo | head`.
func TestDemoReaderGone(t *testing.T) {
	cmd, tmp, _, stdout := startDemo(t, "step 1", "--story", "a")
	stdout.Close()
	finish(t, cmd, tmp, exitFailed)
}

// TestDemoKilled: the agent dies with the demo.
func TestDemoKilled(t *testing.T) {
	cmd, tmp, _, _ := startDemo(t, "flow log", "--story", "a")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for deadline := time.Now().Add(agentPatience); len(processesWith(t, tmp)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still running: %v", processesWith(t, tmp))
		}
	}
}

// TestDemoKeep: with --keep policies can be edited and pods entered until Ctrl-C.
func TestDemoKeep(t *testing.T) {
	cmd, tmp, before, stdout := startDemo(t, "iptables -t mangle", "--story", "e", "--keep")
	dir := regexp.MustCompile(`edit the policies in\s+(\S+)`).FindStringSubmatch(before)
	pod := regexp.MustCompile(`ip netns exec (\S+) curl '(\S+)'`).FindStringSubmatch(before)
	if dir == nil || pod == nil {
		t.Fatalf("no directory or no pod to play with in:\n%s", before)
	}
	deny := []byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: metrics}\nspec: {podSelector: {}, policyTypes: [Ingress]}\n")
	if err := os.WriteFile(filepath.Join(dir[1], "closed.yaml"), deny, 0o644); err != nil {
		t.Fatal(err)
	}
	// The visitor's HTTP request to agent-1, allowed in the story, is denied soon.
	ctx, stop := context.WithTimeout(t.Context(), agentPatience)
	defer stop()
	go func() {
		for ctx.Err() == nil {
			get := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+pod[1], "bash", "-c",
				fmt.Sprintf("exec 3<>/dev/tcp/%s", strings.Replace(strings.Trim(pod[2], "htp:/"), ":", "/", 1)))
			get.WaitDelay = time.Second
			_ = get.Run()
			time.Sleep(50 * time.Millisecond)
		}
	}()
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			lines <- s.Text()
		}
	}()
	for found := false; !found; {
		select {
		case line, more := <-lines:
			if !more {
				t.Fatal("the demo ended")
			}
			found = strings.Contains(line, "metrics/visitor → metrics/agent-1:80/TCP DENY ingress: isolated by metrics/closed")
		case <-ctx.Done():
			t.Fatal("no request was denied after the edit")
		}
	}
	stop()
	go func() {
		for range lines { // the demo must be able to print
		}
	}()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	finish(t, cmd, tmp, exitOK)
	if left, _ := filepath.Glob("/run/netns/nv-demoe-*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestDemoKeepMissesAgent: with --keep, too, an agent that ends is missed.
func TestDemoKeepMissesAgent(t *testing.T) {
	cmd, tmp, _, stdout := startDemo(t, "iptables -t mangle", "--story", "b", "--keep")
	for _, agent := range processesWith(t, tmp) {
		if err := syscall.Kill(agent.pid, syscall.SIGKILL); err != nil {
			t.Fatalf("kill %v: %v", agent, err)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, stdout) }()
	finish(t, cmd, tmp, exitFailed)
}
