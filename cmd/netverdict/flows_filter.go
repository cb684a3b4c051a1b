package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// flowFilters choose flows: OR within a flag, AND across flags. Behind --not a
// flag's values are what a flow must not have.
type flowFilters struct {
	negate bool         // --not was given, for the next flag
	groups []*flowGroup // one a flag, in the order given
	not    []*flowTerm
}

// flowGroup is what one flag was given.
type flowGroup struct {
	flag  string
	terms []*flowTerm
}

// flowTerm is one value of a filter flag.
type flowTerm struct {
	match func(*flow.Line) bool
	// asks says the same to a Hubble server: one of these filters holds. nil: it
	// has no words for it.
	asks []*flowpb.FlowFilter
	// labelled says that the term looks at labels, which not every log has.
	labelled bool
}

func (f *flowFilters) addFlags(cmd *cobra.Command) {
	for _, b := range []struct {
		name, kind, usage string
		parse             func(flowSide, string) (*flowTerm, error)
	}{
		{"pod", "pod", "%s this pod: NAMESPACE/NAME, NAMESPACE/, /NAME in any namespace, or NAME in the namespace default; NAME may be the beginning of it", podTerm},
		{"namespace", "name", "%s a pod of this namespace", namespaceTerm},
		{"label", "selector", "%s a pod that this label selector selects: app=web, 'tier in (a,b)', …", labelTerm},
		{"ip", "address", "%s this IP address or prefix", ipTerm},
	} {
		for side, ends := range flowSides {
			f.add(cmd, ends.prefix+b.name, b.kind, fmt.Sprintf(b.usage, ends.words), func(text string) (*flowTerm, error) { return b.parse(flowSide(side), text) })
		}
	}
	f.add(cmd, "port", "number", "to this destination port", portTerm)
	f.add(cmd, "protocol", "name", "of this protocol: tcp, udp, sctp, icmp, icmpv6 or a number", protocolTerm)
	f.add(cmd, "verdict", "verdict", "deny, allow or audit", verdictTerm)
	f.add(cmd, "direction", "direction", "decided for the source (egress) or for the destination (ingress)", directionTerm)
	f.add(cmd, "reason", "reason", "default-deny, policy, no-policy, unknown-pod, malformed, …", reasonTerm)
	f.add(cmd, "policy", "policy", "that this policy decided, or would have had to allow: NAMESPACE/NAME, NAMESPACE/, /NAME, or NAME in the namespace default", policyTerm)
	not := cmd.Flags().VarPF(&flowNot{f}, "not", "", "invert the next of the filters above")
	not.NoOptDefVal = "true"
}

func (f *flowFilters) add(cmd *cobra.Command, name, kind, usage string, parse func(string) (*flowTerm, error)) {
	cmd.Flags().Var(&flowFlag{filters: f, name: name, kind: kind, parse: parse}, name, usage)
}

// flowFlag is the pflag.Value of a filter.
type flowFlag struct {
	filters *flowFilters
	name    string
	kind    string // of value, for the help
	parse   func(string) (*flowTerm, error)
}

func (v *flowFlag) String() string { return "" }

// Type is what the help shows for a value.
func (v *flowFlag) Type() string { return v.kind }

// Set adds the values, between commas, that are given; a selector has commas of
// its own.
func (v *flowFlag) Set(text string) error {
	texts := []string{text}
	if v.kind != "selector" {
		texts = strings.Split(text, ",")
	}
	negate := v.filters.negate
	v.filters.negate = false
	for _, text := range texts {
		term, err := v.parse(text)
		if err != nil {
			return err
		}
		if negate {
			v.filters.not = append(v.filters.not, term)
		} else {
			g := v.filters.group(v.name)
			g.terms = append(g.terms, term)
		}
	}
	return nil
}

func (f *flowFilters) group(flag string) *flowGroup {
	for _, g := range f.groups {
		if g.flag == flag {
			return g
		}
	}
	g := &flowGroup{flag: flag}
	f.groups = append(f.groups, g)
	return g
}

// flowNot is the pflag.Value of --not.
type flowNot struct{ filters *flowFilters }

func (*flowNot) String() string { return "" }

// Type makes pflag's help show no value.
func (*flowNot) Type() string { return "bool" }

// Set inverts the next filter.
func (n *flowNot) Set(text string) error {
	if text != "true" || n.filters.negate {
		return errors.New("want --not once before a filter")
	}
	n.filters.negate = true
	return nil
}

func (f *flowFilters) validate() error {
	if f.negate {
		return errors.New("--not: no filter follows it")
	}
	return nil
}

