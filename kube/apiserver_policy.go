package kube

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"

	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/validation"
)

// policyRow keeps a policy's name and spec. A tree is compiled from all policies
// or from none, so what comes out of here always compiles.
func policyRow(np *networkingv1.NetworkPolicy) row[*networkingv1.NetworkPolicy] {
	own := &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{Kind: "NetworkPolicy", APIVersion: networkingv1.SchemeGroupVersion.String()},
		ObjectMeta: metav1.ObjectMeta{Namespace: np.Namespace, Name: np.Name},
		Spec:       np.Spec,
	}
	own = validation.Default(own)
	r := row[*networkingv1.NetworkPolicy]{name: policy.NamespacedName{Namespace: np.Namespace, Name: np.Name}, shown: true}
	for _, text := range mend(own) {
		r.notices = append(r.notices, notice("NetworkPolicy "+r.name.String(), text))
	}
	r.value = own
	return r
}

// mend makes a policy compile, in place, and returns what is worth telling.
func mend(np *networkingv1.NetworkPolicy) []string {
	errs := validation.NetworkPolicy(np)
	if len(errs) == 0 && compiles(np.Spec) == nil {
		return validation.Warnings(np)
	}
	m := &mending{}
	m.policy(np)
	if len(m.texts) == 0 { // all of it means something, only not to a server of today
		for _, err := range errs {
			m.texts = append(m.texts, err.Error()+"; enforced as older servers read it")
		}
	}
	return m.texts
}

// mending makes a stored policy that today's API server would refuse compile, and
// says what that costs. Rules only ever allow, so a part that cannot be understood
// is left out together with whatever it allowed; the policy still isolates.
type mending struct {
	texts []string
}

func (m *mending) leaveOut(path string, err error) {
	m.texts = append(m.texts, fmt.Sprintf("%s: %v; left out, so it allows nothing", path, err))
}

func (m *mending) policy(np *networkingv1.NetworkPolicy) {
	np.Spec.PodSelector = *possible(&np.Spec.PodSelector)
	if err := compiles(networkingv1.NetworkPolicySpec{PodSelector: np.Spec.PodSelector}); err != nil {
		m.isolate(np, err)
		return
	}
	var ingress []networkingv1.NetworkPolicyIngressRule
	for i, r := range np.Spec.Ingress {
		if from, ports, ok := m.rule(fmt.Sprintf("spec.ingress[%d]", i), "from", r.From, r.Ports); ok {
			ingress = append(ingress, networkingv1.NetworkPolicyIngressRule{From: from, Ports: ports})
		}
	}
	var egress []networkingv1.NetworkPolicyEgressRule
	for i, r := range np.Spec.Egress {
		if to, ports, ok := m.rule(fmt.Sprintf("spec.egress[%d]", i), "to", r.To, r.Ports); ok {
			egress = append(egress, networkingv1.NetworkPolicyEgressRule{To: to, Ports: ports})
		}
	}
	np.Spec.Ingress, np.Spec.Egress = ingress, egress
	if err := compiles(np.Spec); err != nil { // though each part does
		m.isolate(np, err)
	}
}

// isolate is the last resort.
func (m *mending) isolate(np *networkingv1.NetworkPolicy, err error) {
	m.texts = append(m.texts, fmt.Sprintf("%v; it is unknown which pods are meant, so every pod of the namespace is isolated", err))
	np.Spec.PodSelector = metav1.LabelSelector{}
	np.Spec.Ingress, np.Spec.Egress = nil, nil
}

// rule keeps what compiles; it returns false if nothing is left that could be
// allowed.
func (m *mending) rule(path, list string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) ([]networkingv1.NetworkPolicyPeer, []networkingv1.NetworkPolicyPort, bool) {
	peers, peersOK := m.peers(path+"."+list, peers)
	ports, portsOK := m.ports(path+".ports", ports)
	return peers, ports, peersOK && portsOK
}

// peers keeps those that compile. It returns false if there were some and none is
// left: an empty list would mean every peer.
func (m *mending) peers(path string, peers []networkingv1.NetworkPolicyPeer) ([]networkingv1.NetworkPolicyPeer, bool) {
	var kept []networkingv1.NetworkPolicyPeer
	for i, p := range peers {
		p.PodSelector, p.NamespaceSelector = possible(p.PodSelector), possible(p.NamespaceSelector)
		if err := soundPeer(&p); err != nil {
			m.leaveOut(fmt.Sprintf("%s[%d]", path, i), err)
			continue
		}
		kept = append(kept, p)
	}
	return kept, len(kept) > 0 || len(peers) == 0
}

// ports is peers for ports.
func (m *mending) ports(path string, ports []networkingv1.NetworkPolicyPort) ([]networkingv1.NetworkPolicyPort, bool) {
	var kept []networkingv1.NetworkPolicyPort
	for i, p := range ports {
		rule := networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{p}}
		if err := compiles(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule}}); err != nil {
			m.leaveOut(fmt.Sprintf("%s[%d]", path, i), err)
			continue
		}
		kept = append(kept, p)
	}
	return kept, len(kept) > 0 || len(ports) == 0
}

// soundPeer also refuses what would compile to something wider than was meant.
func soundPeer(p *networkingv1.NetworkPolicyPeer) error {
	if p.IPBlock != nil {
		if p.PodSelector != nil || p.NamespaceSelector != nil {
			return fmt.Errorf("both ipBlock and a selector")
		}
		for _, cidr := range append([]string{p.IPBlock.CIDR}, p.IPBlock.Except...) {
			if prefix, err := netip.ParsePrefix(cidr); err == nil && prefix.Addr().Is4In6() {
				return fmt.Errorf("ipBlock: %s is an IPv4-mapped IPv6 range, which means different things to different programs", cidr)
			}
		}
	}
	rule := networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{*p}}
	return compiles(networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule}})
}

// compiles asks the compiler itself, so that the two cannot disagree.
func compiles(spec networkingv1.NetworkPolicySpec) error {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "stored", Name: "policy"}, Spec: spec}
	return policy.Check(np)
}

// impossible selects nothing: a label that is there and is not.
var impossible = []metav1.LabelSelectorRequirement{
	{Key: "netverdict", Operator: metav1.LabelSelectorOpExists},
	{Key: "netverdict", Operator: metav1.LabelSelectorOpDoesNotExist},
}

// possible rewrites a selector without the label values that no object can have.
// Servers once accepted those in selectors, and what such a selector selects is
// beyond doubt.
func possible(s *metav1.LabelSelector) *metav1.LabelSelector {
	if s == nil {
		return nil
	}
	out := &metav1.LabelSelector{MatchLabels: s.MatchLabels}
	for _, value := range s.MatchLabels {
		if !labelValue(value) {
			return &metav1.LabelSelector{MatchExpressions: impossible}
		}
	}
	for _, r := range s.MatchExpressions {
		valid := slices.DeleteFunc(slices.Clone(r.Values), func(v string) bool { return !labelValue(v) })
		switch {
		case len(valid) > 0 || len(r.Values) == 0:
			r.Values = valid
			out.MatchExpressions = append(out.MatchExpressions, r)
		case r.Operator == metav1.LabelSelectorOpIn:
			return &metav1.LabelSelector{MatchExpressions: impossible}
		case r.Operator == metav1.LabelSelectorOpNotIn: // always true
		default:
			out.MatchExpressions = append(out.MatchExpressions, r)
		}
	}
	return out
}

func labelValue(v string) bool { return len(utilvalidation.IsValidLabelValue(v)) == 0 }
