package deploytest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/netverdict/netverdict/deploy/test/render"
	"github.com/netverdict/netverdict/engine/seccomp"
)

const (
	// runtimeDefault stands for the profile of the container runtime.
	runtimeDefault = "RuntimeDefault"

	// kubeletSeccomp is where a kubelet looks for profiles of the type Localhost
	// (kubernetes.io/docs/tutorials/security/seccomp).
	kubeletSeccomp = "/var/lib/kubelet/seccomp"

	profileFile = "seccomp/netverdict.json"
)

// parseProfile reads a profile as containerd does: into the object of the OCI
// runtime specification.
func parseProfile(text []byte) (*seccomp.Profile, error) {
	var file specs.LinuxSeccomp
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, err
	}
	action, err := parseAction(file.DefaultAction, file.DefaultErrnoRet)
	p := &seccomp.Profile{Default: action}
	for i := range file.Syscalls {
		rule := &file.Syscalls[i]
		r := seccomp.Rule{Calls: rule.Names}
		if r.Action, err = parseAction(rule.Action, rule.ErrnoRet); err != nil {
			return nil, err
		}
		for _, a := range rule.Args {
			if a.Op != specs.OpMaskedEqual {
				return nil, fmt.Errorf("%v: comparison %s: want masks only", rule.Names, a.Op)
			}
			r.When = append(r.When, seccomp.Arg{Index: a.Index, Mask: a.Value, Value: a.ValueTwo})
		}
		p.Rules = append(p.Rules, r)
	}
	return p, err
}

func parseAction(name specs.LinuxSeccompAction, errno *uint) (seccomp.Action, error) {
	switch {
	case name == specs.ActAllow && errno == nil:
		return seccomp.Allow, nil
	case name == specs.ActErrno && errno != nil:
		return seccomp.Action(unix.SECCOMP_RET_ERRNO | uint32(*errno)), nil
	default:
		return 0, fmt.Errorf("action %s with errno %v", name, errno)
	}
}

// TestProfileIsCurrent: the file says what the list in engine/seccomp says, also to those who
// read it as container runtimes do.
func TestProfileIsCurrent(t *testing.T) {
	text := readManifest(t, profileFile)
	want, err := seccomp.Container().OCI()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s is not what engine/seccomp lists; run `go generate` in deploy/test (-list +file):\n%s", profileFile, diff)
	}
	parsed, err := parseProfile([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, goarch := range []string{"amd64", "arm64"} {
		want, err := seccomp.Container().Program(goarch)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parsed.Program(goarch)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(want, got) {
			t.Errorf("on %s the file makes another program than the list", goarch)
		}
	}
	var file specs.LinuxSeccomp
	if err := json.Unmarshal([]byte(text), &file); err != nil {
		t.Fatal(err)
	}
	for _, r := range file.Syscalls {
		if r.Action == file.DefaultAction && *r.ErrnoRet == *file.DefaultErrnoRet {
			t.Errorf("the rule about %v says what holds without it: libseccomp refuses it, and with it the profile", r.Names)
		}
	}
	if diff := cmp.Diff([]specs.Arch{specs.ArchX86_64, specs.ArchAARCH64}, file.Architectures); diff != "" {
		t.Errorf("architectures (-want +got):\n%s", diff)
	}
}

// confinedNode does what deploy/README.md says: the profile is copied to the node, and the chart told its name.
func confinedNode(t *testing.T, more ...any) (pod corev1.PodSpec, host string) {
	t.Helper()
	host = t.TempDir()
	at := filepath.Join(host, kubeletSeccomp, "netverdict.json")
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, []byte(readManifest(t, profileFile)), 0o644); err != nil {
		t.Fatal(err)
	}
	v := values(append([]any{"seccomp.localhostProfile", "netverdict.json"}, more...)...)
	return decode(t, renderChart(t, render.Release{Values: v}).Manifest).agents.Spec.Template.Spec, host
}

// demandComplete wants the profile to have everything that was called.
func demandComplete(t *testing.T, r *running) {
	t.Helper()
	for _, call := range r.watched.Missing(t) {
		t.Errorf("%s, which %s refuses; add it to engine/seccomp/calls.go if it is needed", call, profileFile)
	}
}

