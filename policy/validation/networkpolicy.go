// Package validation tells what a Kubernetes 1.36 API server would refuse in the
// objects a decision is made from, and fills in what it would default.
//
// Manifests that never saw an API server get the checks they would have got
// there, so that a policy that a cluster refuses is not enforced here with some
// other meaning. The rules are those of the API reference and of the server's
// NetworkPolicy validation; errors carry its field paths and wording.
//
// CIDRs follow KEP-4858 (StrictIPCIDRValidation, on by default from 1.36) with
// one deliberate difference:
//
//   - Leading zeros (010.0.0.0/8) and IPv4-mapped IPv6 (::ffff:10.0.0.0/104) are
//     refused: programs disagree about what they mean.
//   - Bits beyond the prefix length (10.0.0.5/8) are accepted and mean the masked
//     network. 1.36 refuses them in new objects, but keeps serving those stored
//     earlier, so they occur in every dump of an older cluster, and the meaning is
//     beyond doubt. Warnings names them.
//
// Whatever NetworkPolicy accepts parses with netip.ParsePrefix; callers mask it.
//
// The package is pure: no I/O, no goroutines, no client.
package validation

import (
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// NetworkPolicy lists everything an API server would refuse in a new policy,
// except for the CIDRs of the package comment. It accepts policies with and
// without API defaults. The order of the errors is deterministic.
func NetworkPolicy(np *networkingv1.NetworkPolicy) field.ErrorList {
	errs := apivalidation.ValidateObjectMeta(&np.ObjectMeta, true, apivalidation.NameIsDNSSubdomain, field.NewPath("metadata"))
	return ordered(append(errs, networkPolicySpec(&np.Spec, field.NewPath("spec"))...))
}

func networkPolicySpec(spec *networkingv1.NetworkPolicySpec, path *field.Path) field.ErrorList {
	errs := labelSelector(&spec.PodSelector, path.Child("podSelector"))
	for i, rule := range spec.Ingress {
		p := path.Child("ingress").Index(i)
		errs = append(errs, policyPorts(rule.Ports, p.Child("ports"))...)
		errs = append(errs, policyPeers(rule.From, p.Child("from"))...)
	}
	for i, rule := range spec.Egress {
		p := path.Child("egress").Index(i)
		errs = append(errs, policyPorts(rule.Ports, p.Child("ports"))...)
		errs = append(errs, policyPeers(rule.To, p.Child("to"))...)
	}
	return append(errs, policyTypes(spec.PolicyTypes, path.Child("policyTypes"))...)
}

// policyTypes allows the two types in any order, and even one of them twice: the
// API limits only their number.
func policyTypes(types []networkingv1.PolicyType, path *field.Path) field.ErrorList {
	known := []networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress}
	if len(types) > len(known) {
		return field.ErrorList{field.Invalid(path, types, "may not specify more than two policyTypes")}
	}
	var errs field.ErrorList
	for i, t := range types {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			errs = append(errs, field.NotSupported(path.Index(i), t, known))
		}
	}
	return errs
}

func policyPeers(peers []networkingv1.NetworkPolicyPeer, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range peers {
		errs = append(errs, policyPeer(&peers[i], path.Index(i))...)
	}
	return errs
}

func policyPeer(peer *networkingv1.NetworkPolicyPeer, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	selects := peer.PodSelector != nil || peer.NamespaceSelector != nil
	switch {
	case !selects && peer.IPBlock == nil:
		errs = append(errs, field.Required(path, "must specify a peer"))
	case selects && peer.IPBlock != nil:
		errs = append(errs, field.Forbidden(path, "may not specify both ipBlock and another peer"))
	}
	if peer.PodSelector != nil {
		errs = append(errs, labelSelector(peer.PodSelector, path.Child("podSelector"))...)
	}
	if peer.NamespaceSelector != nil {
		errs = append(errs, labelSelector(peer.NamespaceSelector, path.Child("namespaceSelector"))...)
	}
	if peer.IPBlock != nil {
		errs = append(errs, ipBlock(peer.IPBlock, path.Child("ipBlock"))...)
	}
	return errs
}

func labelSelector(s *metav1.LabelSelector, path *field.Path) field.ErrorList {
	// The zero options are those of a new object: no invalid values, no unknown
	// operators.
	return metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, path)
}
