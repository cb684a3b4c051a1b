package validation

import (
	"os/exec"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// check decodes an object and compares its errors, one substring each.
func check[T any](t *testing.T, name, manifest string, validate func(*T) field.ErrorList, want ...string) {
	t.Helper()
	v := new(T)
	if err := yaml.UnmarshalStrict([]byte(manifest), v); err != nil {
		t.Fatalf("%s: bad test: %v", name, err)
	}
	got := messages(validate(v))
	if len(got) != len(want) {
		t.Errorf("%s: got %q, want %q", name, got, want)
		return
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			t.Errorf("%s: got %q, want %q", name, got[i], want[i])
		}
	}
}

func TestPod(t *testing.T) {
	const meta = `metadata: {name: web-0, namespace: shop}` + "\n"
	for _, tc := range []struct {
		name, pod string
		want      []string
	}{
		{"minimal", meta, nil},
		{"dual stack", meta + `status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "2001:DB8::1"}], hostIP: 192.0.2.1, hostIPs: [{ip: 192.0.2.1}, {ip: "2001:db8:1::1"}]}`, nil},
		{"singular only", meta + `status: {podIP: 10.0.0.1, hostIP: 192.0.2.1}`, nil},
		{"no namespace", `metadata: {name: a}`, []string{"metadata.namespace: Required value"}},
		{"bad name and label", `metadata: {name: A, namespace: shop, labels: {a: "?"}}`, []string{`metadata.name: Invalid value: "A"`, `metadata.labels: Invalid value: "?"`}},
		{"bad addresses", meta + `status: {podIPs: [{ip: 10.0.0.01}, {ip: "::ffff:10.0.0.1"}, {ip: "fe80::1%eth0"}, {ip: ""}], hostIPs: [{ip: x}]}`, []string{
			`status.podIPs[0].ip: Invalid value: "10.0.0.01": must not have leading 0s`,
			`status.podIPs[1].ip: Invalid value: "::ffff:10.0.0.1": must not be an IPv4-mapped IPv6 address`,
			`status.podIPs[2].ip: Invalid value: "fe80::1%eth0": must be a valid IP address`,
			`status.podIPs[3].ip: Invalid value: "": must be a valid IP address`,
			`status.hostIPs[0].ip: Invalid value: "x": must be a valid IP address`}},
		{"bad singular addresses", meta + `status: {podIP: 10.0.0.0.1, hostIP: host}`, []string{`status.podIP: Invalid value: "10.0.0.0.1"`, `status.hostIP: Invalid value: "host"`}},
		{"two of a family", meta + `status: {podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.2}]}`, []string{
			`status.podIPs[1].ip: Invalid value: "10.0.0.2": may specify no more than one IP for each IP family; 10.0.0.1 is of the same family`}},
		{"singular and plural differ", meta + `status: {podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.1}], hostIP: 192.0.2.2, hostIPs: [{ip: 192.0.2.1}]}`, []string{
			`status.podIP: Invalid value: "10.0.0.2": must be the first entry of its plural field, which is 10.0.0.1`,
			`status.hostIP: Invalid value: "192.0.2.2": must be the first entry of its plural field, which is 192.0.2.1`}},
		{"ports", meta + `spec: {containers: [{name: a, ports: [{name: http, containerPort: 80}, {name: dns, containerPort: 53, protocol: UDP}, {containerPort: 65535, protocol: SCTP}]}, {name: b, ports: [{name: http, containerPort: 81}]}]}`, nil},
		{"bad ports", meta + `spec: {containers: [{name: a, ports: [{name: HTTP, containerPort: 80}, {name: dns, containerPort: 53, protocol: udp}, {name: dns, containerPort: 53}]}], initContainers: [{name: b, ports: [{name: x}, {containerPort: 65536}]}]}`, []string{
			`spec.initContainers[0].ports[0].containerPort: Required value`,
			`spec.initContainers[0].ports[1].containerPort: Invalid value: 65536`,
			`spec.containers[0].ports[0].name: Invalid value: "HTTP"`,
			`spec.containers[0].ports[0].name: Invalid value: "HTTP"`,
			`spec.containers[0].ports[1].protocol: Unsupported value: "udp"`,
			`spec.containers[0].ports[2].name: Duplicate value: "dns"`}},
	} {
		check(t, tc.name, tc.pod, Pod, tc.want...)
	}
}

func TestNamespace(t *testing.T) {
	check(t, "minimal", `metadata: {name: shop}`, Namespace)
	check(t, "dotted name", `metadata: {name: a.b}`, Namespace, `metadata.name: Invalid value: "a.b": must not contain dots`)
	check(t, "no name", `metadata: {labels: {a: b}}`, Namespace, "metadata.name: Required value")
	check(t, "in a namespace", `metadata: {name: a, namespace: b}`, Namespace, "metadata.namespace: Forbidden: not allowed on this type")
	check(t, "bad label", `metadata: {name: a, labels: {"": b}}`, Namespace, "metadata.labels: Invalid value", "metadata.labels: Invalid value")
}

func TestNode(t *testing.T) {
	const meta = `metadata: {name: node-1.example.com}` + "\n"
	for _, tc := range []struct {
		name, node string
		want       []string
	}{
		{"minimal", meta, nil},
		{"full", meta + `spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, "2001:db8::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: 192.0.2.2}, {type: ExternalIP, address: "2001:db8::1"}, {type: Hostname, address: node-1}, {type: InternalDNS, address: node-1.internal}]}`, nil},
		{"bad name", `metadata: {name: node_1}`, []string{`metadata.name: Invalid value: "node_1"`}},
		{"bad ranges", meta + `spec: {podCIDRs: [10.1.0.0, 10.1.0.0/24, 10.2.0.0/24]}`, []string{
			`spec.podCIDRs[0]: Invalid value: "10.1.0.0": must be a valid CIDR value`,
			`spec.podCIDRs[2]: Invalid value: "10.2.0.0/24": may specify no more than one CIDR for each IP family`}},
		{"bad single range", meta + `spec: {podCIDR: x}`, []string{`spec.podCIDR: Invalid value: "x"`}},
		{"ranges differ", meta + `spec: {podCIDR: 10.9.0.0/24, podCIDRs: [10.1.0.0/24]}`, []string{`spec.podCIDR: Invalid value: "10.9.0.0/24": must be the first entry`}},
		{"bad address", meta + `status: {addresses: [{type: ExternalIP, address: host}]}`, []string{`status.addresses[0].address: Invalid value: "host"`}},
	} {
		check(t, tc.name, tc.node, Node, tc.want...)
	}
}

// The package must stay usable anywhere: no clients, no network, no files. What
// apimachinery itself needs comes with it.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for _, path := range strings.Fields(string(out)) {
		pure := map[string]bool{"fmt": true, "net/netip": true, "slices": true, "strings": true}
		if !pure[path] && !strings.HasPrefix(path, "k8s.io/api/") && !strings.HasPrefix(path, "k8s.io/apimachinery/") {
			t.Errorf("imports %s, which a pure package of API rules does not need", path)
		}
	}
}
