package validation

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Warnings lists what a policy may say without meaning it: CIDRs with bits beyond
// their prefix length, and rules of a direction that policyTypes leaves out.
// Each starts with the path of its field. The policy must be valid.
func Warnings(np *networkingv1.NetworkPolicy) []string {
	var out []string
	spec := field.NewPath("spec")
	for i, rule := range np.Spec.Ingress {
		out = append(out, peerWarnings(rule.From, spec.Child("ingress").Index(i).Child("from"))...)
	}
	for i, rule := range np.Spec.Egress {
		out = append(out, peerWarnings(rule.To, spec.Child("egress").Index(i).Child("to"))...)
	}
	types := np.Spec.PolicyTypes
	if len(types) == 0 {
		return out // the defaults include every direction that has rules
	}
	if len(np.Spec.Ingress) > 0 && !slices.Contains(types, networkingv1.PolicyTypeIngress) {
		out = append(out, "spec.ingress: has no effect because spec.policyTypes does not list Ingress")
	}
	if len(np.Spec.Egress) > 0 && !slices.Contains(types, networkingv1.PolicyTypeEgress) {
		out = append(out, "spec.egress: has no effect because spec.policyTypes does not list Egress")
	}
	return out
}

func peerWarnings(peers []networkingv1.NetworkPolicyPeer, path *field.Path) []string {
	var out []string
	for i := range peers {
		block := peers[i].IPBlock
		if block == nil {
			continue
		}
		p := path.Index(i).Child("ipBlock")
		out = append(out, hostBits(block.CIDR, p.Child("cidr"))...)
		for j, except := range block.Except {
			out = append(out, hostBits(except, p.Child("except").Index(j))...)
		}
	}
	return out
}

func hostBits(value string, path *field.Path) []string {
	prefix, err := netip.ParsePrefix(value)
	if err != nil || prefix == prefix.Masked() {
		return nil
	}
	return []string{fmt.Sprintf("%s: %s has bits set beyond its prefix length and is read as %s; Kubernetes 1.36 refuses it in new objects", path, value, prefix.Masked())}
}
