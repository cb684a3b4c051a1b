package oracle

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/policy"
)

// rule is what an ingress and an egress rule have in common.
type rule struct {
	ports []networkingv1.NetworkPolicyPort
	peers []networkingv1.NetworkPolicyPeer
}

// judge asks the policies about the pod me in one direction.
//
// API, spec.ingress: "Traffic is allowed to a pod if there are no NetworkPolicies
// selecting the pod […], OR if the traffic source is the pod's local node, OR if
// the traffic matches at least one ingress rule across all of the NetworkPolicy
// objects whose podSelector matches the pod." spec.egress says the same of egress.
func judge(s *policy.Snapshot, dir policy.Direction, me, peer end, c connection) *policy.Outcome {
	isolating := policiesFor(s, dir, me.pod)
	if len(isolating) == 0 {
		return allow(policy.ReasonNoPolicy)
	}
	for _, np := range isolating {
		for i, r := range rulesOf(np, dir) {
			// API, NetworkPolicyIngressRule: "The traffic must match both ports and from."
			if portsMatch(r.ports, c) && peersMatch(s, np.Namespace, r.peers, peer) {
				return &policy.Outcome{Verdict: policy.Allow, Reason: policy.ReasonPolicy, Policy: refOf(np), Rule: i}
			}
		}
	}
	denied := &policy.Outcome{Verdict: policy.Deny, Reason: policy.ReasonDefaultDeny, Audit: isAudited(s, me.pod.Namespace), Denial: denialOf(s, me.pod.Namespace)}
	for _, np := range isolating {
		denied.IsolatedBy = append(denied.IsolatedBy, refOf(np))
	}
	return denied
}

// isAudited reports whether the pods of a namespace are judged for the record only.
func isAudited(s *policy.Snapshot, namespace string) bool {
	return slices.ContainsFunc(s.Namespaces, func(n *policy.Namespace) bool { return n.Name == namespace && n.Audit })
}

// denialOf is how a namespace wants to deny.
func denialOf(s *policy.Snapshot, namespace string) policy.Denial {
	for _, n := range s.Namespaces {
		if n.Name == namespace {
			return n.Denial
		}
	}
	return policy.DenialUnset
}

func refOf(np *networkingv1.NetworkPolicy) policy.PolicyRef {
	return policy.PolicyRef{
		Kind:           "NetworkPolicy",
		NamespacedName: policy.NamespacedName{Namespace: np.Namespace, Name: np.Name},
	}
}

// policiesFor lists the policies that isolate a pod in one direction, by
// namespace and name.
//
// Concept page: "A pod is isolated for egress if there is any NetworkPolicy that
// both selects the pod and has "Egress" in its policyTypes"; likewise ingress.
func policiesFor(s *policy.Snapshot, dir policy.Direction, pod *policy.Pod) []*networkingv1.NetworkPolicy {
	var found []*networkingv1.NetworkPolicy
	for _, np := range s.Policies {
		// API, spec.podSelector: "An empty selector matches all pods in the policy's
		// namespace."
		if np.Namespace == pod.Namespace && hasType(np, dir) && selects(&np.Spec.PodSelector, pod.Labels) {
			found = append(found, np)
		}
	}
	slices.SortFunc(found, func(a, b *networkingv1.NetworkPolicy) int {
		return refOf(a).Compare(refOf(b).NamespacedName)
	})
	return found
}

// hasType applies the default of policyTypes.
//
// API, spec.policyTypes: "If this field is not specified, it will default based on
// the existence of ingress or egress rules; policies that contain an egress section
// are assumed to affect egress, and all policies (whether or not they contain an
// ingress section) are assumed to affect ingress." The API server takes an empty
// egress list for no egress section.
func hasType(np *networkingv1.NetworkPolicy, dir policy.Direction) bool {
	if len(np.Spec.PolicyTypes) == 0 {
		return dir == policy.Ingress || len(np.Spec.Egress) > 0
	}
	want := networkingv1.PolicyTypeEgress
	if dir == policy.Ingress {
		want = networkingv1.PolicyTypeIngress
	}
	return slices.Contains(np.Spec.PolicyTypes, want)
}

func rulesOf(np *networkingv1.NetworkPolicy, dir policy.Direction) []rule {
	var rules []rule
	if dir == policy.Ingress {
		for _, r := range np.Spec.Ingress {
			rules = append(rules, rule{ports: r.Ports, peers: r.From})
		}
		return rules
	}
	for _, r := range np.Spec.Egress {
		rules = append(rules, rule{ports: r.Ports, peers: r.To})
	}
	return rules
}

// portsMatch implements a rule's ports.
//
// API: "Each item in this list is combined using a logical OR. If this field is
// empty or missing, this rule matches all ports (traffic not restricted by port)."
// DESIGN: "ICMP and other protocols: allowed only by rules without ports".
func portsMatch(ports []networkingv1.NetworkPolicyPort, c connection) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		return portMatches(p, c)
	})
}

