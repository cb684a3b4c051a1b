package kube

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/policy"
)

var compareAddrs = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func addrList(values ...string) []netip.Addr {
	var out []netip.Addr
	for _, v := range values {
		out = append(out, netip.MustParseAddr(v))
	}
	return out
}

func name(ns, n string) policy.NamespacedName { return policy.NamespacedName{Namespace: ns, Name: n} }

// testdata/cluster.yaml is written after the output of kubectl get
// pods,netpol,ns,nodes -A -o yaml --show-managed-fields of Kubernetes 1.36.
func TestLoadClusterDump(t *testing.T) {
	got, report, err := Load("testdata/cluster.yaml", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if report.Pods != 4 || report.Namespaces != 1 || report.Nodes != 1 || report.NetworkPolicies != 1 || len(report.Notices) != 0 {
		t.Errorf("report: %+v", report)
	}
	// Too long to repeat; that it is there shows that block scalars survive.
	if a := got.Policies[0].Annotations["kubectl.kubernetes.io/last-applied-configuration"]; len(a) < 200 {
		t.Errorf("annotation: %q", a)
	}
	got.Policies[0].Annotations = nil
	at := func(s string) time.Time {
		parsed, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	tcp, http := corev1.ProtocolTCP, intstr.FromString("http")
	want := &policy.Snapshot{
		Namespaces: []*policy.Namespace{{Name: "shop", Labels: map[string]string{
			"kubernetes.io/metadata.name": "shop", "pod-security.kubernetes.io/enforce": "restricted"}}},
		Nodes: []*policy.Node{{
			Name:     "node-1",
			Addrs:    addrList("192.168.10.11", "fd00:10::11", "203.0.113.9"),
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")},
		}},
		Pods: []*policy.Pod{{
			NamespacedName: name("shop", "web-6d4cf56db6-x2k9p"),
			Labels:         map[string]string{"app.kubernetes.io/name": "web", "pod-template-hash": "6d4cf56db6"},
			NodeName:       "node-1",
			Addrs:          addrList("10.244.1.7", "fd00:244:1::7"),
			HostAddrs:      addrList("192.168.10.11", "fd00:10::11"),
			Phase:          policy.PhaseRunning,
			Created:        at("2026-01-10T08:01:02Z"),
			Ports:          []policy.ContainerPort{{Name: "metrics", Protocol: policy.TCP, Port: 15090}, {Name: "http", Protocol: policy.TCP, Port: 8080}},
			Workload:       policy.Workload{Kind: "Deployment", Name: "web"},
		}, {
			NamespacedName: name("shop", "report-xq8wz"),
			Labels:         map[string]string{"batch.kubernetes.io/job-name": "report", "job-name": "report"},
			NodeName:       "node-1",
			Addrs:          addrList("10.244.1.3"),
			HostAddrs:      addrList("192.168.10.11"),
			Phase:          policy.PhaseEnded,
			Created:        at("2026-01-09T23:00:00Z"),
		}, {
			NamespacedName: name("kube-system", "etcd-node-1"),
			Labels:         map[string]string{"component": "etcd", "tier": "control-plane"},
			NodeName:       "node-1",
			HostNetwork:    true,
			Addrs:          addrList("192.168.10.11"),
			HostAddrs:      addrList("192.168.10.11"),
			Phase:          policy.PhaseRunning,
			Created:        at("2026-01-01T00:00:00Z"),
			Ports:          []policy.ContainerPort{{Name: "probe-port", Protocol: policy.TCP, Port: 2381}},
			Workload:       policy.Workload{Kind: "Node", Name: "node-1"},
		}, {
			NamespacedName: name("shop", "waiting"),
			Created:        at("2026-01-10T08:02:00Z"),
		}},
		Policies: []*networkingv1.NetworkPolicy{{
			TypeMeta: metav1.TypeMeta{Kind: "NetworkPolicy", APIVersion: "networking.k8s.io/v1"},
			ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", Generation: 1, ResourceVersion: "48000",
				UID: "33333333-3333-3333-3333-333333333333", CreationTimestamp: metav1.NewTime(at("2026-01-10T07:59:00Z"))},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app.kubernetes.io/name": "web"}},
				PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
				Ingress: []networkingv1.NetworkPolicyIngressRule{{
					From:  []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}}},
					Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &http}},
				}},
			},
		}},
	}
	if diff := cmp.Diff(got, want, compareAddrs); diff != "" {
		t.Errorf("got − want +:\n%s", diff)
	}
}

