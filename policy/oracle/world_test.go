package oracle

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/netverdict/netverdict/policy"
)

// The world of the tests: ns "default" (label team=a) with pods web, client and
// db; ns "other" (team=b) with pod web; all on node-1 except other/web.
//
//	default/web     10.0.0.1 fd00::1   app=web     http=TCP 8080, http=TCP 8081, dns=UDP 53
//	default/client  10.0.0.2 fd00::2   app=client
//	default/db      10.0.0.3           app=db
//	other/web       10.0.1.1           app=web     http=TCP 80   (node-2)
//	node-1 192.168.0.1, node-2 192.168.0.2
func world() *policy.Snapshot {
	return &policy.Snapshot{
		Namespaces: []*policy.Namespace{
			{Name: "default", Labels: map[string]string{"team": "a"}},
			{Name: "other", Labels: map[string]string{"team": "b"}},
		},
		Nodes: []*policy.Node{
			{Name: "node-1", Addrs: []netip.Addr{addr("192.168.0.1")}},
			{Name: "node-2", Addrs: []netip.Addr{addr("192.168.0.2")}},
		},
		Pods: []*policy.Pod{
			pod("default/web", "app=web", "node-1", "10.0.0.1", "fd00::1").withPorts(
				policy.ContainerPort{Name: "http", Protocol: policy.TCP, Port: 8080},
				policy.ContainerPort{Name: "http", Protocol: policy.TCP, Port: 8081},
				policy.ContainerPort{Name: "dns", Protocol: policy.UDP, Port: 53}),
			pod("default/client", "app=client", "node-1", "10.0.0.2", "fd00::2").Pod,
			pod("default/db", "app=db", "node-1", "10.0.0.3").Pod,
			pod("other/web", "app=web", "node-2", "10.0.1.1").withPorts(
				policy.ContainerPort{Name: "http", Protocol: policy.TCP, Port: 80}),
		},
	}
}

type testPod struct{ *policy.Pod }

func pod(name, label, node string, addrs ...string) testPod {
	ns, n, _ := strings.Cut(name, "/")
	k, v, _ := strings.Cut(label, "=")
	p := &policy.Pod{
		NamespacedName: policy.NamespacedName{Namespace: ns, Name: n},
		Labels:         map[string]string{k: v}, NodeName: node, Phase: policy.PhaseRunning,
	}
	for _, a := range addrs {
		p.Addrs = append(p.Addrs, addr(a))
	}
	return testPod{p}
}

func (p testPod) withPorts(ports ...policy.ContainerPort) *policy.Pod {
	p.Ports = ports
	return p.Pod
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// np parses the spec of a policy; name is "ns/name".
func np(t *testing.T, name, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	p := &networkingv1.NetworkPolicy{}
	p.Namespace, p.Name, _ = strings.Cut(name, "/")
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		t.Fatalf("policy %s: %v", name, err)
	}
	return p
}

// check decides "src dst PROTO/port" and compares both outcomes, written as
// describe does.
func check(t *testing.T, s *policy.Snapshot, connection, wantEgress, wantIngress string) policy.Decision {
	t.Helper()
	d := ask(t, s, connection)
	if got := describe(d.Egress); got != wantEgress {
		t.Errorf("%s: egress is %q, want %q", connection, got, wantEgress)
	}
	if got := describe(d.Ingress); got != wantIngress {
		t.Errorf("%s: ingress is %q, want %q", connection, got, wantIngress)
	}
	bothAllow := d.Egress.Verdict == policy.Allow && d.Ingress.Verdict == policy.Allow
	if (d.Verdict == policy.Allow) != bothAllow {
		t.Errorf("%s: verdict is %s with egress %s and ingress %s", connection, d.Verdict, d.Egress.Verdict, d.Ingress.Verdict)
	}
	return d
}

func ask(t *testing.T, s *policy.Snapshot, connection string) policy.Decision {
	t.Helper()
	f := strings.Fields(connection)
	name, port, _ := strings.Cut(f[2], "/")
	proto, err := policy.ParseProtocol(name)
	if err != nil {
		t.Fatal(err)
	}
	var n uint16
	if port != "" {
		if _, err := fmt.Sscan(port, &n); err != nil {
			t.Fatalf("%s: port: %v", connection, err)
		}
	}
	return Decide(s, addr(f[0]), addr(f[1]), proto, n)
}

// describe writes an outcome as "allow policy ns/name#rule",
// "deny default-deny ns/name,…" or "allow no-policy".
func describe(o *policy.Outcome) string {
	text := o.Verdict.String() + " " + o.Reason.String()
	if o.Reason == policy.ReasonPolicy {
		text += fmt.Sprintf(" %s#%d", o.Policy, o.Rule)
	}
	var names []string
	for _, r := range o.IsolatedBy {
		names = append(names, r.String())
	}
	if len(names) > 0 {
		text += " " + strings.Join(names, ",")
	}
	return text
}

const (
	noPolicy    = "allow no-policy"
	nodeTraffic = "allow node-traffic"
	self        = "allow self"
	external    = "allow external"
	notLocal    = "allow not-local"
)

// ingressOnly returns the world with one policy default/p that isolates
// default/web for ingress and has the given ingress list.
func ingressOnly(t *testing.T, ingress string) *policy.Snapshot {
	t.Helper()
	s := world()
	s.Policies = []*networkingv1.NetworkPolicy{np(t, "default/p", `
podSelector: {matchLabels: {app: web}}
policyTypes: [Ingress]
ingress: `+ingress)}
	return s
}

const (
	byP    = "allow policy default/p#0"
	denied = "deny default-deny default/p"
)
