package deploytest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"helm.sh/helm/v4/pkg/action"
	corev1 "k8s.io/api/core/v1"

	"github.com/netverdict/netverdict/deploy/test/render"
)

var chartDir = filepath.Join(deploy, "chart")

// values makes {a: {b: v}} of "a.b", v.
func values(pairs ...any) map[string]any {
	out := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		at := out
		path := strings.Split(pairs[i].(string), ".")
		for _, key := range path[:len(path)-1] {
			if at[key] == nil {
				at[key] = map[string]any{}
			}
			at = at[key].(map[string]any)
		}
		at[path[len(path)-1]] = pairs[i+1]
	}
	return out
}

func renderChart(t *testing.T, r render.Release) render.Rendered {
	t.Helper()
	if r.Name == "" {
		r.Name, r.Namespace = "netverdict", "kube-system"
	}
	out, err := render.Chart(chartDir, r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLint(t *testing.T) {
	for name, v := range map[string]map[string]any{"defaults": {}, "cleanup": values("cleanup", true)} {
		lint := action.NewLint()
		lint.Strict, lint.Namespace = true, "kube-system"
		result := lint.Run([]string{chartDir}, v)
		for _, m := range result.Messages {
			if !strings.Contains(m.Error(), "icon is recommended") {
				t.Errorf("%s: %v", name, m)
			}
		}
		if len(result.Errors) != 0 || result.TotalChartsLinted != 1 {
			t.Errorf("%s: %d charts linted, errors %v", name, result.TotalChartsLinted, result.Errors)
		}
	}
}

func TestDefaultsAreInstallYAML(t *testing.T) {
	for _, f := range render.Files {
		chart := decode(t, renderChart(t, render.Release{Values: f.Values}).Manifest)
		file := decode(t, readManifest(t, f.Name))
		if diff := cmp.Diff(file, chart, cmp.AllowUnexported(objects{})); diff != "" {
			t.Errorf("chart against %s (-file +chart):\n%s", f.Name, diff)
		}
	}
}

func TestBadValuesAreRefused(t *testing.T) {
	for _, c := range []struct {
		path  string
		value any
		says  string
	}{
		{"agnet.flowLog", "all", "agnet"},
		{"agent.flowlog", "all", "flowlog"},
		{"agent.flowLog", "some", "flowLog"},
		{"agent.onStop", "keep", "onStop"},
		{"agent.unknownPod", true, "unknownPod"},
		{"agent.queueBypass", "yes", "queueBypass"},
		{"agent.iptablesBackend", "nftables", "iptablesBackend"},
		{"agent.workerNice", 20, "workerNice"},
		{"agent.extraArgs", []any{"cleanup"}, "extraArgs"},
		{"hubble.group", "netverdict", "group"},
		{"hubble.history", 0, "history"},
		{"hubble.tls.secretName", "a b", "secretName"},
		{"health.port", 8051, "health"},
		{"image.repository", "", "repository"},
		{"image.tag", "a b", "tag"},
		{"image.digest", "sha256:12", "digest"},
		{"image.pullPolicy", "Sometimes", "pullPolicy"},
		{"updateStrategy.rollingUpdate.maxSurge", "101%", "maxSurge"},
		{"updateStrategy.rollingUpdate.maxSurge", 0, "one must be 0, and only one"},
		{"updateStrategy.rollingUpdate.maxUnavailable", "10%", "one must be 0, and only one"},
		{"updateStrategy.rollingUpdate.maxUnavailable", -1, "maxUnavailable"},
		{"seccomp.localhostProfile", "/var/lib/kubelet/seccomp/netverdict.json", "localhostProfile"},
		{"seccomp.localhostProfile", "../netverdict.json", "localhostProfile"},
		{"seccomp.type", "Localhost", "seccomp"},
		{"terminationGracePeriodSeconds", 0, "terminationGracePeriodSeconds"},
		{"priorityClassName", "", "priorityClassName"},
		{"priorityClassName", "x: y", "priorityClassName"},
		{"apiServer.host", "https://192.0.2.1", "host"},
		{"apiServer.host", "192.0.2.1:6443", "host"},
	} {
		_, err := render.Chart(chartDir, render.Release{Name: "netverdict", Namespace: "kube-system", Values: values(c.path, c.value)})
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s=%v: %v, want an error that names %s", c.path, c.value, err, c.says)
		}
	}
}

func TestOldKubernetesIsRefused(t *testing.T) {
	_, err := render.Chart(chartDir, render.Release{Name: "netverdict", Namespace: "kube-system", Kubernetes: "v1.24.17"})
	if err == nil || !strings.Contains(err.Error(), "1.25") {
		t.Errorf("rendered for Kubernetes 1.24: %v", err)
	}
}

func TestValuesTakeEffect(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	for name, c := range map[string]struct {
		values map[string]any
		holds  func(o objects, pod corev1.PodSpec, c corev1.Container) bool
	}{
		"image":       {values("image.repository", "r.example/n", "image.tag", "t"), func(_ objects, _ corev1.PodSpec, c corev1.Container) bool { return c.Image == "r.example/n:t" }},
		"digest":      {values("image.digest", digest, "image.tag", "t"), func(_ objects, _ corev1.PodSpec, c corev1.Container) bool { return c.Image == "netverdict@"+digest }},
		"pull secret": {values("imagePullSecrets", []any{map[string]any{"name": "s"}}), func(_ objects, p corev1.PodSpec, _ corev1.Container) bool { return p.ImagePullSecrets[0].Name == "s" }},
		"arguments": {
			values("agent.flowLog", "all", "agent.onStop", "open", "agent.queueBypass", true, "agent.unknownPod", "allow", "agent.iptablesBackend", "legacy", "agent.extraArgs", []any{"--queues=2"}),
			func(_ objects, _ corev1.PodSpec, c corev1.Container) bool {
				for _, want := range []string{"--flow-log=all", "--on-stop=open", "--queue-bypass=true", "--unknown-pod=allow", "--iptables-backend=legacy", "--queues=2"} {
					if !slices.Contains(c.Args, want) {
						return false
					}
				}
				return true
			},
		},
		"audit": {values("agent.mode", "audit"), func(_ objects, p corev1.PodSpec, c corev1.Container) bool {
			return slices.Contains(c.Args, "--mode=audit") && slices.Equal(c.SecurityContext.Capabilities.Add, []corev1.Capability{"NET_RAW"}) &&
				!slices.ContainsFunc(c.Args, func(a string) bool { return strings.HasPrefix(a, "--iptables") || strings.HasPrefix(a, "--worker") }) &&
				!slices.ContainsFunc(p.Volumes, func(v corev1.Volume) bool { return v.HostPath != nil && v.HostPath.Path != "/run/netverdict" })
		}},
		"no priority, no capability": {values("agent.workerNice", 0), func(_ objects, _ corev1.PodSpec, c corev1.Container) bool {
			return slices.Contains(c.Args, "--worker-nice=0") && slices.Equal(c.SecurityContext.Capabilities.Add, []corev1.Capability{"NET_ADMIN", "NET_RAW"})
		}},
		"old agents first": {values("updateStrategy.rollingUpdate.maxSurge", 0, "updateStrategy.rollingUpdate.maxUnavailable", "10%"), func(o objects, _ corev1.PodSpec, _ corev1.Container) bool {
			u := o.agents.Spec.UpdateStrategy.RollingUpdate
			return u.MaxSurge.IntVal == 0 && u.MaxUnavailable.StrVal == "10%"
		}},
		"flows to a group": {values("hubble.group", 4711), func(_ objects, p corev1.PodSpec, c corev1.Container) bool {
			return slices.Contains(c.Args, "--hubble-group=4711") && slices.Equal(p.SecurityContext.SupplementalGroups, []int64{4711})
		}},
		"no flows": {values("hubble.enabled", false), func(o objects, p corev1.PodSpec, c corev1.Container) bool {
			return !strings.Contains(strings.Join(c.Args, " "), "hubble") && p.Volumes[0].EmptyDir != nil && o.peers == nil
		}},
		"flows on TCP": {values("hubble.tls.secretName", "certs", "hubble.tls.port", 4000, "hubble.clusterName", "prod"), func(o objects, p corev1.PodSpec, c corev1.Container) bool {
			return slices.Contains(c.Args, "--hubble-listen=:4000") && slices.Contains(c.Args, "--hubble-cluster-name=prod") &&
				slices.Contains(c.Args, "--hubble-tls-client-ca="+c.VolumeMounts[3].MountPath+"/ca.crt") &&
				p.Volumes[2].Name == c.VolumeMounts[3].Name && p.Volumes[2].Secret.SecretName == "certs" &&
				o.peers.Spec.Ports[0].TargetPort.IntVal == 4000 && o.peers.Spec.Selector["app.kubernetes.io/name"] == o.agents.Spec.Template.Labels["app.kubernetes.io/name"]
		}},
		"profile of the node": {values("seccomp.localhostProfile", "a/netverdict.json"), func(_ objects, _ corev1.PodSpec, c corev1.Container) bool {
			p := c.SecurityContext.SeccompProfile
			return p.Type == corev1.SeccompProfileTypeLocalhost && *p.LocalhostProfile == "a/netverdict.json"
		}},
		"API server": {values("apiServer.host", "192.0.2.1"), func(_ objects, _ corev1.PodSpec, c corev1.Container) bool {
			return slices.Contains(c.Env, corev1.EnvVar{Name: "KUBERNETES_SERVICE_HOST", Value: "192.0.2.1"}) &&
				slices.Contains(c.Env, corev1.EnvVar{Name: "KUBERNETES_SERVICE_PORT", Value: "6443"})
		}},
		"own account": {values("serviceAccount.create", false, "serviceAccount.name", "mine"), func(o objects, p corev1.PodSpec, _ corev1.Container) bool {
			return o.account == nil && p.ServiceAccountName == "mine" && o.binding.Subjects[0].Name == "mine"
		}},
		"own roles": {values("rbac.create", false), func(o objects, _ corev1.PodSpec, _ corev1.Container) bool { return o.role == nil && o.binding == nil }},
		"scheduling": {values("tolerations", []any{}, "nodeSelector.pool", "a", "priorityClassName", "p"), func(_ objects, p corev1.PodSpec, _ corev1.Container) bool {
			return len(p.Tolerations) == 0 && p.NodeSelector["pool"] == "a" && p.PriorityClassName == "p"
		}},
		"by hand": {values("updateStrategy.type", "OnDelete", "updateStrategy.rollingUpdate", nil), func(o objects, _ corev1.PodSpec, _ corev1.Container) bool {
			return o.agents.Spec.UpdateStrategy.Type == "OnDelete" && o.agents.Spec.UpdateStrategy.RollingUpdate == nil
		}},
		"pods": {values("podLabels.a", "b", "podAnnotations.c", "d", "terminationGracePeriodSeconds", 5, "fullnameOverride", "full"), func(o objects, p corev1.PodSpec, _ corev1.Container) bool {
			m := o.agents.Spec.Template
			return m.Labels["a"] == "b" && m.Annotations["c"] == "d" && *p.TerminationGracePeriodSeconds == 5 && o.role.Name == "full" && o.agents.Name == "full"
		}},
		"resources": {values("resources.limits.memory", "1Gi"), func(_ objects, _ corev1.PodSpec, c corev1.Container) bool {
			return c.Resources.Limits.Memory().String() == "1Gi" && c.Resources.Requests.Cpu().String() == "50m"
		}},
	} {
		o := decode(t, renderChart(t, render.Release{Values: c.values}).Manifest)
		pod := o.agents.Spec.Template.Spec
		if !c.holds(o, pod, pod.Containers[0]) {
			t.Errorf("%s: values %v did not do what they must; pod:\n%+v", name, c.values, pod)
		}
	}
}

func TestReleaseNameAndNamespace(t *testing.T) {
	o := decode(t, renderChart(t, render.Release{Name: "edge", Namespace: "net"}).Manifest)
	if o.agents.Name != "edge-netverdict" || o.agents.Namespace != "net" || o.account.Namespace != "net" || o.binding.Subjects[0].Namespace != "net" {
		t.Errorf("release edge in namespace net became DaemonSet %s/%s, account in %s", o.agents.Namespace, o.agents.Name, o.account.Namespace)
	}
}

func TestNotes(t *testing.T) {
	for name, c := range map[string]struct {
		values    map[string]any
		has, lack []string
	}{
		"defaults": {nil, []string{
			"kubectl -n kube-system rollout status ds/netverdict", "kubectl -n kube-system exec ds/netverdict -- /netverdict status",
			"No image is published yet", "--set cleanup=true", "helm -n kube-system uninstall netverdict",
		}, []string{"none to see"}},
		"own image": {values("image.repository", "r.example/n"), nil, []string{"No image is published yet"}},
		"open":      {values("agent.onStop", "open"), []string{"To uninstall:", "helm -n kube-system uninstall netverdict"}, []string{"cleanup=true"}},
		"audit": {values("agent.mode", "audit"), []string{
			"Nothing is enforced (agent.mode=audit)", "/netverdict status", `Flows that would be denied ("verdict":"audit")`, "To uninstall:",
		}, []string{"Does it enforce?", "were denied", "cleanup=true"}},
		"no flows": {values("agent.flowLog", "none"), []string{"none to see"}, nil},
		"cleanup":  {values("cleanup", true), []string{"nothing is enforced any more", "helm -n kube-system uninstall netverdict"}, []string{"/netverdict status"}},
	} {
		notes := renderChart(t, render.Release{Values: c.values}).Notes
		for _, want := range c.has {
			if !strings.Contains(notes, want) {
				t.Errorf("%s: the notes lack %q:\n%s", name, want, notes)
			}
		}
		for _, no := range c.lack {
			if strings.Contains(notes, no) {
				t.Errorf("%s: the notes say %q:\n%s", name, no, notes)
			}
		}
	}
}

// TestValuesAreDocumented: every value has a comment in values.yaml, an entry in the
// schema and a row in README.md.
func TestValuesAreDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	schemaText, err := os.ReadFile(filepath.Join(chartDir, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema schemaNode
	if err := json.Unmarshal(schemaText, &schema); err != nil {
		t.Fatal(err)
	}
	readme := readManifest(t, "README.md")
	checkDocumented(t, root.Content[0], "", &schema, readme)
	delete(schema.Properties, "global") // Helm's
	for key := range schema.Properties {
		if !strings.Contains(string(text), "\n"+key+":") {
			t.Errorf("the schema knows %s, values.yaml does not", key)
		}
	}
}

type schemaNode struct {
	Properties map[string]*schemaNode `json:"properties"`
}

// checkDocumented walks to the values that the schema does not divide further.
func checkDocumented(t *testing.T, node *yaml.Node, prefix string, schema *schemaNode, readme string) {
	t.Helper()
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		path := prefix + key.Value
		below := schema.Properties[key.Value]
		switch {
		case below == nil:
			t.Errorf("values.yaml has %s, the schema does not", path)
		case value.Kind == yaml.MappingNode && len(below.Properties) > 0 && key.HeadComment == "":
			checkDocumented(t, value, path+".", below, readme)
		case key.HeadComment == "":
			t.Errorf("%s has no comment in values.yaml", path)
		case !strings.Contains(readme, "| `"+path+"`"):
			t.Errorf("%s has no row in README.md", path)
		}
	}
}
