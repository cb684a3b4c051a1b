package deploytest

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/deploy/test/render"
)

func TestFilesAreCurrent(t *testing.T) {
	for _, f := range render.Files {
		want, err := f.Text(deploy)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, readManifest(t, f.Name)); diff != "" {
			t.Errorf("%s is not what the chart renders; run `go generate` in deploy/test (-chart +file):\n%s", f.Name, diff)
		}
	}
}

func TestRoleOnlyReads(t *testing.T) {
	got := decode(t, readManifest(t, "install.yaml"))
	read := []string{"get", "list", "watch"}
	want := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"namespaces", "nodes", "pods"}, Verbs: read},
		{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies"}, Verbs: read},
	}
	if diff := cmp.Diff(want, got.role.Rules); diff != "" {
		t.Errorf("rules of the ClusterRole (-want +got):\n%s", diff)
	}
	wantSubjects := []rbacv1.Subject{{Kind: "ServiceAccount", Name: got.account.Name, Namespace: got.account.Namespace}}
	if diff := cmp.Diff(wantSubjects, got.binding.Subjects); diff != "" {
		t.Errorf("subjects of the binding (-want +got):\n%s", diff)
	}
	if got.binding.RoleRef.Name != got.role.Name {
		t.Errorf("the binding refers to %s, the role is %s", got.binding.RoleRef.Name, got.role.Name)
	}
	if pod := got.agents.Spec.Template.Spec; pod.ServiceAccountName != got.account.Name {
		t.Errorf("the pods run as %s, the account is %s", pod.ServiceAccountName, got.account.Name)
	}
}

// TestPrivileges holds the whole security context still: more of it is a decision,
// not an accident.
func TestPrivileges(t *testing.T) {
	for file, wantAdd := range map[string]map[string][]corev1.Capability{
		"install.yaml":   {"netverdict": {"NET_ADMIN", "NET_RAW", "SYS_NICE"}},
		"uninstall.yaml": {"cleanup": {"NET_ADMIN", "NET_RAW"}, "netverdict": nil},
	} {
		pod := decode(t, readManifest(t, file)).agents.Spec.Template.Spec
		containers := slices.Concat(pod.InitContainers, pod.Containers)
		if len(containers) != len(wantAdd) {
			t.Errorf("%s: %d containers, want %d", file, len(containers), len(wantAdd))
		}
		for _, c := range containers {
			want := &corev1.SecurityContext{
				RunAsUser:                new(int64(0)),
				RunAsGroup:               new(int64(0)),
				Privileged:               new(false),
				AllowPrivilegeEscalation: new(false),
				ReadOnlyRootFilesystem:   new(true),
				SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: wantAdd[c.Name]},
			}
			if diff := cmp.Diff(want, c.SecurityContext); diff != "" {
				t.Errorf("%s: security context of %s (-want +got):\n%s", file, c.Name, diff)
			}
		}
		if pod.HostPID || pod.HostIPC || !pod.HostNetwork || pod.SecurityContext != nil {
			t.Errorf("%s: want of the host's namespaces the network, no other, and no pod-wide security context", file)
		}
	}
}

func TestMountsOfTheHost(t *testing.T) {
	for file, want := range map[string][]string{
		"install.yaml":   {"/run/netverdict", "/run/xtables.lock"},
		"uninstall.yaml": {"/run/xtables.lock"},
	} {
		var got []string
		for _, v := range decode(t, readManifest(t, file)).agents.Spec.Template.Spec.Volumes {
			if v.HostPath != nil {
				got = append(got, v.HostPath.Path)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: paths of the host (-want +got):\n%s", file, diff)
		}
	}
}

func TestEveryNodeHasAnAgent(t *testing.T) {
	for _, file := range []string{"install.yaml", "uninstall.yaml"} {
		pod := decode(t, readManifest(t, file)).agents.Spec.Template.Spec
		if diff := cmp.Diff([]corev1.Toleration{{Operator: corev1.TolerationOpExists}}, pod.Tolerations); diff != "" {
			t.Errorf("%s: tolerations (-want +got):\n%s", file, diff)
		}
		if diff := cmp.Diff(map[string]string{"kubernetes.io/os": "linux"}, pod.NodeSelector); diff != "" {
			t.Errorf("%s: node selector (-want +got):\n%s", file, diff)
		}
		if pod.PriorityClassName != "system-node-critical" || pod.Affinity != nil {
			t.Errorf("%s: priority class %q, affinity %v", file, pod.PriorityClassName, pod.Affinity)
		}
	}
}

// TestUpdateHasNoGap: the new agent of a node starts beside the old one, which takes
// its place again should it fail.
func TestUpdateHasNoGap(t *testing.T) {
	ds := decode(t, readManifest(t, "install.yaml")).agents
	update := ds.Spec.UpdateStrategy.RollingUpdate
	if update == nil || *update.MaxSurge != intstr.FromInt32(1) || *update.MaxUnavailable != intstr.FromInt32(0) {
		t.Errorf("update strategy %+v: want one node at a time, and the old agent there until the new one enforces", ds.Spec.UpdateStrategy)
	}
	args := ds.Spec.Template.Spec.Containers[0].Args
	for _, want := range []string{"--replace", "--on-replaced=standby", "--on-stop=keep-closed"} {
		if !slices.Contains(args, want) {
			t.Errorf("arguments %q lack %s", args, want)
		}
	}
}

// TestNoPorts: on the host network the API server gives every containerPort a hostPort of
// the same number, and the scheduler puts no two pods with one on a node, so a second
// agent would wait for the end of the first, which waits for the second to be ready.
func TestNoPorts(t *testing.T) {
	for _, file := range []string{"install.yaml", "uninstall.yaml"} {
		pod := decode(t, readManifest(t, file)).agents.Spec.Template.Spec
		for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
			if len(c.Ports) != 0 {
				t.Errorf("%s: container %s has ports %v", file, c.Name, c.Ports)
			}
		}
	}
}

