package flow

import (
	"encoding/json"

	"github.com/netverdict/netverdict/policy"
)

// OutcomeJSON is one direction's part of a decision as every JSON output of
// netverdict shows it: the flow log and the eval verb.
type OutcomeJSON struct {
	Verdict policy.Verdict `json:"verdict"`
	Reason  policy.Reason  `json:"reason"`
	// Policy ("namespace/name") and Rule are there when Reason is ReasonPolicy.
	Policy string `json:"policy,omitempty"`
	Rule   *int   `json:"rule,omitempty"`
	// IsolatedBy lists policies as "namespace/name" when Reason is
	// ReasonDefaultDeny.
	IsolatedBy []string `json:"isolatedBy,omitempty"`
	// OverLimit lists those of them whose rules are left out because they expand too
	// much.
	OverLimit []string `json:"overLimit,omitempty"`
}

// NewOutcome renders o; nil gives nil.
func NewOutcome(o *policy.Outcome) *OutcomeJSON {
	if o == nil {
		return nil
	}
	j := &OutcomeJSON{Verdict: o.Reported(), Reason: o.Reason}
	switch o.Reason {
	case policy.ReasonPolicy:
		rule := o.Rule
		j.Policy, j.Rule = o.Policy.String(), &rule
	case policy.ReasonDefaultDeny:
		j.IsolatedBy, j.OverLimit = policyNames(o.IsolatedBy), policyNames(o.OverLimit)
	}
	return j
}

func policyNames(refs []policy.PolicyRef) []string {
	var list []string
	for _, ref := range refs {
		list = append(list, ref.String())
	}
	return list
}

// MarshalJSON renders the object with the package's escaping.
func (o OutcomeJSON) MarshalJSON() ([]byte, error) { return o.appendJSON(nil), nil }

var _ json.Marshaler = OutcomeJSON{}

func (o *OutcomeJSON) appendJSON(b []byte) []byte {
	b = append(b, '{')
	b = appendStringField(b, "verdict", o.Verdict.String())
	b = appendStringField(b, "reason", o.Reason.String())
	b = o.appendCause(b)
	return append(b, '}')
}

// appendCause appends the fields that say which policies were behind it.
func (o *OutcomeJSON) appendCause(b []byte) []byte {
	if o.Policy != "" {
		b = appendStringField(b, "policy", o.Policy)
	}
	if o.Rule != nil {
		b = appendIntField(b, "rule", int64(*o.Rule))
	}
	return appendNames(appendNames(b, "isolatedBy", o.IsolatedBy), "overLimit", o.OverLimit)
}

func appendNames(b []byte, key string, names []string) []byte {
	if len(names) == 0 {
		return b
	}
	b = append(appendKey(b, key), '[')
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, name)
	}
	return append(b, ']')
}
