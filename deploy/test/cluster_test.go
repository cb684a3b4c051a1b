package deploytest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/loader"
	"helm.sh/helm/v4/pkg/cli"
	"helm.sh/helm/v4/pkg/kube"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/netverdict/netverdict/kube/kubetest"
)

const namespace = "kube-system"

// cluster is a real API server, without controllers and kubelets.
type cluster struct {
	*kubetest.ControlPlane
	admin *kubernetes.Clientset
}

func newCluster(t *testing.T) cluster {
	t.Helper()
	cp := kubetest.New(t, kubetest.Options{})
	return cluster{cp, clientOf(t, cp.Admin())}
}

func clientOf(t *testing.T, cfg *rest.Config) *kubernetes.Clientset {
	t.Helper()
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// kubectl runs it as the administrator; stdin may be empty.
func (c cluster) kubectl(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	program, err := kubetest.Build(t.Context(), "kubectl")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, append([]string{"--kubeconfig", c.KubeconfigFile()}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c cluster) mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.kubectl(t, "", args...)
	if err != nil {
		t.Fatalf("kubectl %q: %v\n%s", args, err, out)
	}
	return out
}

// apply is kubectl apply, by the server ("--server-side") or the client.
func (c cluster) apply(t *testing.T, file string, flags ...string) {
	t.Helper()
	out := c.mustKubectl(t, append([]string{"apply", "--validate=strict", "-f", filepath.Join(deploy, file)}, flags...)...)
	if strings.Contains(out, "Warning") {
		t.Errorf("apply %s %q:\n%s", file, flags, out)
	}
}

func (c cluster) agents(t *testing.T) *appsv1.DaemonSet {
	t.Helper()
	ds, err := c.admin.AppsV1().DaemonSets(namespace).Get(t.Context(), "netverdict", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ds
}

func TestAPIServerAcceptsTheManifests(t *testing.T) {
	c := newCluster(t)
	for _, file := range []string{"install.yaml", "uninstall.yaml"} {
		c.apply(t, file, "--server-side")
		ds := c.agents(t)
		// What the DaemonSet controller would do.
		pod := &corev1.Pod{ObjectMeta: ds.Spec.Template.ObjectMeta, Spec: ds.Spec.Template.Spec}
		pod.GenerateName = "netverdict-"
		created, err := c.admin.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
		if err != nil {
			t.Errorf("a pod of %s: %v", file, err)
		} else if *created.Spec.Priority != 2000001000 {
			t.Errorf("a pod of %s has priority %d, want that of system-node-critical", file, *created.Spec.Priority)
		}
	}
	// Why the agent must not name its ports (TestNoPorts).
	named := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "ports-"}, Spec: decode(t, readManifest(t, "install.yaml")).agents.Spec.Template.Spec}
	named.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8052}}
	created, err := c.admin.CoreV1().Pods(namespace).Create(t.Context(), named, metav1.CreateOptions{})
	if err != nil || created.Spec.Containers[0].Ports[0].HostPort != 8052 {
		t.Errorf("a port of a pod on the host network: %v, %+v; want it to become a hostPort", err, created)
	}
	// The validation is strict indeed.
	broken := strings.Replace(readManifest(t, "install.yaml"), "maxUnavailable:", "maxUnavailabel:", 1)
	out, err := c.kubectl(t, broken, "apply", "--server-side", "--validate=strict", "-f", "-")
	if err == nil || !strings.Contains(out, "maxUnavailabel") {
		t.Errorf("a misspelt field was accepted: %v\n%s", err, out)
	}
}

// TestServiceAccountOnlyReads compares what the agent's account may do with what
// every account may do (ask about itself, and read what the server publishes).
func TestServiceAccountOnlyReads(t *testing.T) {
	c := newCluster(t)
	c.apply(t, "install.yaml", "--server-side")
	nobody := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "nobody"}}
	if _, err := c.admin.CoreV1().ServiceAccounts(namespace).Create(t.Context(), nobody, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"get/namespaces", "get/networkpolicies.networking.k8s.io", "get/nodes", "get/pods",
		"list/namespaces", "list/networkpolicies.networking.k8s.io", "list/nodes", "list/pods",
		"watch/namespaces", "watch/networkpolicies.networking.k8s.io", "watch/nodes", "watch/pods",
	}
	var got []string
	for range 100 { // the server's own watch of its roles takes a moment
		others := c.rights(t, "nobody")
		got = slices.DeleteFunc(c.rights(t, "netverdict"), func(r string) bool { return slices.Contains(others, r) })
		if len(got) >= len(want) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rights that other accounts lack (-want +got):\n%s", diff)
	}
	t.Logf("kubectl auth can-i --list, as the agent:\n%s",
		c.mustKubectl(t, "auth", "can-i", "--list", "--as", "system:serviceaccount:"+namespace+":netverdict"))
}

