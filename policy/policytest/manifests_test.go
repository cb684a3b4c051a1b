package policytest

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/netverdict/netverdict/policy"
)

// documents parses a stream strictly into objects by kind.
func documents(t *testing.T, text []byte) (pods []*corev1.Pod, nodes []*corev1.Node, namespaces []*corev1.Namespace, policies []*networkingv1.NetworkPolicy) {
	t.Helper()
	for _, doc := range bytes.Split(text, []byte("---\n"))[1:] {
		var head struct{ Kind string }
		if err := yaml.Unmarshal(doc, &head); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		switch head.Kind {
		case "Pod":
			pods = append(pods, strictly[corev1.Pod](t, doc))
		case "Node":
			nodes = append(nodes, strictly[corev1.Node](t, doc))
		case "Namespace":
			namespaces = append(namespaces, strictly[corev1.Namespace](t, doc))
		case "NetworkPolicy":
			policies = append(policies, strictly[networkingv1.NetworkPolicy](t, doc))
		default:
			t.Fatalf("kind %q in\n%s", head.Kind, doc)
		}
	}
	return pods, nodes, namespaces, policies
}

func strictly[T any](t *testing.T, doc []byte) *T {
	t.Helper()
	object := new(T)
	if err := yaml.UnmarshalStrict(doc, object); err != nil {
		t.Fatalf("%v in\n%s", err, doc)
	}
	return object
}

func TestManifestsSayWhatTheSnapshotSays(t *testing.T) {
	for seed := range uint64(20) {
		s := Random(seed, Small)
		pods, nodes, namespaces, policies := documents(t, Manifests(s))
		if diff := cmp.Diff(s.Policies, policies, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("seed %d: policies (-snapshot +manifests):\n%s", seed, diff)
		}
		var back []*policy.Pod
		for _, p := range pods {
			back = append(back, podOf(t, p))
		}
		if diff := cmp.Diff(s.Pods, back, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("seed %d: pods (-snapshot +manifests):\n%s", seed, diff)
		}
		checkNodes(t, s, nodes)
		for i, ns := range namespaces {
			if ns.Name != s.Namespaces[i].Name || !cmp.Equal(ns.Labels, s.Namespaces[i].Labels, cmpopts.EquateEmpty()) {
				t.Errorf("seed %d: namespace %v, want %v", seed, ns, s.Namespaces[i])
			}
		}
	}
}

// podOf reads the parts of a pod that a snapshot has, straight from the API.
func podOf(t *testing.T, o *corev1.Pod) *policy.Pod {
	t.Helper()
	p := &policy.Pod{
		NamespacedName: policy.NamespacedName{Namespace: o.Namespace, Name: o.Name},
		Labels:         o.Labels, NodeName: o.Spec.NodeName, HostNetwork: o.Spec.HostNetwork,
		Created: o.CreationTimestamp.UTC(),
		Phase: map[corev1.PodPhase]policy.Phase{
			corev1.PodRunning: policy.PhaseRunning, corev1.PodSucceeded: policy.PhaseEnded, corev1.PodFailed: policy.PhaseEnded,
		}[o.Status.Phase],
	}
	for _, ip := range o.Status.PodIPs {
		p.Addrs = append(p.Addrs, netip.MustParseAddr(ip.IP))
	}
	for _, ip := range o.Status.HostIPs {
		p.HostAddrs = append(p.HostAddrs, netip.MustParseAddr(ip.IP))
	}
	for _, c := range o.Spec.Containers {
		for _, port := range c.Ports {
			proto, err := policy.ParseProtocol(string(port.Protocol))
			if err != nil {
				t.Error(err)
			}
			p.Ports = append(p.Ports, policy.ContainerPort{Name: port.Name, Protocol: proto, Port: uint16(port.ContainerPort)})
		}
	}
	if deleted := o.DeletionTimestamp != nil; deleted != strings.HasSuffix(o.Name, terminatingSuffix) {
		t.Errorf("pod %s: deletionTimestamp set is %t", o.Name, deleted)
	}
	return p
}

func checkNodes(t *testing.T, s *policy.Snapshot, nodes []*corev1.Node) {
	t.Helper()
	if len(nodes) != len(s.Nodes) {
		t.Fatalf("%d nodes, want %d", len(nodes), len(s.Nodes))
	}
	for i, n := range nodes {
		var got, want []string
		for _, a := range n.Status.Addresses[1:] { // the first is the host name
			got = append(got, a.Address)
		}
		for _, a := range s.Nodes[i].Addrs {
			want = append(want, a.String())
		}
		if n.Name != s.Nodes[i].Name || !slices.Equal(got, want) || fmt.Sprint(n.Spec.PodCIDRs) != fmt.Sprint(s.Nodes[i].PodCIDRs) {
			t.Errorf("node %s: addresses %v ranges %v, want %+v", n.Name, got, n.Spec.PodCIDRs, s.Nodes[i])
		}
	}
}
