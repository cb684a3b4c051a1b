package gen

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// addPolicies goes through the tenants again and again, each time adding the
// next kind of policy, until there are enough.
func (c *Cluster) addPolicies(n int) {
	kinds := []func(string) networkingv1.NetworkPolicySpec{
		c.defaultDeny, c.appToApp, c.allowDNS, c.appToApp, c.fromIngress, c.appToApp,
		c.fromMonitoring, c.appToApp, c.fromTeam, c.toWorld,
	}
	for i := range n {
		ns := c.tenants[i%len(c.tenants)]
		spec := kinds[i/len(c.tenants)%len(kinds)](ns)
		c.Snapshot.Policies = append(c.Snapshot.Policies, &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("policy-%05d", i)},
			Spec:       spec,
		})
	}
}

func everyPod() metav1.LabelSelector { return metav1.LabelSelector{} }

func withLabel(key, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

func (c *Cluster) someApp() *metav1.LabelSelector {
	return withLabel("app", appName(c.rng.IntN(appsPerTenant)))
}

func namespaceNamed(name string) *metav1.LabelSelector {
	return withLabel(corev1.LabelMetadataName, name)
}

func port(protocol corev1.Protocol, p intstr.IntOrString) networkingv1.NetworkPolicyPort {
	return networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &p}
}

func tcp(number int32) networkingv1.NetworkPolicyPort {
	return port(corev1.ProtocolTCP, intstr.FromInt32(number))
}

func from(ports []networkingv1.NetworkPolicyPort, peers ...networkingv1.NetworkPolicyPeer) []networkingv1.NetworkPolicyIngressRule {
	return []networkingv1.NetworkPolicyIngressRule{{Ports: ports, From: peers}}
}

func to(ports []networkingv1.NetworkPolicyPort, peers ...networkingv1.NetworkPolicyPeer) []networkingv1.NetworkPolicyEgressRule {
	return []networkingv1.NetworkPolicyEgressRule{{Ports: ports, To: peers}}
}

func (c *Cluster) defaultDeny(string) networkingv1.NetworkPolicySpec {
	return networkingv1.NetworkPolicySpec{PodSelector: everyPod(), PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"}}
}

func (c *Cluster) allowDNS(string) networkingv1.NetworkPolicySpec {
	dns := networkingv1.NetworkPolicyPeer{NamespaceSelector: namespaceNamed(systemNS), PodSelector: withLabel("app", "dns")}
	ports := []networkingv1.NetworkPolicyPort{port(corev1.ProtocolUDP, intstr.FromInt32(53)), tcp(53)}
	return networkingv1.NetworkPolicySpec{
		PodSelector: everyPod(), PolicyTypes: []networkingv1.PolicyType{"Egress"}, Egress: to(ports, dns),
	}
}

// appToApp lets one application call another of its namespace, both ways of
// looking at it in one policy.
func (c *Cluster) appToApp(string) networkingv1.NetworkPolicySpec {
	ports := []networkingv1.NetworkPolicyPort{port(corev1.ProtocolTCP, intstr.FromString("http"))}
	return networkingv1.NetworkPolicySpec{
		PodSelector: *c.someApp(),
		PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"},
		Ingress:     from(ports, networkingv1.NetworkPolicyPeer{PodSelector: c.someApp()}, networkingv1.NetworkPolicyPeer{PodSelector: c.someApp()}),
		Egress:      to([]networkingv1.NetworkPolicyPort{tcp(8080)}, networkingv1.NetworkPolicyPeer{PodSelector: c.someApp()}),
	}
}

func (c *Cluster) fromIngress(string) networkingv1.NetworkPolicySpec {
	controller := networkingv1.NetworkPolicyPeer{NamespaceSelector: namespaceNamed(ingressNS)}
	return networkingv1.NetworkPolicySpec{
		PodSelector: *withLabel("tier", "frontend"),
		Ingress:     from([]networkingv1.NetworkPolicyPort{tcp(8080), tcp(8443)}, controller),
	}
}

func (c *Cluster) fromMonitoring(string) networkingv1.NetworkPolicySpec {
	prometheus := networkingv1.NetworkPolicyPeer{NamespaceSelector: namespaceNamed(monitoringNS), PodSelector: withLabel("app", "prometheus")}
	return networkingv1.NetworkPolicySpec{
		PodSelector: everyPod(),
		Ingress:     from([]networkingv1.NetworkPolicyPort{port(corev1.ProtocolTCP, intstr.FromString("metrics"))}, prometheus),
	}
}

func (c *Cluster) fromTeam(string) networkingv1.NetworkPolicySpec {
	team := withLabel("team", fmt.Sprintf("team-%02d", c.rng.IntN(teams)))
	backends := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "tier", Operator: metav1.LabelSelectorOpIn, Values: []string{"frontend", "backend"}},
	}}
	first, last := intstr.FromInt32(9000), int32(9100)
	protocol := corev1.ProtocolTCP
	ports := []networkingv1.NetworkPolicyPort{{Protocol: &protocol, Port: &first, EndPort: &last}}
	return networkingv1.NetworkPolicySpec{
		PodSelector: *c.someApp(),
		Ingress:     from(ports, networkingv1.NetworkPolicyPeer{NamespaceSelector: team, PodSelector: backends}),
	}
}

// toWorld lets an application reach an external network but for a part of it.
func (c *Cluster) toWorld(string) networkingv1.NetworkPolicySpec {
	a, b := c.rng.IntN(223-11)+11, c.rng.IntN(256)
	block := &networkingv1.IPBlock{CIDR: fmt.Sprintf("%d.%d.0.0/16", a, b), Except: []string{fmt.Sprintf("%d.%d.%d.0/24", a, b, c.rng.IntN(256))}}
	return networkingv1.NetworkPolicySpec{
		PodSelector: *c.someApp(),
		PolicyTypes: []networkingv1.PolicyType{"Egress"},
		Egress:      to([]networkingv1.NetworkPolicyPort{tcp(443)}, networkingv1.NetworkPolicyPeer{IPBlock: block}),
	}
}
