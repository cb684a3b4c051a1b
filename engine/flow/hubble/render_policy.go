package hubble

import (
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/netverdict/netverdict/policy"
)

// ruleLabel carries the index of a rule on the Policy that has it.
const ruleLabel = "netverdict.io/rule"

// Rule returns the index of the deciding rule in spec.ingress or spec.egress of a
// flow's policy. ok is false for a policy that isolates the pod, and none of whose
// rules decided.
func Rule(p *flowpb.Policy) (rule int, ok bool) {
	for _, l := range p.GetLabels() {
		if text, found := strings.CutPrefix(l, ruleLabel+"="); found {
			n, err := strconv.Atoi(text)
			return n, err == nil && n >= 0
		}
	}
	return 0, false
}

// reasonLabels carry the reason of each direction in policy_log.
var reasonLabels = map[policy.Direction]string{
	policy.Egress:  "netverdict.io/egress",
	policy.Ingress: "netverdict.io/ingress",
}

// Reason returns why a flow was decided as it was in one direction, or
// policy.ReasonUnknown if it is not a flow of netverdict.
func Reason(f *flowpb.Flow, d policy.Direction) policy.Reason {
	for _, l := range f.GetPolicyLog() {
		if text, found := strings.CutPrefix(l, reasonLabels[d]+"="); found {
			var r policy.Reason
			if r.UnmarshalText([]byte(text)) == nil {
				return r
			}
		}
	}
	return policy.ReasonUnknown
}

func reasonsOf(e *event) []string {
	var all []string
	for _, d := range policy.Directions {
		all = append(all, reasonLabels[d]+"="+e.outcome(d).Reason.String())
	}
	return all
}

// addPolicies fills in the policies behind both directions, whichever of them
// settled the verdict.
func addPolicies(f *flowpb.Flow, e *event) {
	egress, ingress := policiesOf(e, policy.Egress), policiesOf(e, policy.Ingress)
	if e.Decision.Egress.Verdict == policy.Allow {
		f.EgressAllowedBy = egress
	} else {
		f.EgressDeniedBy = egress
	}
	if e.Decision.Ingress.Verdict == policy.Allow {
		f.IngressAllowedBy = ingress
	} else {
		f.IngressDeniedBy = ingress
	}
}

// policiesOf lists the policy whose rule decided, or those that isolate the pod.
func policiesOf(e *event, d policy.Direction) []*flowpb.Policy {
	o := e.outcome(d)
	switch o.Reason {
	case policy.ReasonPolicy:
		p := newPolicy(o.Policy, e.Revision)
		p.Labels = []string{ruleLabel + "=" + strconv.Itoa(o.Rule)}
		return []*flowpb.Policy{p}
	case policy.ReasonDefaultDeny:
		all := make([]*flowpb.Policy, len(o.IsolatedBy))
		for i, ref := range o.IsolatedBy {
			all[i] = newPolicy(ref, e.Revision)
		}
		return all
	}
	return nil
}

func newPolicy(ref policy.PolicyRef, revision uint64) *flowpb.Policy {
	return &flowpb.Policy{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name, Revision: revision}
}

// shownPolicies bounds the names in a summary; the flow has all of them.
const shownPolicies = 3

// why is a direction's reason in words.
func why(o *policy.Outcome) string {
	switch o.Reason {
	case policy.ReasonPolicy:
		return "policy " + o.Policy.String() + " rule " + strconv.Itoa(o.Rule)
	case policy.ReasonDefaultDeny:
		var names []string
		for _, ref := range o.IsolatedBy[:min(len(o.IsolatedBy), shownPolicies)] {
			names = append(names, ref.String())
		}
		text := "default-deny by " + strings.Join(names, ", ")
		if more := len(o.IsolatedBy) - len(names); more > 0 {
			text += " and " + strconv.Itoa(more) + " more"
		}
		if len(o.OverLimit) > 0 {
			text += "; over a limit, so without rules: " + o.OverLimit[0].String()
		}
		return text
	}
	return o.Reason.String()
}
