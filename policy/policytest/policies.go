package policytest

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/policy"
)

// networkPolicy draws one more policy for the snapshot.
func (g *generator) networkPolicy() *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: g.freshPolicyName(),
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{}},
	}
	if g.chance(65) {
		np.Spec.PodSelector = *g.selector(podKeys, labelValues)
	}
	np.Spec.PolicyTypes = g.policyTypes()
	np.Spec.Ingress = g.ingress()
	np.Spec.Egress = g.egress()
	return np
}

func (g *generator) freshPolicyName() metav1.ObjectMeta {
	used := func(ns, name string) bool {
		return slices.ContainsFunc(g.s.Policies, func(p *networkingv1.NetworkPolicy) bool {
			return p.Namespace == ns && p.Name == name
		})
	}
	for {
		ns := namespaceName(g.rng.IntN(g.size.Namespaces))
		name := fmt.Sprintf("policy-%d", g.rng.IntN(10*g.size.Policies+10))
		if !used(ns, name) {
			return metav1.ObjectMeta{Namespace: ns, Name: name}
		}
	}
}

// policyTypes draws an explicit or an absent list, independent of the rules that
// follow: rules of a direction that is not listed must be ignored.
func (g *generator) policyTypes() []networkingv1.PolicyType {
	const in, out = networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress
	switch n := g.rng.IntN(100); {
	case n < 35:
		return nil
	case n < 40:
		return []networkingv1.PolicyType{}
	case n < 60:
		return []networkingv1.PolicyType{in}
	case n < 75:
		return []networkingv1.PolicyType{out}
	case n < 90:
		return []networkingv1.PolicyType{in, out}
	}
	return []networkingv1.PolicyType{out, in}
}

// ruleCount draws -1 for an absent list, 0 for an empty one, or up to 3 rules.
func (g *generator) ruleCount() int {
	switch n := g.rng.IntN(100); {
	case n < 20:
		return -1
	case n < 30:
		return 0
	}
	return 1 + g.rng.IntN(3)
}

func (g *generator) ingress() []networkingv1.NetworkPolicyIngressRule {
	n := g.ruleCount()
	if n < 0 {
		return nil
	}
	rules := make([]networkingv1.NetworkPolicyIngressRule, n)
	for i := range rules {
		rules[i].Ports, rules[i].From = g.ruleParts()
	}
	return rules
}

func (g *generator) egress() []networkingv1.NetworkPolicyEgressRule {
	n := g.ruleCount()
	if n < 0 {
		return nil
	}
	rules := make([]networkingv1.NetworkPolicyEgressRule, n)
	for i := range rules {
		rules[i].Ports, rules[i].To = g.ruleParts()
	}
	return rules
}

// ruleParts draws the ports and peers of one rule; one in twelve rules is {}.
func (g *generator) ruleParts() ([]networkingv1.NetworkPolicyPort, []networkingv1.NetworkPolicyPeer) {
	if g.chance(8) {
		return nil, nil
	}
	return listOf(g, 45, g.port), listOf(g, 15, g.peer)
}

// listOf draws an absent or empty list in the given percentage of cases, one to
// three elements otherwise.
func listOf[T any](g *generator, emptyPercent int, draw func() T) []T {
	if g.chance(emptyPercent) {
		if g.chance(30) {
			return []T{}
		}
		return nil
	}
	list := make([]T, 1+g.rng.IntN(3))
	for i := range list {
		list[i] = draw()
	}
	return list
}

func (g *generator) peer() networkingv1.NetworkPolicyPeer {
	pods := func() *metav1.LabelSelector { return g.selector(podKeys, labelValues) }
	switch n := g.rng.IntN(100); {
	case n < 30:
		return networkingv1.NetworkPolicyPeer{PodSelector: pods()}
	case n < 50:
		return networkingv1.NetworkPolicyPeer{NamespaceSelector: g.namespaceSelector()}
	case n < 70:
		return networkingv1.NetworkPolicyPeer{PodSelector: pods(), NamespaceSelector: g.namespaceSelector()}
	}
	return networkingv1.NetworkPolicyPeer{IPBlock: g.ipBlock()}
}

// selector draws a valid selector over the given keys and values.
func (g *generator) selector(keys, values []string) *metav1.LabelSelector {
	sel := &metav1.LabelSelector{}
	switch n := g.rng.IntN(100); {
	case n < 15: // {} selects everything
	case n < 55:
		sel.MatchLabels = map[string]string{pick(g.rng, keys): pick(g.rng, values)}
	case n < 90:
		sel.MatchExpressions = []metav1.LabelSelectorRequirement{g.requirement(keys, values)}
	default:
		sel.MatchLabels = map[string]string{pick(g.rng, keys): pick(g.rng, values)}
		sel.MatchExpressions = []metav1.LabelSelectorRequirement{g.requirement(keys, values), g.requirement(keys, values)}
	}
	return sel
}