// TestProbesAskTheAgent: the probes reach where the agent listens, in its own pod, and
// nobody else can.
func TestProbesAskTheAgent(t *testing.T) {
	pod := decode(t, readManifest(t, "install.yaml")).agents.Spec.Template.Spec
	c := pod.Containers[0]
	for what, probes := range map[string][]*corev1.Probe{"healthz": {c.StartupProbe, c.LivenessProbe}, "readyz": {c.ReadinessProbe}} {
		for _, p := range probes {
			want := &corev1.ExecAction{Command: []string{"/netverdict", "probe", what}}
			if p == nil {
				t.Errorf("a probe of %s is missing", what)
			} else if diff := cmp.Diff(want, p.Exec); diff != "" {
				t.Errorf("probe of %s (-want +got):\n%s", what, diff)
			}
		}
	}
	const directory, socket = "/run/health", "/run/health/netverdict.sock"
	if !slices.Contains(c.Args, "--health-address=unix:"+socket) {
		t.Errorf("arguments %q: the probes ask %s", c.Args, socket)
	}
	for _, m := range c.VolumeMounts {
		for _, v := range pod.Volumes {
			if m.MountPath == directory && v.Name == m.Name && v.EmptyDir != nil {
				return
			}
		}
	}
	t.Errorf("%s is no directory of the pod's own", directory)
}

func TestResources(t *testing.T) {
	r := decode(t, readManifest(t, "install.yaml")).agents.Spec.Template.Spec.Containers[0].Resources
	if r.Requests.Cpu().IsZero() || r.Requests.Memory().IsZero() {
		t.Errorf("requests %v: want some for CPU and memory", r.Requests)
	}
	if len(r.Limits) != 0 {
		t.Errorf("limits %v: a throttled agent delays packets, a killed one closes its node", r.Limits)
	}
}

func TestLabels(t *testing.T) {
	got := decode(t, readManifest(t, "install.yaml"))
	for kind, labels := range map[string]map[string]string{
		"ServiceAccount": got.account.Labels, "ClusterRole": got.role.Labels, "ClusterRoleBinding": got.binding.Labels,
		"DaemonSet": got.agents.Labels, "Pod": got.agents.Spec.Template.Labels,
	} {
		for _, l := range []string{"name", "instance", "component", "part-of", "version"} {
			if labels["app.kubernetes.io/"+l] == "" {
				t.Errorf("%s lacks the label app.kubernetes.io/%s", kind, l)
			}
		}
		for l := range labels {
			if strings.HasPrefix(l, "helm.sh/") || strings.HasSuffix(l, "/managed-by") {
				t.Errorf("%s has Helm's label %s in a manifest for kubectl", kind, l)
			}
		}
	}
}

// TestREADMEChangesTheImage runs the sed of README.md.
func TestREADMEChangesTheImage(t *testing.T) {
	readme := readManifest(t, "README.md")
	for _, file := range []string{"install.yaml", "uninstall.yaml"} {
		command := "sed 's,image: ,image: REGISTRY/,' deploy/" + file
		if !strings.Contains(readme, command+" | kubectl apply -f -") {
			t.Fatalf("README.md does not say %s", command)
		}
		cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
		cmd.Dir = repository
		changed, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v", cmd, err)
		}
		want, got := decode(t, readManifest(t, file)), decode(t, string(changed))
		for _, containers := range [][]corev1.Container{want.agents.Spec.Template.Spec.InitContainers, want.agents.Spec.Template.Spec.Containers} {
			for i := range containers {
				containers[i].Image = "REGISTRY/" + containers[i].Image
			}
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(objects{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", command, diff)
		}
	}
}
