package oracle

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/netverdict/netverdict/policy"
)

const scripts = "../../cmd/netverdict/testdata/script/*.txtar"

// TestScriptsAgree decides every flow of the command line's eval scripts. The
// expected lines in them were written by hand from the documentation, so each is
// checked twice: here against the API text, there against the compiled tree.
func TestScriptsAgree(t *testing.T) {
	files, err := filepath.Glob(scripts)
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			for _, run := range evalRuns(archive) {
				lines += run.check(t, archive)
			}
		})
	}
	if lines < 400 {
		t.Errorf("%d flows were compared in %d scripts, want at least 400", lines, len(files))
	}
}

// evalRun is "exec netverdict eval -f DIR --flows FLOWS", then "cmp stdout WANT".
type evalRun struct{ dir, flows, want string }

func evalRuns(archive *txtar.Archive) (runs []evalRun) {
	var last *evalRun
	for line := range strings.Lines(string(archive.Comment)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 7 && f[0] == "exec" && f[1] == "netverdict" && f[2] == "eval" && f[3] == "-f" && f[5] == "--flows" && f[6] != "-":
			last = &evalRun{dir: f[4], flows: f[6]}
		case len(f) == 3 && f[0] == "cmp" && f[1] == "stdout" && last != nil:
			last.want = f[2]
			runs, last = append(runs, *last), nil
		case len(f) > 0 && f[0] == "exec":
			last = nil
		}
	}
	return runs
}

// answer is a line of eval's output, its fields in the order of the contract.
type answer struct {
	Source      string         `json:"source"`
	Destination string         `json:"destination"`
	Protocol    string         `json:"protocol"`
	Port        *uint16        `json:"port,omitempty"`
	Verdict     policy.Verdict `json:"verdict"`
	Egress      part           `json:"egress"`
	Ingress     part           `json:"ingress"`
}

type part struct {
	Verdict    policy.Verdict `json:"verdict"`
	Reason     policy.Reason  `json:"reason"`
	Policy     string         `json:"policy,omitempty"`
	Rule       *int           `json:"rule,omitempty"`
	IsolatedBy []string       `json:"isolatedBy,omitempty"`
}

func partOf(o *policy.Outcome) part {
	p := part{Verdict: o.Reported(), Reason: o.Reason}
	if o.Reason == policy.ReasonPolicy {
		p.Policy, p.Rule = o.Policy.String(), &o.Rule
	}
	for _, r := range o.IsolatedBy {
		p.IsolatedBy = append(p.IsolatedBy, r.String())
	}
	return p
}

// check compares the oracle's answers with the expected lines and returns how
// many there were.
func (run evalRun) check(t *testing.T, archive *txtar.Archive) int {
	t.Helper()
	s := snapshotOf(t, archive, run.dir+"/")
	questions, wants := lines(t, archive, run.flows), lines(t, archive, run.want)
	if len(questions) != len(wants) {
		t.Fatalf("%s: %d flows, %d expected lines", run.dir, len(questions), len(wants))
	}
	for i, q := range questions {
		a := answer{Protocol: "TCP"}
		if err := json.Unmarshal([]byte(q), &a); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
		if got := decideLine(t, s, a); got != wants[i] {
			t.Errorf("%s:\n oracle %s\n script %s", run.dir, got, wants[i])
		}
	}
	return len(questions)
}

func decideLine(t *testing.T, s *policy.Snapshot, a answer) string {
	t.Helper()
	src, dst := addrsOf(t, s, a.Source, a.Destination)
	proto, err := policy.ParseProtocol(a.Protocol)
	if err != nil {
		t.Fatal(err)
	}
	var port uint16
	if a.Port != nil {
		port = *a.Port
	}
	d := Decide(s, src, dst, proto, port)
	a.Verdict, a.Egress, a.Ingress = d.Reported(), partOf(d.Egress), partOf(d.Ingress)
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// addrsOf turns two names or addresses into addresses of one family.
func addrsOf(t *testing.T, s *policy.Snapshot, src, dst string) (netip.Addr, netip.Addr) {
	t.Helper()
	for _, a := range addrsNamed(t, s, src) {
		for _, b := range addrsNamed(t, s, dst) {
			if a.Is4() == b.Is4() {
				return a, b
			}
		}
	}
	t.Fatalf("%s and %s have no address family in common", src, dst)
	return netip.Addr{}, netip.Addr{}
}

func addrsNamed(t *testing.T, s *policy.Snapshot, name string) []netip.Addr {
	t.Helper()
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}
	}
	for _, p := range s.Pods {
		if p.String() == name {
			return p.Addrs
		}
	}
	t.Fatalf("no pod %s", name)
	return nil
}

