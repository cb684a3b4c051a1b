package main

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/network"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
	"sigs.k8s.io/kube-network-policies/pkg/podinfo"

	"github.com/netverdict/netverdict/bench/gen"
	"github.com/netverdict/netverdict/policy"
)

// BenchmarkEvaluate compares what one decision costs: ours, and that of the
// closest peer in user space, which evaluates selectors for each packet. Both
// have the same objects: 1,000 pods, and policies in one namespace that select
// the server, of which the last by name allows the client.
func BenchmarkEvaluate(b *testing.B) {
	for _, n := range []int{10, 100, 1_000, 10_000} {
		c := cluster{pods: 1_000, server: n}
		s := gen.New(1, gen.Size{Pods: c.pods, Policies: 0}).Snapshot
		c.addStage(s)
		for _, to := range []struct {
			outcome string
			port    uint16
			allowed bool
		}{{"allow", acceptPort, true}, {"deny", deniedPort, false}} {
			name := fmt.Sprintf("%s/%dpolicies", to.outcome, n)
			b.Run(name+"/netverdict", func(b *testing.B) { decideOurs(b, s, to.port, to.allowed) })
			b.Run(name+"/kube-network-policies", func(b *testing.B) { decideTheirs(b, s, to.port, to.allowed) })
		}
	}
}

func decideOurs(b *testing.B, s *policy.Snapshot, port uint16, allowed bool) {
	tree, err := policy.Compile(s)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if d := tree.Decide(clientAddr, serverAddr, policy.TCP, port); (d.Verdict == policy.Allow) != allowed {
			b.Fatalf("port %d: %v", port, d)
		}
	}
}

func decideTheirs(b *testing.B, s *policy.Snapshot, port uint16, allowed bool) {
	engine := peerEngine(b, s)
	ctx := context.Background()
	p := network.Packet{
		Family: corev1.IPv4Protocol, Proto: corev1.ProtocolTCP,
		SrcIP: clientAddr.AsSlice(), DstIP: serverAddr.AsSlice(), SrcPort: 40000, DstPort: int(port),
	}
	b.ReportAllocs()
	for b.Loop() {
		if got, err := engine.EvaluatePacket(ctx, &p); err != nil || got != allowed {
			b.Fatalf("port %d: allowed %v, %v", port, got, err)
		}
	}
}

// peerEngine gives the peer's engine a snapshot's objects, in the informers it
// reads them from.
func peerEngine(b *testing.B, s *policy.Snapshot) *networkpolicy.PolicyEngine {
	factory := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	namespaces, pods := factory.Core().V1().Namespaces(), factory.Core().V1().Pods()
	policies := factory.Networking().V1().NetworkPolicies()
	resolver, err := podinfo.NewInformerResolver(pods.Informer())
	if err != nil {
		b.Fatal(err)
	}
	for _, ns := range s.Namespaces {
		must(b, namespaces.Informer().GetIndexer().Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns.Name, Labels: ns.Labels}}))
	}
	for _, p := range s.Pods {
		must(b, pods.Informer().GetIndexer().Add(podObject(p)))
	}
	for _, np := range s.Policies {
		must(b, policies.Informer().GetIndexer().Add(np))
	}
	provider := podinfo.NewInformerProvider(pods, namespaces, nil, []podinfo.IPResolver{resolver})
	return networkpolicy.NewPolicyEngine(provider, []api.PolicyEvaluator{
		networkpolicy.NewStandardNetworkPolicy(nodeName, namespaces, pods, policies),
	})
}

func podObject(p *policy.Pod) *corev1.Pod {
	o := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels},
		Spec:       corev1.PodSpec{NodeName: p.NodeName},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: p.Addrs[0].String()},
	}
	for _, a := range p.Addrs {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	return o
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