// TestLocalhostProfileSuffices for everything that runs in our containers: the agent with iptables, probes,
// status, cleanup. Watched, nothing may be refused. (Real packets are in cmd/netverdict, where every agent is watched.)
func TestLocalhostProfileSuffices(t *testing.T) {
	for _, backend := range []string{"nft", "legacy"} {
		for _, watched := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/watched=%v", backend, watched), func(t *testing.T) {
				t.Cleanup(func() { cleanup(t) })
				pod, host := confinedNode(t)
				c := agentWithManifests(t, containerOf(t, pod, pod.Containers[0], nodeName, host, ""), backend)
				c.Watch = watched
				c.Command = append(c.Command, fmt.Sprintf("--seccomp=%v", !watched), "--health-address=unix:/run/netverdict/health.sock", "--status-socket=/run/netverdict/agent.sock")
				r := c.start(t)
				awaitOutput(t, r, "enforcing")
				if len(leftovers(t)) == 0 {
					t.Error("it says that it enforces, but there are no rules")
				}
				demandFilters(t, r, watched)
				for _, verb := range [][]string{{"probe", "readyz", "--health-address=unix:/run/netverdict/health.sock"}, {"status", "--socket=/run/netverdict/agent.sock"}} {
					runConfined(t, pod, host, watched, verb...)
				}
				terminate(t, r)
				if watched {
					demandComplete(t, r)
				}
				runConfined(t, pod, host, watched, "cleanup")
				if left := leftovers(t); len(left) != 0 {
					t.Errorf("after cleanup there still are:\n%s", strings.Join(left, "\n"))
				}
			})
		}
	}
}

// TestLocalhostProfileWithAPIServer watches the agent as the chart runs it: with a token, against a
// real API server.
func TestLocalhostProfileWithAPIServer(t *testing.T) {
	t.Cleanup(func() { cleanup(t) })
	cluster := newCluster(t)
	cluster.apply(t, "install.yaml", "--server-side")
	cluster.createObjects(t)
	pod, host := confinedNode(t, "agent.extraArgs", []any{"--seccomp=false"})
	c := containerOf(t, pod, pod.Containers[0], nodeName, host, cluster.tokenDir(t))
	c.Env, c.Watch = append(c.Env, cluster.serviceEnv()...), true
	r := c.start(t)
	awaitProbe(t, r, pod.Containers[0].ReadinessProbe)
	checkMetrics(t)
	terminate(t, r)
	demandComplete(t, r)
}

// runConfined runs another verb in such a container.
func runConfined(t *testing.T, pod corev1.PodSpec, host string, watched bool, verb ...string) {
	t.Helper()
	c := containerOf(t, pod, pod.Containers[0], nodeName, host, "")
	c.Command, c.Watch = append([]string{"/netverdict"}, verb...), watched
	r := c.start(t)
	if err := r.wait(t, 30*time.Second); err != nil {
		t.Errorf("%q: %v:\n%s", verb, err, r.output)
	}
	if watched {
		demandComplete(t, r)
	}
}

// demandFilters wants both the profile and the agent's own filter to be in force.
func demandFilters(t *testing.T, r *running, watched bool) {
	t.Helper()
	want := "Seccomp_filters:\t2\n"
	if watched {
		want = "Seccomp_filters:\t1\n"
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(status), want) {
		t.Errorf("want %q in\n%s", want, status)
	}
}

// TestCleanedNodeSleepsUnderTheProfile: the container that stays when a node is clean.
func TestCleanedNodeSleepsUnderTheProfile(t *testing.T) {
	pod, host := confinedNode(t, "cleanup", true)
	main := pod.Containers[0]
	c := containerOf(t, pod, main, nodeName, host, "")
	c.Command, c.Watch = append([]string{"/usr/bin/env"}, main.Command...), true
	r := c.start(t)
	select {
	case <-r.ended:
		t.Fatalf("ended with %v:\n%s", r.err, r.output)
	case <-time.After(2 * time.Second):
	}
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	demandComplete(t, r)
}

// TestLocalhostProfileRefuses: what an intruder in the container would try.
func TestLocalhostProfileRefuses(t *testing.T) {
	pod, host := confinedNode(t)
	c := containerOf(t, pod, pod.Containers[0], nodeName, host, "")
	c.Command = []string{"/bin/sh", "-c", `unshare --net true || echo no namespace
mount -t tmpfs none /run/netverdict || echo no mount
nsenter --net=/proc/1/ns/net true || echo no other namespace
setarch -R true || echo no personality
chroot / true || echo no chroot
setpriv --reuid 65534 --clear-groups true || echo no other user`}
	r := c.start(t)
	if err := r.wait(t, 30*time.Second); err != nil {
		t.Fatalf("%v:\n%s", err, r.output)
	}
	for _, want := range []string{"no namespace", "no mount", "no other namespace", "no personality", "no chroot", "no other user"} {
		if !strings.Contains(r.output.String(), want+"\n") {
			t.Errorf("it does not say %q but:\n%s", want, r.output)
		}
	}
}