// match reports whether a line is to be shown. What says that flows are missing
// always is: nobody can know which flows they were.
func (f *flowFilters) match(l *flow.Line) bool {
	if l.Lost+l.Withheld > 0 {
		return true
	}
	holds := func(t *flowTerm) bool { return t.match(l) }
	for _, g := range f.groups {
		if !slices.ContainsFunc(g.terms, holds) {
			return false
		}
	}
	return !slices.ContainsFunc(f.not, holds)
}

// labelled reports whether a filter looks at labels.
func (f *flowFilters) labelled() bool {
	looks := func(t *flowTerm) bool { return t.labelled }
	return slices.ContainsFunc(f.not, looks) ||
		slices.ContainsFunc(f.groups, func(g *flowGroup) bool { return slices.ContainsFunc(g.terms, looks) })
}

// flowSide is which end of a flow a filter is about.
type flowSide uint8

const (
	eitherEnd flowSide = iota
	fromEnd
	toEnd
)

var flowSides = [...]struct{ prefix, words string }{
	eitherEnd: {"", "from or to"}, fromEnd: {"from-", "from"}, toEnd: {"to-", "to"},
}

// has makes a term of what an end must be, also in the words of a Hubble server.
func (s flowSide) has(ok func(*flow.Endpoint) bool, source, destination *flowpb.FlowFilter) *flowTerm {
	t := &flowTerm{match: func(l *flow.Line) bool {
		return s != toEnd && ok(&l.Source) || s != fromEnd && ok(&l.Destination)
	}}
	if s != toEnd {
		t.asks = append(t.asks, source)
	}
	if s != fromEnd {
		t.asks = append(t.asks, destination)
	}
	return t
}

// objectPattern is a namespace and a name, either of which may be empty: any.
type objectPattern struct{ namespace, name string }

func parseObjectPattern(text string) (p objectPattern, err error) {
	namespace, name, both := strings.Cut(text, "/")
	switch {
	case text == "" || text == "/" || strings.Contains(name, "/"):
		return p, fmt.Errorf("%q: want NAMESPACE/NAME, NAMESPACE/, /NAME or NAME", text)
	case !both:
		namespace, name = "default", text
	}
	return objectPattern{namespace, name}, nil
}

func podTerm(s flowSide, text string) (*flowTerm, error) {
	p, err := parseObjectPattern(text)
	return s.has(func(e *flow.Endpoint) bool {
		return e.Pod != "" && (p.namespace == "" || p.namespace == e.Namespace) && strings.HasPrefix(e.Pod, p.name)
	}, &flowpb.FlowFilter{SourcePod: []string{text}}, &flowpb.FlowFilter{DestinationPod: []string{text}}), err
}

func namespaceTerm(s flowSide, text string) (*flowTerm, error) {
	if text == "" || strings.Contains(text, "/") {
		return nil, fmt.Errorf("%q: want the name of a namespace", text)
	}
	return s.has(func(e *flow.Endpoint) bool { return e.Namespace == text },
		&flowpb.FlowFilter{SourcePod: []string{text + "/"}}, &flowpb.FlowFilter{DestinationPod: []string{text + "/"}}), nil
}

// endLabels are an end's labels with the one that Hubble adds.
type endLabels struct{ *flow.Endpoint }

// namespaceLabel is the label that Hubble's flows have for the namespace.
const namespaceLabel = "io.kubernetes.pod.namespace"

// Lookup implements labels.Labels.
func (e endLabels) Lookup(key string) (value string, ok bool) {
	if key == namespaceLabel && e.Pod != "" {
		return e.Namespace, true
	}
	value, ok = e.Labels[key]
	return value, ok
}

// Has implements labels.Labels.
func (e endLabels) Has(key string) bool {
	_, ok := e.Lookup(key)
	return ok
}

// Get implements labels.Labels.
func (e endLabels) Get(key string) string {
	value, _ := e.Lookup(key)
	return value
}

func labelTerm(s flowSide, text string) (*flowTerm, error) {
	selector, err := labels.Parse(text)
	if err != nil {
		return nil, err
	}
	if selector.Empty() {
		return nil, errors.New("the selector is empty")
	}
	t := s.has(func(e *flow.Endpoint) bool { return selector.Matches(endLabels{e}) },
		&flowpb.FlowFilter{SourceLabel: []string{text}}, &flowpb.FlowFilter{DestinationLabel: []string{text}})
	t.labelled = true
	return t, nil
}

func ipTerm(s flowSide, text string) (*flowTerm, error) {
	var prefix netip.Prefix
	var err error
	if strings.Contains(text, "/") {
		prefix, err = netip.ParsePrefix(text)
	} else {
		var a netip.Addr
		a, err = netip.ParseAddr(text)
		a = a.Unmap().WithZone("")
		prefix = netip.PrefixFrom(a, a.BitLen())
	}
	if err != nil {
		return nil, fmt.Errorf("%q is neither an IP address nor a prefix such as 10.0.0.0/8", text)
	}
	return s.has(func(e *flow.Endpoint) bool { return prefix.Contains(e.IP.WithZone("")) },
		&flowpb.FlowFilter{SourceIp: []string{prefix.String()}}, &flowpb.FlowFilter{DestinationIp: []string{prefix.String()}}), nil
}