// rights are what an account of kube-system may do there and in the cluster,
// "verb/resource.group" or "verb/path", sorted.
func (c cluster) rights(t *testing.T, account string) []string {
	t.Helper()
	cfg, err := c.ServiceAccountConfig(t.Context(), namespace, account)
	if err != nil {
		t.Fatal(err)
	}
	review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}
	review, err = clientOf(t, cfg).AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), review, metav1.CreateOptions{})
	if err != nil || review.Status.Incomplete {
		t.Fatalf("rules of %s: %v %s", account, err, review.Status.EvaluationError)
	}
	var out []string
	for _, r := range review.Status.ResourceRules {
		for _, verb := range r.Verbs {
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					out = append(out, verb+"/"+strings.TrimSuffix(resource+"."+group, ".")+strings.Join(r.ResourceNames, ","))
				}
			}
		}
	}
	for _, r := range review.Status.NonResourceRules {
		for _, verb := range r.Verbs {
			for _, path := range r.NonResourceURLs {
				out = append(out, verb+path)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestUninstallReplacesInstall: whichever way the manifests are applied, nothing of
// the agent stays in the DaemonSet that cleans up, and nothing of that in the agent.
func TestUninstallReplacesInstall(t *testing.T) {
	c := newCluster(t)
	want := map[string]appsv1.DaemonSetSpec{}
	for _, file := range []string{"install.yaml", "uninstall.yaml"} {
		c.apply(t, file)
		want[file] = c.agents(t).Spec
		c.mustKubectl(t, "delete", "-f", filepath.Join(deploy, "install.yaml"), "--ignore-not-found")
	}
	for _, flags := range [][]string{nil, {"--server-side"}} {
		for _, file := range []string{"install.yaml", "uninstall.yaml", "install.yaml"} {
			c.apply(t, file, flags...)
			if diff := cmp.Diff(want[file], c.agents(t).Spec); diff != "" {
				t.Errorf("apply %q: %s over the other (-fresh +replaced):\n%s", flags, file, diff)
			}
		}
		c.mustKubectl(t, "delete", "-f", filepath.Join(deploy, "install.yaml"))
	}
}

// TestDeleteLeavesNothing: install.yaml names everything that either manifest made.
func TestDeleteLeavesNothing(t *testing.T) {
	c := newCluster(t)
	c.apply(t, "install.yaml")
	c.apply(t, "uninstall.yaml")
	c.mustKubectl(t, "delete", "-f", filepath.Join(deploy, "install.yaml"))
	out := c.mustKubectl(t, "get", "daemonsets,serviceaccounts,clusterroles,clusterrolebindings", "-A", "-l", "app.kubernetes.io/name=netverdict", "-o", "name")
	if out != "" {
		t.Errorf("still there:\n%s", out)
	}
}

// TestHelm installs, prepares to uninstall and uninstalls as the notes say.
func TestHelm(t *testing.T) {
	t.Setenv("HELM_CACHE_HOME", t.TempDir())
	c := newCluster(t)
	c.apply(t, "install.yaml")
	wantSpec := c.agents(t).Spec
	c.mustKubectl(t, "delete", "-f", filepath.Join(deploy, "install.yaml"))

	settings := cli.New()
	settings.KubeConfig = c.KubeconfigFile()
	settings.SetNamespace(namespace)
	cfg := action.NewConfiguration()
	if err := cfg.Init(settings.RESTClientGetter(), namespace, ""); err != nil {
		t.Fatal(err)
	}
	chart, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	install := action.NewInstall(cfg)
	install.ReleaseName, install.Namespace, install.WaitStrategy = "netverdict", namespace, kube.HookOnlyStrategy
	if _, err := install.Run(chart, values("agent.flowLog", "all")); err != nil {
		t.Fatalf("helm install: %v", err)
	}
	ignoreArgs := cmpopts.IgnoreFields(corev1.Container{}, "Args")
	if diff := cmp.Diff(wantSpec, c.agents(t).Spec, ignoreArgs); diff != "" {
		t.Errorf("helm install against kubectl apply (-kubectl +helm):\n%s", diff)
	}

	upgrade := action.NewUpgrade(cfg)
	upgrade.Namespace, upgrade.ReuseValues, upgrade.WaitStrategy = namespace, true, kube.HookOnlyStrategy
	if _, err := upgrade.Run("netverdict", chart, values("cleanup", true)); err != nil {
		t.Fatalf("helm upgrade: %v", err)
	}
	pod := c.agents(t).Spec.Template.Spec
	if len(pod.InitContainers) != 1 || pod.InitContainers[0].Args[0] != "cleanup" || len(pod.Containers[0].Args) != 0 || pod.ServiceAccountName != "default" {
		t.Errorf("after --set cleanup=true the pods are\n%+v", pod)
	}
	if _, err := c.admin.CoreV1().ServiceAccounts(namespace).Get(t.Context(), "netverdict", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the account after --set cleanup=true: %v, want not found", err)
	}

	uninstall := action.NewUninstall(cfg)
	uninstall.WaitStrategy = kube.HookOnlyStrategy
	if _, err := uninstall.Run("netverdict"); err != nil {
		t.Fatalf("helm uninstall: %v", err)
	}
	if out := c.mustKubectl(t, "get", "daemonsets,clusterroles,clusterrolebindings", "-A", "-l", "app.kubernetes.io/name=netverdict", "-o", "name"); out != "" {
		t.Errorf("after helm uninstall there are\n%s", out)
	}
}

// TestKubectlPlugin: the binary under another name is a verb of kubectl.
func TestKubectlPlugin(t *testing.T) {
	bin := t.TempDir()
	if err := os.Symlink(builtProgram(t), filepath.Join(bin, "kubectl-netverdict")); err != nil {
		t.Fatal(err)
	}
	kubectl, err := kubetest.Build(t.Context(), "kubectl")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), kubectl, "netverdict", "version")
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if want := runProgram(t, "version"); err != nil || string(out) != want {
		t.Errorf("kubectl netverdict version: %v, %q, want %q", err, out, want)
	}
}

// TestAgentAsInstalled runs install.yaml's agent, to the letter, with its account's
// token against the API server; then what uninstall.yaml does to the node.
func TestAgentAsInstalled(t *testing.T) {
	t.Cleanup(func() { cleanup(t) })
	c := newCluster(t)
	c.apply(t, "install.yaml", "--server-side")
	c.createObjects(t)

	r := c.startAgent(t, c.tokenDir(t), t.TempDir())
	pod := c.agents(t).Spec.Template.Spec.Containers[0]
	awaitProbe(t, r, pod.StartupProbe)
	awaitProbe(t, r, pod.ReadinessProbe)
	awaitProbe(t, r, pod.LivenessProbe)
	if !strings.Contains(strings.Join(leftovers(t), "\n"), "10.244.1.2") {
		t.Error("it is ready, but the isolated pod's address is in no set")
	}

	// The command that README and notes give.
	out, err := r.exec(t, "/netverdict", "status")
	if err != nil {
		t.Errorf("netverdict status: %v\n%s", err, out)
	}
	t.Logf("netverdict status:\n%s", out)
	out, err = r.exec(t, "/netverdict", "status", "-o", "json")
	if err != nil || !json.Valid([]byte(out)) {
		t.Errorf("netverdict status -o json: %v\n%s", err, out)
	}
	checkMetrics(t)

	terminate(t, c.surge(t, r))
	said := cleanup(t)
	if left := leftovers(t); len(left) != 0 {
		t.Errorf("after cleanup, which said\n%s\nthere still are:\n%s", said, strings.Join(left, "\n"))
	}
}

// surge does to a node what a rolling update with maxSurge: 1 does, and returns the
// agent that is there in the end. bench/netlab/cluster does it under traffic.
func (c cluster) surge(t *testing.T, old *running) *running {
	t.Helper()
	pod := c.agents(t).Spec.Template.Spec.Containers[0]
	next := c.startAgent(t, c.tokenDir(t), old.host)
	awaitProbe(t, next, pod.StartupProbe)
	awaitProbe(t, next, pod.ReadinessProbe)
	// No probe of the old one's fails that would have it restarted, and its readiness tells why.
	awaitProbe(t, old, pod.LivenessProbe)
	if said := awaitAnswer(t, old, pod.ReadinessProbe, false); !strings.Contains(said, "another agent has taken over") {
		t.Errorf("readiness of the agent that was replaced: %s", said)
	}
	terminate(t, old)
	if out, err := next.exec(t, pod.ReadinessProbe.Exec.Command...); err != nil {
		t.Errorf("after the end of the old agent the new one is not ready: %v %s\n%s", err, out, next.output)
	}
	awaitOutput(t, next, `listens on it now" flag="--metrics-address=:8052"`)
	awaitOutput(t, next, `listens on it now" flag="--status-socket=`)
	awaitOutput(t, next, `listens on it now" flag="--hubble-socket=`)
	checkMetrics(t)
	if !strings.Contains(strings.Join(leftovers(t), "\n"), "10.244.1.2") {
		t.Error("after the update the isolated pod's address is in no set")
	}
	return next
}

// checkMetrics asks the port that install.yaml opens.
func checkMetrics(t *testing.T) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:8052/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("metrics: %s, %v", resp.Status, err)
	}
	for _, want := range []string{
		"netverdict_enforcing 1\n", `netverdict_source_connected{kind="NetworkPolicy"} 1`, `netverdict_policed_addresses{direction="ingress"} 1`,
		`netverdict_policy_hits_total{direction="ingress",kind="NetworkPolicy",namespace="shop",policy="nobody",verdict="deny"} 0`,
		`netverdict_rule_packets_total{purpose="queue"}`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("metrics lack %q:\n%s", want, text)
		}
	}
}

