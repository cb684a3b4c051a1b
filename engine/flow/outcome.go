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
		j.IsolatedBy = make([]string, len(o.IsolatedBy))
		for i, ref := range o.IsolatedBy {
			j.IsolatedBy[i] = ref.String()
		}
	}
	return j
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
	if len(o.IsolatedBy) > 0 {
		b = appendKey(b, "isolatedBy")
		b = append(b, '[')
		for i, name := range o.IsolatedBy {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, name)
		}
		b = append(b, ']')
	}
	return b
}
