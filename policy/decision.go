package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// Verdict is what happens to a connection. The zero Verdict is Deny, so a
// forgotten assignment never opens anything.
type Verdict uint8

const (
	Deny Verdict = iota
	Allow
	// Audit is what reports call a connection, or one end's say in it, that
	// policies deny and that passes all the same, because the namespace they are
	// in is only audited. No Decision and no Outcome has it as its Verdict; their
	// Reported returns it.
	Audit
)

func (v Verdict) String() string {
	switch v {
	case Allow:
		return "allow"
	case Audit:
		return "audit"
	}
	return "deny"
}

// MarshalText renders the verdict as "allow", "deny" or "audit".
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText accepts exactly what MarshalText renders.
func (v *Verdict) UnmarshalText(b []byte) error {
	switch string(b) {
	case "allow":
		*v = Allow
	case "deny":
		*v = Deny
	case "audit":
		*v = Audit
	default:
		return fmt.Errorf("verdict %q is none of allow, deny and audit", b)
	}
	return nil
}

// Denial is how the sender of a denied packet learns of it.
type Denial uint8

const (
	// DenialUnset leaves it to whoever enforces.
	DenialUnset Denial = iota
	// DenialDrop is silence.
	DenialDrop
	// DenialReject is an answer: a TCP reset, else an ICMP error.
	DenialReject
)

func (d Denial) String() string {
	switch d {
	case DenialDrop:
		return "drop"
	case DenialReject:
		return "reject"
	}
	return "unset"
}

// MarshalText renders the denial as String does.
func (d Denial) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText accepts drop and reject: who says something must not say nothing.
func (d *Denial) UnmarshalText(b []byte) error {
	switch string(b) {
	case "drop":
		*d = DenialDrop
	case "reject":
		*d = DenialReject
	default:
		return fmt.Errorf("%q is neither drop nor reject", b)
	}
	return nil
}

// Direction says whose rules are asked: Egress is judged for the source pod,
// Ingress for the destination pod. Both ends must allow.
type Direction uint8

const (
	Egress Direction = iota
	Ingress
)

// Directions lists both in the order in which a packet meets them.
var Directions = [...]Direction{Egress, Ingress}

func (d Direction) String() string {
	if d == Ingress {
		return "ingress"
	}
	return "egress"
}

// MarshalText renders the direction as "egress" or "ingress".
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText accepts exactly what MarshalText renders.
func (d *Direction) UnmarshalText(b []byte) error {
	switch string(b) {
	case "egress":
		*d = Egress
	case "ingress":
		*d = Ingress
	default:
		return fmt.Errorf("direction %q is neither egress nor ingress", b)
	}
	return nil
}

// Protocol is an IANA protocol number, as in the IPv4 protocol field or the
// last IPv6 next header. Numbers: IANA "Assigned Internet Protocol Numbers".
type Protocol uint8

const (
	ICMP   Protocol = 1
	TCP    Protocol = 6
	UDP    Protocol = 17
	ICMPv6 Protocol = 58
	SCTP   Protocol = 132
)

func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "ICMP"
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case ICMPv6:
		return "ICMPv6"
	case SCTP:
		return "SCTP"
	}
	return strconv.Itoa(int(p))
}

// HasPorts reports whether NetworkPolicy knows the protocol and can select its
// ports: TCP, UDP and SCTP (NetworkPolicyPort.protocol).
func (p Protocol) HasPorts() bool { return p == TCP || p == UDP || p == SCTP }