// startAgent starts install.yaml's agent with the credentials in a directory, on a node
// with this root directory.
func (c cluster) startAgent(t *testing.T, token, host string) *running {
	t.Helper()
	agent := installedAgentOn(t, host, token)
	agent.Env = append(agent.Env, c.serviceEnv()...)
	return agent.start(t)
}

// serviceEnv is what a kubelet tells containers of the API server.
func (c cluster) serviceEnv() []string {
	host, port, _ := strings.Cut(strings.TrimPrefix(c.URL(), "https://"), ":")
	return []string{"KUBERNETES_SERVICE_HOST=" + host, "KUBERNETES_SERVICE_PORT=" + port}
}

// createObjects writes manifestsForAgent, status included.
func (c cluster) createObjects(t *testing.T) {
	t.Helper()
	for _, flags := range [][]string{nil, {"--subresource=status"}} {
		for _, doc := range documents(t, manifestsForAgent) {
			if len(flags) > 0 && !strings.Contains(string(doc), "status:") {
				continue
			}
			args := append([]string{"apply", "--server-side", "--force-conflicts", "-f", "-"}, flags...)
			if out, err := c.kubectl(t, string(doc), args...); err != nil {
				t.Fatalf("kubectl %q: %v\n%s\n%s", args, err, out, doc)
			}
		}
	}
}

