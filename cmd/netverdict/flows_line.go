package main

import (
	"net/netip"
	"slices"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/flow/hubble"
	"github.com/netverdict/netverdict/policy"
)

// lineOf makes a flow log line of a server's message; nil of one that is neither
// about a flow nor about flows that are missing.
func lineOf(r *observerpb.GetFlowsResponse) *flow.Line {
	if n := r.GetLostEvents().GetNumEventsLost(); n > 0 {
		return &flow.Line{Time: r.GetTime().AsTime(), Node: r.GetNodeName(), Lost: n}
	}
	f := r.GetFlow()
	if f == nil {
		return nil
	}
	l := &flow.Line{
		Time:        f.GetTime().AsTime(),
		Node:        f.GetNodeName(),
		Verdict:     verdictOfMessage(f),
		Direction:   directionOfMessage(f),
		Source:      endpointOf(f.GetSource(), f.GetIP().GetSource()),
		Destination: endpointOf(f.GetDestination(), f.GetIP().GetDestination()),
	}
	layer4Of(l, f)
	l.Egress, l.Ingress = outcomeOf(f, policy.Egress), outcomeOf(f, policy.Ingress)
	decided := l.Egress
	if l.Direction == policy.Ingress {
		decided = l.Ingress
	}
	if decided != nil {
		l.Reason, l.Policy, l.Rule, l.IsolatedBy = decided.Reason, decided.Policy, decided.Rule, decided.IsolatedBy
	}
	for _, p := range slices.Concat(f.GetEgressAllowedBy(), f.GetIngressAllowedBy(), f.GetEgressDeniedBy(), f.GetIngressDeniedBy()) {
		l.Revision = max(l.Revision, p.GetRevision())
	}
	return l
}

func verdictOfMessage(f *flowpb.Flow) policy.Verdict {
	switch f.GetVerdict() {
	case flowpb.Verdict_FORWARDED:
		return policy.Allow
	case flowpb.Verdict_AUDIT:
		return policy.Audit
	}
	return policy.Deny
}

func directionOfMessage(f *flowpb.Flow) policy.Direction {
	if f.GetTrafficDirection() == flowpb.TrafficDirection_INGRESS {
		return policy.Ingress
	}
	return policy.Egress
}

func endpointOf(p *flowpb.Endpoint, ip string) flow.Endpoint {
	e := flow.Endpoint{Namespace: p.GetNamespace(), Pod: p.GetPodName()}
	e.IP, _ = netip.ParseAddr(ip) // invalid when the packet hid it
	for _, l := range p.GetLabels() {
		text, isPods := strings.CutPrefix(l, "k8s:")
		key, value, _ := strings.Cut(text, "=")
		if !isPods || key == namespaceLabel {
			continue
		}
		if e.Labels == nil {
			e.Labels = map[string]string{}
		}
		e.Labels[key] = value
	}
	return e
}

// layer4Of fills in what the message says of the packet beside its addresses.
func layer4Of(l *flow.Line, f *flowpb.Flow) {
	l4 := f.GetL4()
	switch {
	case l4.GetTCP() != nil:
		l.Protocol, l.TCPFlags = policy.TCP, tcpFlagsOf(l4.GetTCP().GetFlags())
		l.Source.Port, l.Destination.Port = uint16(l4.GetTCP().GetSourcePort()), uint16(l4.GetTCP().GetDestinationPort())
	case l4.GetUDP() != nil:
		l.Protocol = policy.UDP
		l.Source.Port, l.Destination.Port = uint16(l4.GetUDP().GetSourcePort()), uint16(l4.GetUDP().GetDestinationPort())
	case l4.GetSCTP() != nil:
		l.Protocol = policy.SCTP
		l.Source.Port, l.Destination.Port = uint16(l4.GetSCTP().GetSourcePort()), uint16(l4.GetSCTP().GetDestinationPort())
	case l4.GetICMPv4() != nil:
		l.Protocol, l.ICMP = policy.ICMP, &flow.ICMP{Type: uint8(l4.GetICMPv4().GetType()), Code: uint8(l4.GetICMPv4().GetCode())}
	case l4.GetICMPv6() != nil:
		l.Protocol, l.ICMP = policy.ICMPv6, &flow.ICMP{Type: uint8(l4.GetICMPv6().GetType()), Code: uint8(l4.GetICMPv6().GetCode())}
	default:
		fromSummary(l, f.GetSummary()) //nolint:staticcheck // deprecated, and the only place that names other protocols
	}
}

// fromSummary reads what the API has no field for: "89; egress …" of protocol 89,
// or "malformed: bad-version; …".
func fromSummary(l *flow.Line, summary string) {
	first, _, _ := strings.Cut(summary, ";")
	if state, ok := strings.CutPrefix(first, "malformed: "); ok {
		_ = l.Malformed.UnmarshalText([]byte(state)) // of a newer agent: not known
		return
	}
	if p, err := policy.ParseProtocol(first); err == nil {
		l.Protocol = p
	}
}

func tcpFlagsOf(f *flowpb.TCPFlags) (b flow.TCPFlags) {
	for i, set := range [...]bool{f.GetFIN(), f.GetSYN(), f.GetRST(), f.GetPSH(), f.GetACK(), f.GetURG(), f.GetECE(), f.GetCWR()} {
		if set {
			b |= 1 << i
		}
	}
	return b
}

// outcomeOf is one direction's part of a decision; nil if the message says
// nothing of it, because it is not an agent of netverdict that decided.
func outcomeOf(f *flowpb.Flow, d policy.Direction) *flow.OutcomeJSON {
	allowed, denied := f.GetEgressAllowedBy(), f.GetEgressDeniedBy()
	if d == policy.Ingress {
		allowed, denied = f.GetIngressAllowedBy(), f.GetIngressDeniedBy()
	}
	o := &flow.OutcomeJSON{Verdict: policy.Allow, Reason: hubble.Reason(f, d)}
	if d == directionOfMessage(f) {
		o.Verdict = verdictOfMessage(f)
	} else if len(denied) > 0 || o.Reason == policy.ReasonMalformed {
		o.Verdict = policy.Deny
		if verdictOfMessage(f) != policy.Deny {
			o.Verdict = policy.Audit // it passed
		}
	}
	all := slices.Concat(denied, allowed)
	if o.Reason == policy.ReasonUnknown && len(all) == 0 {
		return nil
	}
	for _, p := range all {
		name := p.GetNamespace() + "/" + p.GetName()
		if p.GetNamespace() == "" {
			name = p.GetName() // of the cluster
		}
		if rule, ok := hubble.Rule(p); ok {
			o.Policy, o.Rule = name, &rule
			continue
		}
		o.IsolatedBy = append(o.IsolatedBy, name)
	}
	return o
}