func (g *generator) requirement(keys, values []string) metav1.LabelSelectorRequirement {
	r := metav1.LabelSelectorRequirement{Key: pick(g.rng, keys)}
	r.Operator = pick(g.rng, []metav1.LabelSelectorOperator{
		metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn,
		metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist,
	})
	if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
		for range 1 + g.rng.IntN(2) {
			r.Values = append(r.Values, pick(g.rng, values))
		}
	}
	return r
}

// namespaceSelector asks for ordinary labels or for the name that every
// namespace carries as a label.
func (g *generator) namespaceSelector() *metav1.LabelSelector {
	if !g.chance(30) {
		return g.selector(namespaceKeys, labelValues)
	}
	var names []string
	for i := range g.size.Namespaces {
		names = append(names, namespaceName(i))
	}
	return g.selector([]string{metadataName}, names)
}

func (g *generator) port() networkingv1.NetworkPolicyPort {
	var p networkingv1.NetworkPolicyPort
	if g.chance(60) {
		protocol := corev1.Protocol(pick(g.rng, transports).String())
		p.Protocol = &protocol
	}
	switch n := g.rng.IntN(100); {
	case n < 15: // every port of the protocol
	case n < 40:
		p.Port = new(intstr.FromInt32(int32(g.portNumber())))
	case n < 65:
		p.Port = new(intstr.FromString(g.portName()))
	default:
		first, last := g.portRange()
		p.Port, p.EndPort = new(intstr.FromInt32(first)), &last
	}
	return p
}

func (g *generator) portName() string {
	if g.chance(15) {
		return missingPortName
	}
	return pick(g.rng, portNames)
}

func (g *generator) portNumber() uint16 { return pick(g.rng, portNumbers) }

// portRange draws ranges that nest, overlap, touch and hold a single port.
func (g *generator) portRange() (first, last int32) {
	switch n := g.rng.IntN(100); {
	case n < 10:
		return 1, 65535
	case n < 25: // touches or overlaps its neighbours, which begin at the multiples of ten
		first = 10 * int32(1+g.rng.IntN(12))
		return first, first + 9 + int32(g.rng.IntN(3))
	}
	a, b := int32(g.portNumber()), int32(g.portNumber())
	return min(a, b), max(a, b)
}

// ipBlock draws a block around an address that matters, with up to three
// exceptions, each strictly inside, as the API demands.
func (g *generator) ipBlock() *networkingv1.IPBlock {
	a := pick(g.rng, interestingAddrs(g.s))
	lengths := []int{0, 8, 16, 24, 28, 30, 31, 32}
	if a.Is6() {
		lengths = []int{0, 16, 48, 64, 112, 124, 127, 128}
	}
	block := netip.PrefixFrom(a, pick(g.rng, lengths))
	b := &networkingv1.IPBlock{CIDR: g.cidr(block)}
	if block.IsSingleIP() || g.chance(40) {
		return b
	}
	for range 1 + g.rng.IntN(3) {
		b.Except = append(b.Except, g.cidr(g.inside(block)))
	}
	return b
}

// cidr keeps the host bits in one case of four: API servers take them, and they
// do not count.
func (g *generator) cidr(p netip.Prefix) string {
	if g.chance(25) {
		return p.String()
	}
	return p.Masked().String()
}

// inside draws a prefix strictly inside p: around one of the addresses that
// matter if one is in there, else around the first address of p.
func (g *generator) inside(p netip.Prefix) netip.Prefix {
	within := slices.DeleteFunc(interestingAddrs(g.s), func(a netip.Addr) bool { return !p.Contains(a) })
	around := p.Masked().Addr()
	if len(within) > 0 {
		around = pick(g.rng, within)
	}
	bits := min(p.Bits()+1+g.rng.IntN(9), around.BitLen())
	if g.chance(30) {
		bits = around.BitLen()
	}
	return netip.PrefixFrom(around, bits)
}

// interestingAddrs are the addresses of all pods and nodes, and some of nobody.
func interestingAddrs(s *policy.Snapshot) []netip.Addr {
	addrs := slices.Clone(outside)
	for _, p := range s.Pods {
		addrs = append(addrs, p.Addrs...)
		addrs = append(addrs, p.HostAddrs...)
	}
	for _, n := range s.Nodes {
		addrs = append(addrs, n.Addrs...)
	}
	return addrs
}