// tokenDir is what a kubelet mounts into the agent's pods.
func (c cluster) tokenDir(t *testing.T) string {
	t.Helper()
	cfg, err := c.ServiceAccountConfig(t.Context(), namespace, "netverdict")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, data := range map[string][]byte{"token": []byte(cfg.BearerToken), "ca.crt": cfg.CAData, "namespace": []byte(namespace)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// awaitProbe gives the agent 60 s to satisfy a probe.
func awaitProbe(t *testing.T, r *running, p *corev1.Probe) {
	t.Helper()
	awaitAnswer(t, r, p, true)
}

// awaitAnswer waits until a probe succeeds, or does not, and returns what it said.
func awaitAnswer(t *testing.T, r *running, p *corev1.Probe, want bool) (said string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		out, err := r.exec(t, p.Exec.Command...)
		if (err == nil) == want {
			return out
		}
		if said = fmt.Sprintf("%v: %s", err, out); r.hasEnded() {
			t.Fatalf("the agent ended (%v) before %q said %v:\n%s", r.err, p.Exec.Command, want, r.output)
		}
	}
	t.Fatalf("%q says %s\n%s", p.Exec.Command, said, r.output)
	return ""
}

// TestAgentWaitsForTheAPIServer: a node may come up before its API server. The agent
// lives on, so that no probe kills it, and is not ready until it enforces.
func TestAgentWaitsForTheAPIServer(t *testing.T) {
	t.Cleanup(func() { cleanup(t) })
	c := newCluster(t)
	c.apply(t, "install.yaml", "--server-side")
	c.createObjects(t)
	token := c.tokenDir(t)
	c.Kill(kubetest.APIServer)

	r := c.startAgent(t, token, t.TempDir())
	pod := decode(t, readManifest(t, "install.yaml")).agents.Spec.Template.Spec.Containers[0]
	awaitProbe(t, r, pod.StartupProbe)
	for range 4 {
		if out, err := r.exec(t, pod.LivenessProbe.Exec.Command...); err != nil {
			t.Fatalf("liveness while the API server is away: %v %s\n%s", err, out, r.output)
		}
		if _, err := r.exec(t, pod.ReadinessProbe.Exec.Command...); err == nil {
			t.Fatalf("ready while the API server is away and nothing is known\n%s", r.output)
		}
		time.Sleep(500 * time.Millisecond)
	}
	if err := c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitProbe(t, r, pod.ReadinessProbe)
	terminate(t, r)
}
