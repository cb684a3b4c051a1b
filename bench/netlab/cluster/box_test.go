//go:build linux

package cluster_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/netverdict/netverdict/bench/netlab/cluster"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		os.Exit(child(mode))
	}
	os.Exit(m.Run())
}

// TestWithoutAgents shows that what TestCluster calls denied would pass if nobody
// enforced it, and what the stand-ins for controllers do.
func TestWithoutAgents(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.New(t, cluster.Options{Nodes: 2, NoAgent: true}))
	server, client := s.pod("server", "node-1", cluster.TCP("", 80), cluster.UDP("", 53)), s.pod("client", "node-2")
	s.apply("nobody", "{podSelector: {}, policyTypes: [Ingress, Egress]}")
	time.Sleep(100 * time.Millisecond)
	s.demand("without agents", allowed(client.Host, server, tcp, 80), allowed(client.Host, server, udp, 53))

	spread := map[string]int{}
	for i := range 4 {
		spread[s.pod(fmt.Sprintf("anywhere-%d", i), "").Node.Name()]++
	}
	if spread["node-1"] != 2 || spread["node-2"] != 2 {
		t.Errorf("pods without a node are bound like %v, want two on each", spread)
	}
	testCommand(s)
	testStream(s, client, server)
	testTaken(s)
}

// testCommand: a container with a command runs it in the pod, until the pod goes.
func testCommand(s *scene) {
	s.Helper()
	file := filepath.Join(s.TempDir(), "out")
	object := cluster.ServerPod(s.namespace, "command", "node-1", nil)
	object.Spec.Containers[0].Command = []string{"sh", "-c", `readlink /proc/self/ns/net > "$OUT"; exec sleep 1000`}
	object.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "OUT", Value: file}}
	p := s.create(object)
	var want string
	s.ok(p.Host.Do(func() (err error) {
		want, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}))
	s.await("the command's output", func() bool {
		out, err := os.ReadFile(file)
		return err == nil && string(out) == want+"\n"
	})
	s.delete(p)
}

// testStream: a stream answers until its server is gone.
func testStream(s *scene, client, server *cluster.Pod) {
	s.Helper()
	stream, err := cluster.OpenStream(s.within(), client.Host, server.Targets(80)[1])
	s.ok(err)
	defer stream.Close()
	for range 3 {
		s.ok(stream.Exchange(cluster.Patience))
	}
	s.delete(server)
	if err := stream.Exchange(cluster.Silence); err == nil {
		s.Error("a stream outlived its server")
	}
}

// testTaken: what keeps a pod from running is told to who waits for it.
func testTaken(s *scene) {
	s.Helper()
	for i, want := range []string{"", "address already in use"} {
		object := cluster.ServerPod(s.namespace, fmt.Sprintf("taken-%d", i), "node-1", nil, cluster.TCP("", 18090))
		object.Spec.HostNetwork = true
		ctx, cancel := context.WithTimeout(s.Context(), cluster.Patience/time.Duration(1+9*i))
		_, err := s.c.CreatePod(ctx, object)
		cancel()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			s.Errorf("pod %d on a port of the node: %v, want %q", i, err, want)
		}
	}
}

func TestBadOptions(t *testing.T) {
	t.Parallel()
	_, err := cluster.Start(t.Context(), cluster.Options{Nodes: 251})
	if err == nil || !strings.Contains(err.Error(), "251 nodes: want 1 to 250") {
		t.Errorf("Start: %v", err)
	}
	_, err = cluster.Start(t.Context(), cluster.Options{Nodes: 1, AgentArgs: []string{"--no-such-flag"}})
	if err == nil || !strings.Contains(err.Error(), "node-1 agent 1") || !strings.Contains(err.Error(), "unknown flag: --no-such-flag") {
		t.Errorf("Start with a bad agent: %v", err)
	}
}

// childEnv makes the test binary start a cluster and then end in the named way.
const childEnv = "CLUSTER_TEST_CHILD"

func child(mode string) int {
	c, err := cluster.Start(context.Background(), cluster.Options{Nodes: 1})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer c.Close()
	if mode == "signal" {
		c.CloseOnSignal()
	}
	agent := c.Node("node-1").Agent()
	fmt.Println(c.Dir(), agent.Pid())
	if mode == "panic" {
		panic("on purpose")
	}
	time.Sleep(5 * time.Minute)
	return 3
}

// TestDeathLeavesNothing: no process, and after all but kill -9 no file.
func TestDeathLeavesNothing(t *testing.T) {
	t.Parallel()
	for mode, sig := range map[string]os.Signal{"signal": syscall.SIGINT, "panic": nil, "kill": syscall.SIGKILL} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+mode)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			var dir string
			var pid int
			if _, scanErr := fmt.Sscan(line, &dir, &pid); scanErr != nil {
				_ = cmd.Wait() // it failed
				t.Fatalf("the child says %q (%v): %s", line, err, stderr.String())
			}
			if sig != nil {
				_ = cmd.Process.Signal(sig) // it runs: nobody has waited for it
			}
			if err := cmd.Wait(); err == nil {
				t.Error("the child ended well")
			}
			demandGone(t, dir, mode == "kill")
		})
	}
}

// demandGone checks that no process has the directory in its command line, and
// that it is gone.
func demandGone(t *testing.T, dir string, keepsDir bool) {
	t.Helper()
	var left []string
	for range 200 {
		if left = processes(dir); len(left) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if len(left) > 0 {
		t.Errorf("processes outlived the cluster: %v", left)
	}
	_, err := os.Stat(dir)
	if gone := errors.Is(err, os.ErrNotExist); gone == keepsDir {
		t.Errorf("%s is gone: %v, want %v", dir, gone, !keepsDir)
	}
	_ = os.RemoveAll(dir) // after kill -9
}

func processes(dir string) (lines []string) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is good
	for _, path := range paths {
		line, err := os.ReadFile(path)
		if err == nil && bytes.Contains(line, []byte(dir)) {
			lines = append(lines, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return lines
}
