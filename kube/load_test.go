package kube

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/policy"
)

// inDir writes files into a new directory and makes it the current one, so that
// errors name them as a user would see them.
func inDir(t *testing.T, files map[string]string) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, content := range files {
		write(t, name, content)
	}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func policyYAML(name, spec string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: " + name + ", namespace: shop}\nspec: " + spec + "\n"
}

const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n"

// Each case is one file m.yaml (or as named) and the exact problems.
var loadCases = []struct {
	name, file string
	want       []string
}{
	{"nothing", "", nil},
	{"comment", "# nothing here\n", nil},
	{"separator", "---\n", nil},
	{"separators and comments", "---\n# a\n---\n---\n...\n", nil},
	{"null", "---\nnull\n---\n~\n", nil},
	{"byte order mark", "\xEF\xBB\xBF" + pod, nil},
	{"CRLF", strings.ReplaceAll(pod+"---\n"+policyYAML("a", "{}"), "\n", "\r\n"), nil},
	{"separator with comment", pod + "--- # next\n" + policyYAML("a", "{}"), nil},
	{"document on the separator line", "--- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n", nil},
	{"directive", "%YAML 1.1\n---\n" + pod, nil},
	{"anchor, alias and merge with override", "x-y: &l {a: b}\napiVersion: v1\nkind: ConfigMap\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations: &base {k: v, l: w}\n  labels:\n    <<: *base\n    k: other\n", nil},
	{"JSON", `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "annotations": {"a": "\/\ud83d\ude00"}}}`, nil},
	{"JSON one after the other", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"}}`, nil},
	{"nested lists", `{apiVersion: v1, kind: List, metadata: {resourceVersion: ""}, items: [{apiVersion: v1, kind: PodList, items: [{metadata: {name: a}}, {metadata: {name: b}}]}]}`, nil},
	{"list without items", "apiVersion: v1\nkind: List\n", nil},
	{"typed list", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems:\n- metadata: {name: a}\n  spec: {}\n", nil},

	{"the example of the documentation", pod + "---\n" + pod[:len(pod)-2] + "2}\n---\n\n# third\n" + policyYAML("api", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}"), []string{
		"m.yaml: document 3 (line 11): NetworkPolicy shop/api: spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`: 10.0.0.0/8"}},
	{"first separator starts the first document", "# head\n---\n" + policyYAML("a", "{x: 1}"), []string{
		"m.yaml: document 1 (line 3): NetworkPolicy shop/a: spec.x: unknown field"}},
	{"empty documents count", "---\n---\n" + policyYAML("a", "{x: 1}"), []string{
		"m.yaml: document 2 (line 3): NetworkPolicy shop/a: spec.x: unknown field"}},
	{"three dots end a document", policyYAML("a", "{x: 1}") + "...\n" + policyYAML("b", "{z: 1}"), []string{
		"m.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.x: unknown field",
		"m.yaml: document 2 (line 6): NetworkPolicy shop/b: spec.z: unknown field"}},
	{"case of a field", policyYAML("a", "{podselector: {}, policytypes: [Ingress]}"), []string{
		"m.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.podselector: unknown field",
		"m.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.policytypes: unknown field"}},
	{"unknown field deep down", policyYAML("a", "{ingress: [{}, {from: [{podSelector: {}}, {podSelector: {matchlabels: {a: b}}}]}]}"), []string{
		"m.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.ingress[1].from[1].podSelector.matchlabels: unknown field"}},
	{"duplicate fields", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, name: b, labels: {x: y, x: z}}\nmetadata: {name: c}\n", []string{
		"m.yaml: document 1 (line 1): Pod default/c: metadata.name: duplicate field",
		"m.yaml: document 1 (line 1): Pod default/c: metadata.labels.x: duplicate field",
		"m.yaml: document 1 (line 1): Pod default/c: metadata: duplicate field"}},
	{"duplicate fields of an item", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, data: {a: b, a: b}}\n- {apiVersion: v1, kind: Pod, metadata: {name: a, name: b}}\n- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, metadata: {name: a, name: c}}]}\n", []string{
		"m.yaml: document 1 (line 1): items[1]: Pod default/b: metadata.name: duplicate field",
		"m.yaml: document 1 (line 1): items[2].items[0]: Pod default/c: metadata.name: duplicate field"}},
	{"duplicate fields of another document", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, name: b}\n---\n" + `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"}}`, []string{
		"m.yaml: document 1 (line 1): Pod default/b: metadata.name: duplicate field"}},
	{"duplicate fields in JSON", "\n" + `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"x":"y","x":"z"}}}`, []string{
		"m.yaml: document 1 (line 2): Pod default/a: metadata.labels.x: duplicate field"}},
	{"duplicate fields elsewhere do not matter", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: b, a: c}\n", nil},
	{"wrong types, all of them", policyYAML("a", "{podSelector: {matchLabels: {a: 1, b: yes}}, ingress: {}, egress: [{ports: [{port: [80]}, {port: 80, endPort: '90'}, {port: 3000000000}], tos: 1}], policyTypes: Ingress}"), []string{
		"m.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.egress[0].ports[0].port: want a whole number or a string, got a list",
		`m.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.egress[0].ports[1].endPort: want a whole number, got the string "90"`,
		"m.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.egress[0].ports[2].port: want a whole number or a string, got the number 3000000000",
		"m.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.egress[0].tos: unknown field",
		"m.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.ingress: want a list, got an object",
		"m.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.podSelector.matchLabels.a: want a string, got the number 1 (write it in quotes)",
		"m.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.podSelector.matchLabels.b: want a string, got the boolean true (write it in quotes)",
		`m.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.policyTypes: want a list, got the string "Ingress"`}},
	{"wrong types of a pod", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, creationTimestamp: yesterday}\nspec: {hostNetwork: 'true', containers: [{name: a, ports: [{containerPort: 9999999999}], resources: {limits: {cpu: x}}}]}\n", []string{
		`m.yaml: document 1 (line 1): Pod default/a: metadata.creationTimestamp: the string "yesterday" does not fit: parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006"`,
		"m.yaml: document 1 (line 1): Pod default/a: spec.containers[0].ports[0].containerPort: 9999999999 is out of range",
		`m.yaml: document 1 (line 1): Pod default/a: spec.containers[0].resources.limits.cpu: the string "x" does not fit: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'`,
		`m.yaml: document 1 (line 1): Pod default/a: spec.hostNetwork: want true or false, got the string "true"`}},
	{"wrong type of the name", "apiVersion: v1\nkind: Pod\nmetadata: {name: 5}\n", []string{
		"m.yaml: document 1 (line 1): Pod default/(no name): metadata.name: want a string, got the number 5 (write it in quotes)"}},
	{"wrong type of the kind", "apiVersion: 1\nkind: [Pod]\n", []string{
		"m.yaml: document 1 (line 1): apiVersion: want a string, got the number 1 (write it in quotes)",
		"m.yaml: document 1 (line 1): kind: want a string, got a list"}},
	{"no kind", "apiVersion: v1\nmetadata: {name: a}\n", []string{
		"m.yaml: document 1 (line 1): object a: kind: Required value"}},
	{"no version", "kind: NetworkPolicy\nmetadata: {name: a}\n", []string{
		"m.yaml: document 1 (line 1): NetworkPolicy default/a: apiVersion: Required value: write apiVersion: networking.k8s.io/v1"}},
	{"a list of objects", "- a\n- b\n", []string{
		"m.yaml: document 1 (line 1): want an object with apiVersion and kind, got a list or a plain value"}},
	{"a plain value", "hello\n", []string{
		"m.yaml: document 1 (line 1): want an object with apiVersion and kind, got a list or a plain value"}},
	{"items that are no objects", "apiVersion: v1\nkind: List\nitems: [1, null, {}]\n", []string{
		"m.yaml: document 1 (line 1): items[0]: want an object, got the number 1",
		"m.yaml: document 1 (line 1): items[1]: kind: Required value",
		"m.yaml: document 1 (line 1): items[2]: kind: Required value"}},
	{"syntax", pod + "---\n# c\na: b: c\n---\n" + policyYAML("a", "{x: 1}"), []string{
		"m.yaml: document 2 (line 6): not valid YAML: yaml: line 6: mapping values are not allowed in this context",
		"m.yaml: document 3 (line 8): NetworkPolicy shop/a: spec.x: unknown field"}},
	{"tab", "a:\n\tb: c\n", []string{
		"m.yaml: document 1 (line 1): not valid YAML: yaml: line 2: found character that cannot start any token"}},
	{"trailing text", "{a: b} c\n", []string{
		"m.yaml: document 1 (line 1): not valid JSON: invalid character 'a' looking for beginning of object key string"}},
	{"helm template", "{{- if .Values.x }}\napiVersion: v1\n{{- end }}\n", []string{
		"m.yaml: document 1 (line 1): not valid JSON: invalid character '{' looking for beginning of object key string"}},
	{"half a JSON object", `{"apiVersion": "v1",`, []string{
		"m.yaml: document 1 (line 1): not valid JSON: unexpected EOF"}},
	{"UTF-16", "\xFF\xFEk\x00", []string{"m.yaml: the file is UTF-16; save it as UTF-8"}},
	{"Latin-1", "a: \xE4\n", []string{"m.yaml: the file is not valid UTF-8; save it as UTF-8"}},
	{"lone CR", "apiVersion: v1\rkind: ConfigMap\r---\rapiVersion: v1\rkind: Pod\r", []string{
		"m.yaml: document 1 (line 1): not valid YAML: yaml: a second document starts without a line of three dashes; end lines with LF or CRLF"}},
	{"not a number", "apiVersion: v1\nkind: Pod\nmetadata: {name: .nan}\n", []string{
		"m.yaml: document 1 (line 1): not valid YAML: value NaN has no JSON form: json: unsupported value: NaN"}},
	{"key that is a list", "? [a]\n: b\n", []string{
		"m.yaml: document 1 (line 1): not valid YAML: yaml: invalid map key: []interface {}{\"a\"}"}},

	{"keys that are no strings", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n1: a\n1.5: b\ntrue: c\n18446744073709551615: d\n", []string{
		"m.yaml: document 1 (line 1): Pod default/a: 1: unknown field",
		"m.yaml: document 1 (line 1): Pod default/a: 1.5: unknown field",
		"m.yaml: document 1 (line 1): Pod default/a: 18446744073709551615: unknown field",
		"m.yaml: document 1 (line 1): Pod default/a: true: unknown field"}},
	{"a number and its string as keys", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {1: a, '1': b}}\n", []string{
		"m.yaml: document 1 (line 1): Pod default/a: metadata.labels.1: duplicate field"}},
	{"null as key", "~: a\n", []string{
		"m.yaml: document 1 (line 1): not valid YAML: key <nil> is no string"}},

	{"removed API version", "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: b}\n", []string{
		"m.yaml: document 1 (line 1): NetworkPolicy b/a: apiVersion: extensions/v1beta1 has no NetworkPolicy in Kubernetes 1.36; write apiVersion: networking.k8s.io/v1"}},
	{"version without group", "apiVersion: v1\nkind: NetworkPolicy\nmetadata: {name: a}\n", []string{
		"m.yaml: document 1 (line 1): NetworkPolicy default/a: apiVersion: v1 has no NetworkPolicy in Kubernetes 1.36; write apiVersion: networking.k8s.io/v1"}},
	{"kind in lower case", "apiVersion: networking.k8s.io/v1\nkind: Networkpolicy\nmetadata: {name: a}\n", []string{
		"m.yaml: document 1 (line 1): Networkpolicy a: kind: write NetworkPolicy; kinds are case-sensitive"}},
	{"no name", "apiVersion: v1\nkind: Namespace\nmetadata: {generateName: a-}\n", []string{
		"m.yaml: document 1 (line 1): Namespace (no name): metadata.name: Required value: name or generateName is required"}},
	{"the same object twice", pod + "---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: default}}\n", []string{
		"m.yaml: document 2 (line 5): items[0]: Pod default/web: the same object is already in m.yaml: document 1 (line 1); remove one of them"}},
	{"the same name in another namespace", pod + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: web}\n", nil},
	{"escape sequences", "apiVersion: v1\nkind: Node\nmetadata: {name: \"\\e[31mred\", x: 1}\n", []string{
		`m.yaml: document 1 (line 1): Node \x1b[31mred: metadata.x: unknown field`}},
}

