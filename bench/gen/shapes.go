package gen

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The shapes are policies at the edge of what people write. Each isolates every pod
// of the first tenant for egress.

// ManyRules has rules for one port each, to one application each.
func (c *Cluster) ManyRules(n int) *networkingv1.NetworkPolicy {
	var rules []networkingv1.NetworkPolicyEgressRule
	for i := range n {
		rules = append(rules, to([]networkingv1.NetworkPolicyPort{tcp(int32(8000 + i))}, networkingv1.NetworkPolicyPeer{
			NamespaceSelector: &metav1.LabelSelector{}, PodSelector: withLabel("app", appName(i%appsPerTenant)),
		})...)
	}
	return c.shape("many-rules", rules)
}

// ManyPorts has one rule with port ranges of ten every twenty ports, to any peer.
func (c *Cluster) ManyPorts(n int) *networkingv1.NetworkPolicy {
	protocol := corev1.ProtocolTCP
	var ports []networkingv1.NetworkPolicyPort
	for i := range n {
		first, last := intstr.FromInt32(int32(1024+20*i)), int32(1024+20*i+9)
		ports = append(ports, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &first, EndPort: &last})
	}
	return c.shape("many-ports", to(ports))
}

// ManyBlocks has a rule to n networks, every other one IPv6, each but for a part of
// it. Block returns an address in the i-th of them.
func (c *Cluster) ManyBlocks(n int) *networkingv1.NetworkPolicy {
	var peers []networkingv1.NetworkPolicyPeer
	for i := range n {
		cidr, except := block(i)
		peers = append(peers, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr.String(), Except: []string{except.String()}}})
	}
	return c.shape("many-blocks", to([]networkingv1.NetworkPolicyPort{tcp(443)}, peers...))
}

// Block returns an address in the i-th network of ManyBlocks, or in its exception.
func Block(i int, excepted bool) netip.Addr {
	cidr, except := block(i)
	if excepted {
		return except.Addr().Next()
	}
	return cidr.Addr().Next()
}

func block(i int) (cidr, except netip.Prefix) {
	if i%2 == 0 {
		a := uint32(0x20000000 + i<<12) // a /20 each, from 32.0.0.0 on
		return netip.PrefixFrom(v4(a), 20), netip.PrefixFrom(v4(a+0x100), 24)
	}
	a := netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::", i))
	return netip.PrefixFrom(a, 48), netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:%x:1::", i)), 64)
}

func (c *Cluster) shape(name string, rules []networkingv1.NetworkPolicyEgressRule) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.tenants[0], Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: everyPod(), PolicyTypes: []networkingv1.PolicyType{"Egress"}, Egress: rules},
	}
}