// portMatches implements NetworkPolicyPort.
func portMatches(p networkingv1.NetworkPolicyPort, c connection) bool {
	// "protocol represents the protocol (TCP, UDP, or SCTP) which traffic must
	// match. If not specified, this field defaults to TCP."
	protocol := "TCP"
	if p.Protocol != nil {
		protocol = string(*p.Protocol)
	}
	if protocol != c.proto.String() {
		return false
	}
	// "port represents the port on the given protocol. This can either be a
	// numerical or named port on a pod. If this field is not provided, this matches
	// all port names and numbers."
	if p.Port == nil {
		return true
	}
	if p.Port.Type == intstr.String {
		return namedPortMatches(p.Port.StrVal, c)
	}
	// "endPort indicates that the range of ports from port to endPort if set,
	// inclusive, should be allowed by the policy."
	last := p.Port.IntVal
	if p.EndPort != nil {
		last = *p.EndPort
	}
	return p.Port.IntVal <= int32(c.port) && int32(c.port) <= last
}

// namedPortMatches looks a port name up on the destination pod.
//
// DESIGN: "resolved on the destination pod: name and protocol; may be several
// numbers; never matches an external address".
func namedPortMatches(name string, c connection) bool {
	return c.dst.pod != nil && slices.ContainsFunc(c.dst.pod.Ports, func(p policy.ContainerPort) bool {
		return p.Name == name && p.Protocol == c.proto && p.Port == c.port
	})
}

// peersMatch implements a rule's from or to.
//
// API: "Items in this list are combined using a logical OR operation. If this
// field is empty or missing, this rule matches all sources (traffic not restricted
// by source)."
func peersMatch(s *policy.Snapshot, namespace string, peers []networkingv1.NetworkPolicyPeer, e end) bool {
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
		return peerMatches(s, namespace, p, e)
	})
}

// peerMatches implements NetworkPolicyPeer; namespace is the policy's own.
func peerMatches(s *policy.Snapshot, namespace string, p networkingv1.NetworkPolicyPeer, e end) bool {
	// "If this field is set then neither of the other fields can be."
	if p.IPBlock != nil {
		return blockContains(p.IPBlock, e.addr)
	}
	if e.pod == nil {
		return false
	}
	// "If namespaceSelector is also set, then the NetworkPolicyPeer as a whole
	// selects the pods matching podSelector in the Namespaces selected by
	// NamespaceSelector. Otherwise it selects the pods matching podSelector in the
	// policy's own namespace."
	if p.NamespaceSelector == nil {
		return e.pod.Namespace == namespace && selects(p.PodSelector, e.pod.Labels)
	}
	// "If podSelector is also set, then […]. Otherwise it selects all pods in the
	// namespaces selected by namespaceSelector."
	return selects(p.NamespaceSelector, namespaceLabels(s, e.pod.Namespace)) &&
		(p.PodSelector == nil || selects(p.PodSelector, e.pod.Labels))
}

// blockContains implements IPBlock. Host bits in a CIDR do not count, as in
// net.ParseCIDR, which API servers use.
//
// API: "except is a slice of CIDRs that should not be included within an IPBlock".
func blockContains(b *networkingv1.IPBlock, addr netip.Addr) bool {
	return cidrContains(b.CIDR, addr) && !slices.ContainsFunc(b.Except, func(except string) bool {
		return cidrContains(except, addr)
	})
}

func cidrContains(cidr string, addr netip.Addr) bool {
	_, network, err := net.ParseCIDR(cidr)
	if err != nil {
		panic(fmt.Sprintf("oracle: snapshot was not validated: %v", err))
	}
	return network.Contains(addr.AsSlice())
}

// namespaceLabels is what a namespaceSelector sees. A namespace without an object
// (manifests may leave it out) has only the label of its name.
//
// Concept page: "The Kubernetes control plane sets an immutable label
// kubernetes.io/metadata.name on all namespaces, the value of the label is the
// namespace name."
func namespaceLabels(s *policy.Snapshot, name string) map[string]string {
	set := map[string]string{}
	for _, ns := range s.Namespaces {
		if ns.Name == name {
			for k, v := range ns.Labels {
				set[k] = v
			}
		}
	}
	set["kubernetes.io/metadata.name"] = name
	return set
}

// selects applies a label selector. nil selects nothing: callers ask only for
// selectors that are present.
func selects(sel *metav1.LabelSelector, set map[string]string) bool {
	compiled, err := metav1.LabelSelectorAsSelector(sel)
	if err != nil {
		panic(fmt.Sprintf("oracle: snapshot was not validated: %v", err))
	}
	return compiled.Matches(labels.Set(set))
}