func TestLoadDefaults(t *testing.T) {
	inDir(t, map[string]string{"m.yaml": pod + "---\n" +
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {egress: [{ports: [{port: 53}]}]}\n---\n" +
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"})
	got, _, err := Load("m.yaml", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Pods[0].NamespacedName != name("default", "web") {
		t.Errorf("pod is %s", got.Pods[0].NamespacedName)
	}
	np := got.Policies[0]
	if np.Namespace != "default" || len(np.Spec.PolicyTypes) != 2 || *np.Spec.Egress[0].Ports[0].Protocol != corev1.ProtocolTCP {
		t.Errorf("policy without defaults: %+v", np)
	}
	if want := map[string]string{"kubernetes.io/metadata.name": "shop"}; !cmp.Equal(got.Namespaces[0].Labels, want) {
		t.Errorf("labels of the namespace: %v", got.Namespaces[0].Labels)
	}
}

func TestPodFromAPI(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	in := &corev1.Pod{
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{
				{Ports: []corev1.ContainerPort{{Name: "gone", ContainerPort: 1}}},
				{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 2, Protocol: "SCTP"}}},
			},
			Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
				{Name: "a", ContainerPort: 80}, {ContainerPort: 81}, {Name: "b", ContainerPort: 65535, Protocol: "UDP"},
				{Name: "high", ContainerPort: 65536}, {Name: "zero"}, {Name: "odd", ContainerPort: 1, Protocol: "ICMP"}}}},
		},
		Status: corev1.PodStatus{PodIP: "10.0.0.1", HostIP: "::ffff:192.0.2.1"},
	}
	got, err := PodFromAPI(in)
	if err != nil {
		t.Fatal(err)
	}
	want := &policy.Pod{
		Addrs: addrList("10.0.0.1"), HostAddrs: addrList("192.0.2.1"),
		Ports: []policy.ContainerPort{{Name: "side", Protocol: policy.SCTP, Port: 2}, {Name: "a", Protocol: policy.TCP, Port: 80}, {Name: "b", Protocol: policy.UDP, Port: 65535}},
	}
	if diff := cmp.Diff(got, want, compareAddrs); diff != "" {
		t.Errorf("got − want +:\n%s", diff)
	}
	for phase, want := range map[corev1.PodPhase]policy.Phase{
		corev1.PodPending: policy.PhasePending, corev1.PodUnknown: policy.PhasePending, "": policy.PhasePending,
		corev1.PodRunning: policy.PhaseRunning, corev1.PodSucceeded: policy.PhaseEnded, corev1.PodFailed: policy.PhaseEnded,
	} {
		if got := podPhase(phase); got != want {
			t.Errorf("phase %q is %d, want %d", phase, got, want)
		}
	}
}

func TestConversionErrors(t *testing.T) {
	meta := metav1.ObjectMeta{Namespace: "ns", Name: "x"}
	_, err := PodFromAPI(&corev1.Pod{ObjectMeta: meta, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "?"}}}})
	wantError(t, err, `read addresses of pod ns/x: ParseAddr("?"): unable to parse IP`)
	_, err = PodFromAPI(&corev1.Pod{ObjectMeta: meta, Status: corev1.PodStatus{HostIPs: []corev1.HostIP{{IP: "?"}}}})
	wantError(t, err, `read host addresses of pod ns/x: ParseAddr("?"): unable to parse IP`)
	_, err = NodeFromAPI(&corev1.Node{ObjectMeta: meta, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: "InternalIP", Address: "?"}}}})
	wantError(t, err, `read InternalIP of node x: ParseAddr("?"): unable to parse IP`)
	_, err = NodeFromAPI(&corev1.Node{ObjectMeta: meta, Spec: corev1.NodeSpec{PodCIDR: "?"}})
	wantError(t, err, `read pod range of node x: netip.ParsePrefix("?"): no '/'`)
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestNodeFromAPI(t *testing.T) {
	got, err := NodeFromAPI(&corev1.Node{Spec: corev1.NodeSpec{PodCIDR: "10.1.2.3/24"}})
	if err != nil || len(got.PodCIDRs) != 1 || got.PodCIDRs[0] != netip.MustParsePrefix("10.1.2.0/24") {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestNamespaceFromAPIKeepsItsInput(t *testing.T) {
	in := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"kubernetes.io/metadata.name": "forged", "k": "v"}}}
	got := NamespaceFromAPI(in)
	if want := map[string]string{"kubernetes.io/metadata.name": "a", "k": "v"}; !cmp.Equal(got.Labels, want) {
		t.Errorf("labels %v", got.Labels)
	}
	if in.Labels["kubernetes.io/metadata.name"] != "forged" {
		t.Error("the input changed")
	}
}
