package deploytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The containers of the manifests, run on this machine as a node would: the same
// arguments, mounts and capabilities. Not the image: this machine's iptables.

const nodeName = "node-1"

// manifestsForAgent is a node with one isolated pod.
const manifestsForAgent = `
apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDRs: [10.244.1.0/24]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop}
spec: {nodeName: node-1, containers: [{name: db, image: db}]}
status: {phase: Running, podIP: 10.244.1.2, podIPs: [{ip: 10.244.1.2}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
`

// installedAgent is the agent's container of install.yaml.
func installedAgent(t *testing.T, token string) container {
	t.Helper()
	return installedAgentOn(t, t.TempDir(), token)
}

// installedAgentOn is the same on a node whose root directory is host.
func installedAgentOn(t *testing.T, host, token string) container {
	t.Helper()
	pod := decode(t, readManifest(t, "install.yaml")).agents.Spec.Template.Spec
	return containerOf(t, pod, pod.Containers[0], nodeName, host, token)
}

// agentOfManifests is that container with a directory instead of an API server.
func agentOfManifests(t *testing.T, backend string) container {
	t.Helper()
	return agentWithManifests(t, installedAgent(t, ""), backend)
}

// agentWithManifests replaces what an agent's container reads.
func agentWithManifests(t *testing.T, c container, backend string) container {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(manifestsForAgent), 0o644); err != nil {
		t.Fatal(err)
	}
	c.Mounts = append(c.Mounts, mount{dir, "/run/manifests"})
	c.Command = []string{"/netverdict", "agent", "--manifests=/run/manifests", "--node-name=" + nodeName, "--on-stop=keep-closed",
		"--worker-nice=-10", "--iptables-backend=" + backend}
	return c
}

// cleanup runs the init container of uninstall.yaml and returns what it said.
func cleanup(t *testing.T) string {
	t.Helper()
	pod := decode(t, readManifest(t, "uninstall.yaml")).agents.Spec.Template.Spec
	r := containerOf(t, pod, pod.InitContainers[0], nodeName, t.TempDir(), "").start(t)
	if err := r.wait(t, 30*time.Second); err != nil {
		t.Fatalf("the cleanup container: %v\n%s", err, r.output)
	}
	return r.output.String()
}

// leftovers are the rules and sets of netverdict in this network namespace.
func leftovers(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, args := range [][]string{{"iptables-nft-save"}, {"ip6tables-nft-save"}, {"iptables-legacy-save"}, {"ip6tables-legacy-save"}, {"ipset", "save"}} {
		text, err := exec.CommandContext(t.Context(), args[0], args[1:]...).Output()
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(strings.ToLower(line), "netverdict") {
				out = append(out, args[0]+": "+strings.TrimSpace(line))
			}
		}
	}
	return out
}

func awaitOutput(t *testing.T, r *running, want string) {
	t.Helper()
	for range 300 {
		if strings.Contains(r.output.String(), want) {
			return
		}
		select {
		case <-r.ended:
			t.Fatalf("ended (%v) before it said %q:\n%s", r.err, want, r.output)
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatalf("did not say %q in 30 s:\n%s", want, r.output)
}

func terminate(t *testing.T, r *running) {
	t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	grace := *decode(t, readManifest(t, "install.yaml")).agents.Spec.Template.Spec.TerminationGracePeriodSeconds
	if err := r.wait(t, time.Duration(grace)*time.Second); err != nil {
		t.Errorf("stopped with %v, want exit code 0:\n%s", err, r.output)
	}
}

func TestPrivilegesSuffice(t *testing.T) {
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			t.Cleanup(func() { cleanup(t) })
			r := agentOfManifests(t, backend).start(t)
			awaitOutput(t, r, "enforcing")
			select {
			case <-r.ended:
				t.Fatalf("ended with %v:\n%s", r.err, r.output)
			case <-time.After(time.Second):
			}
			if len(leftovers(t)) == 0 {
				t.Error("it says that it enforces, but there are no rules")
			}
			terminate(t, r)
			if len(leftovers(t)) == 0 {
				t.Error("the rules are gone after a stop with --on-stop=keep-closed: an update would leak")
			}
			said := cleanup(t)
			if left := leftovers(t); len(left) != 0 {
				t.Errorf("after cleanup, which said\n%s\nthere still are:\n%s", said, strings.Join(left, "\n"))
			}
		})
	}
}

// TestEveryCapabilityIsNeeded: one less, and the agent ends instead of pretending.
func TestEveryCapabilityIsNeeded(t *testing.T) {
	granted := installedAgent(t, "").Capabilities
	for i, name := range granted {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() { cleanup(t) })
			c := agentOfManifests(t, "nft")
			c.Capabilities = slices.Delete(slices.Clone(granted), i, i+1)
			r := c.start(t)
			if err := r.wait(t, 30*time.Second); err == nil {
				t.Errorf("ended well without %s:\n%s", name, r.output)
			}
			if said := r.output.String(); !strings.Contains(said, "CAP_"+name) || strings.Contains(said, "kernel module") {
				t.Errorf("without %s it blames something else:\n%s", name, said)
			}
		})
	}
}

// TestContainerIsClosed: the stage on which the other tests play holds.
func TestContainerIsClosed(t *testing.T) {
	c := installedAgent(t, "")
	c.Command = []string{"/bin/sh", "-c", `grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status
for f in /x /etc/x /usr/x /tmp/x /run/x /proc/sys/net/ipv4/ip_forward; do (echo 1 >$f) 2>/dev/null && echo "wrote $f"; done
echo 1 >/run/netverdict/x && echo "may write /run/netverdict"; echo >/run/xtables.lock && echo "may lock"; echo pid $$
setarch -R true 2>/dev/null || echo "no personality for ASLR off"`}
	r := c.start(t)
	if err := r.wait(t, 10*time.Second); err != nil {
		t.Fatalf("%v:\n%s", err, r.output)
	}
	// NET_ADMIN is 12, NET_RAW 13, SYS_NICE 23.
	const want = `CapInh:	0000000000000000
CapPrm:	0000000000803000
CapEff:	0000000000803000
CapBnd:	0000000000803000
CapAmb:	0000000000000000
NoNewPrivs:	1
Seccomp:	2
may write /run/netverdict
may lock
pid 1
no personality for ASLR off
`
	if got := r.output.String(); got != want {
		t.Errorf("the container says\n%s\nwant\n%s", got, want)
	}
}