func lines(t *testing.T, archive *txtar.Archive, name string) []string {
	t.Helper()
	for _, f := range archive.Files {
		if f.Name == name {
			return strings.Split(strings.TrimSuffix(string(f.Data), "\n"), "\n")
		}
	}
	t.Fatalf("no file %s", name)
	return nil
}

// snapshotOf reads the manifests under a directory of the archive. It is as naive
// as the oracle, and for the same reason: package kube's reader is judged by it.
func snapshotOf(t *testing.T, archive *txtar.Archive, dir string) *policy.Snapshot {
	t.Helper()
	s := &policy.Snapshot{}
	for _, f := range archive.Files {
		if !strings.HasPrefix(f.Name, dir) || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(f.Name)) {
			continue
		}
		for _, doc := range strings.Split("\n"+string(f.Data), "\n---\n") {
			addObject(t, s, []byte(doc))
		}
	}
	return s
}

func addObject(t *testing.T, s *policy.Snapshot, doc []byte) {
	t.Helper()
	var head struct {
		Kind  string
		Items []json.RawMessage
	}
	parse(t, doc, &head)
	switch head.Kind {
	case "List":
		for _, item := range head.Items {
			addObject(t, s, item)
		}
	case "Namespace":
		var o corev1.Namespace
		parse(t, doc, &o)
		ns := &policy.Namespace{Name: o.Name, Labels: o.Labels, Audit: o.Annotations["netverdict.io/mode"] == "audit"}
		if how := o.Annotations["netverdict.io/deny"]; how != "" {
			if err := ns.Denial.UnmarshalText([]byte(how)); err != nil {
				t.Fatal(err)
			}
		}
		s.Namespaces = append(s.Namespaces, ns)
	case "Node":
		s.Nodes = append(s.Nodes, nodeFrom(t, doc))
	case "Pod":
		s.Pods = append(s.Pods, podFrom(t, doc))
	case "NetworkPolicy":
		var o networkingv1.NetworkPolicy
		parse(t, doc, &o)
		if o.Namespace == "" {
			o.Namespace = "default"
		}
		s.Policies = append(s.Policies, &o)
	}
}

func parse(t *testing.T, doc []byte, into any) {
	t.Helper()
	if err := yaml.Unmarshal(doc, into); err != nil {
		t.Fatalf("%v in\n%s", err, doc)
	}
}

func nodeFrom(t *testing.T, doc []byte) *policy.Node {
	t.Helper()
	var o corev1.Node
	parse(t, doc, &o)
	n := &policy.Node{Name: o.Name}
	for _, a := range o.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			n.Addrs = append(n.Addrs, addr(a.Address))
		}
	}
	return n
}

func podFrom(t *testing.T, doc []byte) *policy.Pod {
	t.Helper()
	var o corev1.Pod
	parse(t, doc, &o)
	p := &policy.Pod{
		NamespacedName: policy.NamespacedName{Namespace: o.Namespace, Name: o.Name},
		Labels:         o.Labels, NodeName: o.Spec.NodeName, HostNetwork: o.Spec.HostNetwork, Created: o.CreationTimestamp.Time,
	}
	switch o.Status.Phase {
	case corev1.PodRunning:
		p.Phase = policy.PhaseRunning
	case corev1.PodSucceeded, corev1.PodFailed:
		p.Phase = policy.PhaseEnded
	}
	for _, ip := range o.Status.PodIPs {
		p.Addrs = append(p.Addrs, addr(ip.IP))
	}
	for _, ip := range o.Status.HostIPs {
		p.HostAddrs = append(p.HostAddrs, addr(ip.IP))
	}
	for _, c := range o.Spec.Containers {
		for _, port := range c.Ports {
			p.Ports = append(p.Ports, containerPort(t, port))
		}
	}
	return p
}

// containerPort applies the API's default protocol.
func containerPort(t *testing.T, port corev1.ContainerPort) policy.ContainerPort {
	t.Helper()
	proto := policy.TCP
	if port.Protocol != "" {
		var err error
		if proto, err = policy.ParseProtocol(string(port.Protocol)); err != nil {
			t.Fatal(fmt.Errorf("port %s: %w", port.Name, err))
		}
	}
	return policy.ContainerPort{Name: port.Name, Protocol: proto, Port: uint16(port.ContainerPort)}
}