// ParseProtocol reads a name as String prints it, in any case, or a number 0–255.
func ParseProtocol(s string) (Protocol, error) {
	for _, p := range [...]Protocol{TCP, UDP, SCTP, ICMP, ICMPv6} {
		if strings.EqualFold(s, p.String()) {
			return p, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("protocol %q: want TCP, UDP, SCTP, ICMP, ICMPv6 or a number 0–255", s)
	}
	return Protocol(n), nil
}

// MarshalText renders the protocol as String does.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what ParseProtocol reads.
func (p *Protocol) UnmarshalText(b []byte) (err error) {
	*p, err = ParseProtocol(string(b))
	return err
}

// Reason is why an outcome is what it is.
type Reason uint8

const (
	// ReasonUnknown is the zero Reason; no decision carries it.
	ReasonUnknown Reason = iota
	// ReasonPolicy: a rule of a policy matched; Outcome.Policy and Rule name it.
	ReasonPolicy
	// ReasonDefaultDeny: policies isolate the pod and none of their rules
	// matched; Outcome.IsolatedBy names them.
	ReasonDefaultDeny
	// ReasonNoPolicy: no policy isolates the pod in this direction.
	ReasonNoPolicy
	// ReasonNodeTraffic: the judged end is a node (or a host-network pod), or
	// the two ends are a pod and the node it runs on.
	ReasonNodeTraffic
	// ReasonSelf: a pod talks to itself, perhaps through its own Service.
	ReasonSelf
	// ReasonExternal: the judged end is no pod, so it has no rules here.
	ReasonExternal
	// ReasonNotLocal: the judged end is a pod of another node, which decides there.
	ReasonNotLocal
	// ReasonUnknownPod: the address belongs to this node's pod range, but no
	// known pod holds it (yet).
	ReasonUnknownPod
	// ReasonMalformed: the packet could not be decoded.
	ReasonMalformed
)

var reasonNames = [...]string{
	ReasonUnknown:     "unknown",
	ReasonPolicy:      "policy",
	ReasonDefaultDeny: "default-deny",
	ReasonNoPolicy:    "no-policy",
	ReasonNodeTraffic: "node-traffic",
	ReasonSelf:        "self",
	ReasonExternal:    "external",
	ReasonNotLocal:    "not-local",
	ReasonUnknownPod:  "unknown-pod",
	ReasonMalformed:   "malformed",
}

func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return reasonNames[ReasonUnknown]
}

// MarshalText renders the reason as String does.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText accepts exactly what MarshalText renders.
func (r *Reason) UnmarshalText(b []byte) error {
	for i, name := range reasonNames {
		if name == string(b) {
			*r = Reason(i)
			return nil
		}
	}
	return fmt.Errorf("reason %q is not known", b)
}

// NamespacedName names a namespaced object; it prints as "namespace/name".
type NamespacedName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func (n NamespacedName) String() string {
	if n.Namespace == "" {
		return n.Name
	}
	return n.Namespace + "/" + n.Name
}

// Compare orders by namespace, then name.
func (n NamespacedName) Compare(o NamespacedName) int {
	if c := strings.Compare(n.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(n.Name, o.Name)
}

// PolicyRef names the policy behind an outcome.
type PolicyRef struct {
	Kind string `json:"kind"` // "NetworkPolicy"; later tiers add their own kinds
	NamespacedName
}

// Outcome is one direction's part of a decision. Outcomes are made when a tree
// is compiled, shared by every decision that has them, and never change.
type Outcome struct {
	Verdict Verdict
	Reason  Reason
	// Audit goes with a Deny that does not count: the pod's namespace is only
	// audited.
	Audit bool
	// Denial goes with ReasonDefaultDeny: what the pod's namespace says.
	Denial Denial
	// Policy and Rule are valid when Reason is ReasonPolicy. Rule is the index in
	// spec.ingress or spec.egress. When several rules allow, the one reported is
	// the lowest rule of the first policy by namespace and name.
	Policy PolicyRef
	Rule   int
	// IsolatedBy is set when Reason is ReasonDefaultDeny: the policies that
	// isolate the pod in this direction, sorted.
	IsolatedBy []PolicyRef
	// OverLimit are those of IsolatedBy whose rules are left out (Limits): one of
	// them may have allowed the connection.
	OverLimit []PolicyRef
	// ID is the outcome's index in Tree.Outcomes: who counts outcomes finds the
	// counter by it.
	ID uint32
}

// Reported is the verdict that reports show: Audit for a denial that does not
// count.
func (o *Outcome) Reported() Verdict {
	if o.Audit {
		return Audit
	}
	return o.Verdict
}

// Decision is the answer for one connection. It is a value; its outcomes point
// to immutable data that outlives the tree, so a Decision may be kept.
type Decision struct {
	// Verdict is Deny or Allow.
	Verdict Verdict
	// Audit says of an allowed connection that the policies of an end deny it and
	// are only audited. Where another end denies and is enforced, the connection
	// is denied and Audit is false.
	Audit bool
	// Direction is the one that settled the verdict: for a deny the first that
	// denied and is enforced, for an audited connection the first that would have
	// denied, for an allow the last that had a say.
	Direction Direction
	// Egress and Ingress are never nil.
	Egress, Ingress *Outcome
}

// Outcome returns the outcome of the direction that settled the verdict.
func (d *Decision) Outcome() *Outcome {
	if d.Direction == Ingress {
		return d.Ingress
	}
	return d.Egress
}

// Reported is the verdict that reports show: Audit for a connection that passes
// although policies deny it.
func (d *Decision) Reported() Verdict {
	if d.Audit {
		return Audit
	}
	return d.Verdict
}