func portTerm(text string) (*flowTerm, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("%q: want a number within 1–65535", text)
	}
	number := uint16(port)
	return &flowTerm{
		match: func(l *flow.Line) bool {
			return l.Destination.Port == number || l.Ports != nil && l.Ports.MayHave(number)
		},
		asks: []*flowpb.FlowFilter{{DestinationPort: []string{strconv.Itoa(int(number))}}},
	}, nil
}

// protocolNames are those that Hubble's command has beside policy.ParseProtocol's.
var protocolNames = map[string][]policy.Protocol{
	"icmp": {policy.ICMP, policy.ICMPv6}, "icmpv4": {policy.ICMP},
}

// hubbleProtocols are the names that a Hubble server has.
var hubbleProtocols = map[policy.Protocol]string{
	policy.TCP: "tcp", policy.UDP: "udp", policy.SCTP: "sctp", policy.ICMP: "icmpv4", policy.ICMPv6: "icmpv6",
}

func protocolTerm(text string) (*flowTerm, error) {
	protocols, ok := protocolNames[strings.ToLower(text)]
	if !ok {
		p, err := policy.ParseProtocol(text)
		if err != nil {
			return nil, err
		}
		protocols = []policy.Protocol{p}
	}
	ask := &flowpb.FlowFilter{}
	for _, p := range protocols {
		if name, known := hubbleProtocols[p]; known {
			ask.Protocol = append(ask.Protocol, name)
		}
	}
	t := &flowTerm{match: func(l *flow.Line) bool { return slices.Contains(protocols, l.Protocol) }}
	if len(ask.GetProtocol()) == len(protocols) {
		t.asks = []*flowpb.FlowFilter{ask}
	}
	return t, nil
}

// hubbleVerdicts are the words of Hubble's command for verdicts.
var hubbleVerdicts = map[string]policy.Verdict{
	"allow": policy.Allow, "deny": policy.Deny, "audit": policy.Audit,
	"forwarded": policy.Allow, "dropped": policy.Deny,
}

// verdictMessages are the verdicts of the Hubble API.
var verdictMessages = map[policy.Verdict]flowpb.Verdict{
	policy.Allow: flowpb.Verdict_FORWARDED, policy.Deny: flowpb.Verdict_DROPPED, policy.Audit: flowpb.Verdict_AUDIT,
}

// directionMessages are its directions.
var directionMessages = map[policy.Direction]flowpb.TrafficDirection{
	policy.Egress: flowpb.TrafficDirection_EGRESS, policy.Ingress: flowpb.TrafficDirection_INGRESS,
}

func verdictTerm(text string) (*flowTerm, error) {
	v, ok := hubbleVerdicts[strings.ToLower(text)]
	if !ok {
		return nil, fmt.Errorf("%q: want deny, allow or audit", text)
	}
	return &flowTerm{
		match: func(l *flow.Line) bool { return l.Verdict == v },
		asks:  []*flowpb.FlowFilter{{Verdict: []flowpb.Verdict{verdictMessages[v]}}},
	}, nil
}

func directionTerm(text string) (*flowTerm, error) {
	var d policy.Direction
	err := d.UnmarshalText([]byte(strings.ToLower(text)))
	return &flowTerm{
		match: func(l *flow.Line) bool { return l.Direction == d },
		asks:  []*flowpb.FlowFilter{{TrafficDirection: []flowpb.TrafficDirection{directionMessages[d]}}},
	}, err
}

func reasonTerm(text string) (*flowTerm, error) {
	var r policy.Reason
	err := r.UnmarshalText([]byte(text))
	return &flowTerm{match: func(l *flow.Line) bool { return l.Reason == r }}, err
}

func policyTerm(text string) (*flowTerm, error) {
	p, err := parseObjectPattern(text)
	is := func(name string) bool {
		namespace, name, both := strings.Cut(name, "/")
		if !both {
			namespace, name = "", namespace // of the cluster
		}
		return name != "" && (p.namespace == "" || p.namespace == namespace) && (p.name == "" || p.name == name)
	}
	said := func(o *flow.OutcomeJSON) bool {
		return o != nil && (is(o.Policy) || slices.ContainsFunc(o.IsolatedBy, is))
	}
	return &flowTerm{match: func(l *flow.Line) bool {
		return said(&flow.OutcomeJSON{Policy: l.Policy, IsolatedBy: l.IsolatedBy}) || said(l.Egress) || said(l.Ingress)
	}}, err
}