func TestLoadProblems(t *testing.T) {
	for _, tc := range loadCases {
		t.Run(tc.name, func(t *testing.T) {
			inDir(t, map[string]string{"m.yaml": tc.file})
			snapshot, report, err := Load("m.yaml", Options{})
			if report == nil || report.Files != 1 {
				t.Errorf("report = %+v, want one file", report)
			}
			if (snapshot == nil) != (err != nil) {
				t.Errorf("snapshot = %v with error %v", snapshot, err)
			}
			want := strings.Join(tc.want, "\n")
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestLoadCollectsProblemsOfAllFiles(t *testing.T) {
	inDir(t, map[string]string{
		"dir/b.yml":  "a: b: c",
		"dir/a.yaml": policyYAML("a", "{x: 1}") + "---\n" + policyYAML("same", "{}"),
		"dir/c.json": `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"same","namespace":"shop"}}`,
		"dir/d.txt":  "not read",
	})
	_, _, err := Load("dir/", Options{})
	want := `dir/a.yaml: document 1 (line 1): NetworkPolicy shop/a: spec.x: unknown field
dir/b.yml: document 1 (line 1): not valid YAML: yaml: mapping values are not allowed in this context
dir/c.json: document 1 (line 1): NetworkPolicy shop/same: the same object is already in dir/a.yaml: document 2 (line 6); remove one of them`
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
	var le *LoadError
	if !errors.As(err, &le) || len(le.Problems) != 3 || le.Problems[2].File != "dir/c.json" {
		t.Errorf("no LoadError with three problems: %#v", err)
	}
}

func TestLoadBoundsProblems(t *testing.T) {
	var b strings.Builder
	for i := range 500 {
		b.WriteString(policyYAML(fmt.Sprint("p", i), "{x: 1}") + "---\n")
	}
	inDir(t, map[string]string{"m.yaml": b.String()})
	_, _, err := Load(".", Options{})
	var le *LoadError
	if !errors.As(err, &le) || len(le.Problems) != maxProblems || !le.Stopped {
		t.Fatalf("want %d problems and a note that there are more, got %v", maxProblems, err)
	}
	if !strings.HasSuffix(err.Error(), "\nstopped after 100 problems; there may be more") {
		t.Errorf("the text does not say so: …%s", err.Error()[len(err.Error())-200:])
	}
}

func TestLoadPaths(t *testing.T) {
	inDir(t, map[string]string{
		"empty/readme.txt":     "",
		"nested/below/a.yaml":  pod,
		"nested/.git/b.yaml":   "broken: [",
		"nested/x.yaml/c.yaml": pod[:len(pod)-2] + "c}\n",
		"hidden/.a.yaml":       "broken: [",
		"hidden/b.yaml":        "",
		"plain":                pod,
		"mount/..v1/a.yaml":    pod,
		"dangling/a.yaml":      "",
		"loop/b.yaml":          "",
	})
	link(t, "..v1", "mount/..data")
	link(t, "..data/a.yaml", "mount/a.yaml")
	link(t, "nowhere", "dangling/b.yaml")
	link(t, "nowhere", "hidden/.#b.yaml")
	link(t, "a.yaml", "loop/a.yaml")
	link(t, ".", "loop/dir.yaml")
	for _, tc := range []struct {
		path      string
		recursive bool
		pods      int
		err       string
	}{
		{"plain", false, 1, ""},
		{"mount", false, 1, ""},
		{"mount", true, 1, ""},
		{"hidden", false, 0, ""},
		{"nested", true, 2, ""},
		{"nested", false, 0, "nested: no manifest (*.yaml, *.yml or *.json) in this directory; its subdirectories are not read"},
		{"empty", false, 0, "empty: no manifest (*.yaml, *.yml or *.json) in this directory; its subdirectories are not read"},
		{"empty", true, 0, "empty: no manifest (*.yaml, *.yml or *.json) in this directory or below it"},
		{"missing", false, 0, "missing: stat: no such file or directory"},
		{"loop", true, 0, "loop/a.yaml: stat: too many levels of symbolic links"},
		{"dangling", false, 0, "dangling/b.yaml: stat: no such file or directory"},
	} {
		snapshot, report, err := Load(tc.path, Options{Recursive: tc.recursive})
		if fmt.Sprint(err) != tc.err && (err != nil || tc.err != "") {
			t.Errorf("%s (recursive %t): error %v, want %q", tc.path, tc.recursive, err, tc.err)
		}
		if err == nil && (len(snapshot.Pods) != tc.pods || report.Pods != tc.pods) {
			t.Errorf("%s (recursive %t): %d pods, report %d, want %d", tc.path, tc.recursive, len(snapshot.Pods), report.Pods, tc.pods)
		}
	}
	_, report, _ := Load("hidden", Options{})
	want := []string{"hidden/.#b.yaml: hidden files are not read", "hidden/.a.yaml: hidden files are not read"}
	if got := noticeTexts(report); !cmp.Equal(got, want) {
		t.Errorf("notices: %s", cmp.Diff(got, want))
	}
}

func link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

func noticeTexts(r *Report) []string {
	var out []string
	for _, n := range r.Notices {
		out = append(out, n.String())
	}
	return out
}

func TestNotices(t *testing.T) {
	object := func(version, kind string) string {
		return "apiVersion: " + version + "\nkind: " + kind + "\nmetadata: {name: x}\n---\n"
	}
	inDir(t, map[string]string{"m.yaml": object("apps/v1", "Deployment") + object("v1", "ServiceList") +
		object("config.openshift.io/v1", "Node") + object("crd.projectcalico.org/v1", "NetworkPolicy") +
		object("crd.projectcalico.org/v1", "NetworkPolicyList") +
		object("cilium.io/v2", "CiliumClusterwideNetworkPolicy") + object("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") +
		policyYAML("w", "{policyTypes: [Ingress], egress: [{}], ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/8}}]}]}")})
	_, report, err := Load("m.yaml", Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"m.yaml: document 1 (line 1): Deployment x: apps/v1 Deployment has no part in network policy; skipped",
		"m.yaml: document 2 (line 5): ServiceList x: v1 ServiceList has no part in network policy; skipped",
		"m.yaml: document 3 (line 9): Node x: config.openshift.io/v1 Node has no part in network policy; skipped",
		"m.yaml: document 4 (line 13): NetworkPolicy default/x: this policy of crd.projectcalico.org/v1 is NOT enforced; only networking.k8s.io/v1 NetworkPolicy is",
		"m.yaml: document 5 (line 17): NetworkPolicyList x: this policy of crd.projectcalico.org/v1 is NOT enforced; only networking.k8s.io/v1 NetworkPolicy is",
		"m.yaml: document 6 (line 21): CiliumClusterwideNetworkPolicy x: this policy of cilium.io/v2 is NOT enforced; only networking.k8s.io/v1 NetworkPolicy is",
		"m.yaml: document 7 (line 25): ClusterNetworkPolicy x: this policy of policy.networking.k8s.io/v1alpha2 is NOT enforced; only networking.k8s.io/v1 NetworkPolicy is",
		"m.yaml: document 8 (line 29): NetworkPolicy shop/w: spec.ingress[0].from[0].ipBlock.cidr: 10.0.0.1/8 has bits set beyond its prefix length and is read as 10.0.0.0/8; Kubernetes 1.36 refuses it in new objects",
		"m.yaml: document 8 (line 29): NetworkPolicy shop/w: spec.egress: has no effect because spec.policyTypes does not list Egress",
	}
	if got := noticeTexts(report); !cmp.Equal(got, want) {
		t.Errorf("got − want +:\n%s", cmp.Diff(got, want))
	}
	if report.Count(Skipped) != 3 || report.Count(NotEnforced) != 4 || report.Count(Warning) != 2 {
		t.Errorf("counts: %d skipped, %d not enforced, %d warnings", report.Count(Skipped), report.Count(NotEnforced), report.Count(Warning))
	}
	if report.Documents != 8 || report.NetworkPolicies != 1 {
		t.Errorf("report: %+v", report)
	}
}

// A mode that nobody can read is a warning that names the namespace, and enforces.
func TestNamespaceModes(t *testing.T) {
	namespace := func(name, annotation string) string {
		return "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + ", annotations: {" + annotation + "}}\n---\n"
	}
	inDir(t, map[string]string{"m.yaml": namespace("a", "netverdict.io/mode: audit") + namespace("b", "netverdict.io/mode: enforce") +
		namespace("c", "netverdict.io/mode: Audit") + namespace("d", `netverdict.io/mode: ""`) + namespace("e", "other: audit")})
	s, report, err := Load("m.yaml", Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range s.Namespaces {
		if ns.Audit != (ns.Name == "a") {
			t.Errorf("namespace %s: audited %t", ns.Name, ns.Audit)
		}
	}
	want := []string{
		`m.yaml: document 3 (line 9): Namespace c: metadata.annotations[netverdict.io/mode]: "Audit" is neither audit nor enforce; its policies are enforced`,
		`m.yaml: document 4 (line 13): Namespace d: metadata.annotations[netverdict.io/mode]: "" is neither audit nor enforce; its policies are enforced`,
	}
	if got := noticeTexts(report); !cmp.Equal(got, want) || report.Count(Warning) != 2 {
		t.Errorf("%d warnings; got − want +:\n%s", report.Count(Warning), cmp.Diff(got, want))
	}
}

// A denial that nobody can read is a warning that names the namespace.
func TestNamespaceDenials(t *testing.T) {
	namespace := func(name, annotation string) string {
		return "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + ", annotations: {" + annotation + "}}\n---\n"
	}
	inDir(t, map[string]string{"m.yaml": namespace("a", "netverdict.io/deny: drop") + namespace("b", "netverdict.io/deny: reject") +
		namespace("c", "netverdict.io/deny: Reject") + namespace("d", `netverdict.io/deny: unset`) + namespace("e", "netverdict.io/mode: enforce")})
	s, report, err := Load("m.yaml", Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]policy.Denial{"a": policy.DenialDrop, "b": policy.DenialReject}
	for _, ns := range s.Namespaces {
		if ns.Denial != want[ns.Name] {
			t.Errorf("namespace %s: denies with %v, want %v", ns.Name, ns.Denial, want[ns.Name])
		}
	}
	notices := []string{
		`m.yaml: document 3 (line 9): Namespace c: metadata.annotations[netverdict.io/deny]: "Reject" is neither drop nor reject; the agent's --deny counts`,
		`m.yaml: document 4 (line 13): Namespace d: metadata.annotations[netverdict.io/deny]: "unset" is neither drop nor reject; the agent's --deny counts`,
	}
	if got := noticeTexts(report); !cmp.Equal(got, notices) {
		t.Errorf("got − want +:\n%s", cmp.Diff(got, notices))
	}
}

func TestNoticesAreBounded(t *testing.T) {
	inDir(t, map[string]string{"m.yaml": strings.Repeat("apiVersion: v1\nkind: Secret\n---\n", maxNotices+5)})
	_, report, err := Load("m.yaml", Options{})
	if err != nil || len(report.Notices) != maxNotices || report.Dropped != 5 {
		t.Errorf("%d notices, %d dropped, error %v", len(report.Notices), report.Dropped, err)
	}
}

func TestPipesAndDevices(t *testing.T) {
	inDir(t, map[string]string{"dir/a.yaml": ""})
	link(t, "/dev/null", "dir/b.yaml")
	_, _, err := Load("dir", Options{})
	if want := "dir/b.yaml: not a regular file"; fmt.Sprint(err) != want {
		t.Errorf("device in a directory: %v, want %q", err, want)
	}
	if _, _, err := Load("/dev/null", Options{}); err != nil {
		t.Errorf("named explicitly: %v", err)
	}
}
