package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// Explanation is a decision with the steps that led to it. It is made by the
// walk that Decide makes; the steps are read back from the compiled programs.
type Explanation struct {
	Src, Dst EndInfo
	Protocol Protocol
	Port     uint16 // destination port, host byte order
	Decision Decision
	// Sides holds Egress and Ingress, in this order.
	Sides [2]Side
}

// EndInfo says what an address is to the tree.
type EndInfo struct {
	Addr netip.Addr
	Pod  *Pod   // nil when no pod holds the address
	Node string // name of the node that has the address
}

// Side is one direction of an explanation.
type Side struct {
	Direction Direction
	Outcome   *Outcome
	// Policies are those that isolate the judged pod, in the order they are tried.
	Policies []PolicyTrace
}

// PolicyTrace is one policy that isolates a pod.
type PolicyTrace struct {
	Policy   PolicyRef   `json:"policy"`
	Selector string      `json:"podSelector"` // rendered; "(all)" when empty
	Rules    []RuleTrace `json:"rules"`
	// OverLimit is why the rules are left out; empty: they are not.
	OverLimit string `json:"overLimit,omitempty"`
}

// RuleTrace is one rule that was tried.
type RuleTrace struct {
	Rule    int    `json:"rule"`
	Matched bool   `json:"matched"` // peer and port both match
	Decided bool   `json:"decided"` // it is the rule that the decision names
	Peers   []Step `json:"peers"`
	Ports   []Step `json:"ports"`
}

// Step is one comparison: what was asked, whether it matched, and why (not).
type Step struct {
	Text    string `json:"text"`
	Matched bool   `json:"matched"`
	Why     string `json:"why"`
}

// Explain judges as Decide does and says how.
func (t *Tree) Explain(src, dst netip.Addr, protocol Protocol, port uint16) *Explanation {
	e := &Explanation{
		Src: t.info(src), Dst: t.info(dst), Protocol: protocol, Port: port,
		Decision: t.Decide(src, dst, protocol, port),
	}
	e.Sides[Egress] = t.side(Egress, e.Decision.Egress, e.Src, e.Dst, protocol, port)
	e.Sides[Ingress] = t.side(Ingress, e.Decision.Ingress, e.Dst, e.Src, protocol, port)
	return e
}

func (t *Tree) info(a netip.Addr) EndInfo {
	i := EndInfo{Addr: a}
	i.Pod, _ = t.Pod(a)
	i.Node, _ = t.Node(a)
	return i
}

// side explains one direction. judged is the end whose rules are asked.
func (t *Tree) side(d Direction, o *Outcome, judged, other EndInfo, protocol Protocol, port uint16) Side {
	s := Side{Direction: d, Outcome: o}
	row := t.endpoint(judged.Addr).row[d]
	if row < firstRow {
		return s
	}
	tr := tracer{tree: t, direction: d, other: other, protocol: protocol, port: port, outcome: o}
	if dst := [...]*Pod{Egress: other.Pod, Ingress: judged.Pod}[d]; dst != nil {
		tr.named = dst.Ports
	}
	for _, p := range t.programs[row-firstRow].policies {
		s.Policies = append(s.Policies, tr.policy(p))
	}
	return s
}

// tracer replays the rules of one direction against the other end.
type tracer struct {
	tree      *Tree
	direction Direction
	other     EndInfo
	protocol  Protocol
	port      uint16
	named     []ContainerPort // of the destination pod
	outcome   *Outcome
}

func (tr *tracer) policy(p *parsedPolicy) PolicyTrace {
	t := PolicyTrace{Policy: p.ref, Selector: selectorText(p.target), OverLimit: p.overLimit}
	for i := range p.rules[tr.direction] {
		r := tr.rule(&p.rules[tr.direction][i])
		r.Rule = i
		r.Decided = tr.outcome.Reason == ReasonPolicy && tr.outcome.Policy == p.ref && tr.outcome.Rule == i
		t.Rules = append(t.Rules, r)
	}
	return t
}

func (tr *tracer) rule(r *parsedRule) RuleTrace {
	t := RuleTrace{}
	if r.anyPeer {
		t.Peers = []Step{{Text: "any peer", Matched: true, Why: "the rule lists no peers"}}
	}
	for _, p := range r.peers {
		t.Peers = append(t.Peers, tr.peer(p))
	}
	if r.anyPort {
		t.Ports = []Step{{Text: "any port", Matched: true, Why: "the rule lists no ports"}}
	}
	for _, p := range r.ports {
		t.Ports = append(t.Ports, tr.portStep(p))
	}
	matched := func(s Step) bool { return s.Matched }
	t.Matched = slices.ContainsFunc(t.Peers, matched) && slices.ContainsFunc(t.Ports, matched)
	return t
}

// peer compares the other end with one peer of a rule.
func (tr *tracer) peer(p *peer) Step {
	s := Step{Matched: tr.matches(p)}
	if p.block != nil {
		s.Text, s.Why = p.block.explain(tr.other.Addr)
		return s
	}
	s.Text = p.describe()
	switch pod := tr.other.Pod; {
	case pod == nil && tr.other.Node != "":
		s.Why = fmt.Sprintf("%s is node %s, and selectors pick no nodes", tr.other.Addr, tr.other.Node)
	case pod == nil:
		s.Why = fmt.Sprintf("%s is no pod", tr.other.Addr)
	default:
		s.Why = tr.whySelected(p, pod)
	}
	return s
}

// matches asks the objects: the decision itself comes from what was compiled.
func (tr *tracer) matches(p *peer) bool {
	pod := tr.other.Pod
	switch {
	case p.block != nil:
		return p.block.contains(tr.other.Addr)
	case pod == nil:
		return false
	case p.namespaces == nil:
		return p.namespace == pod.Namespace && p.pods.Matches(labels.Set(pod.Labels))
	}
	return p.namespaces.Matches(namespaceLabels(tr.tree.namespaces, pod.Namespace)) && p.pods.Matches(labels.Set(pod.Labels))
}

func (b *ipBlock) contains(a netip.Addr) bool {
	return b.cidr.Contains(a) && !slices.ContainsFunc(b.except, func(x netip.Prefix) bool { return x.Contains(a) })
}

func (tr *tracer) whySelected(p *peer, pod *Pod) string {
	if p.namespaces == nil && p.namespace != pod.Namespace {
		return fmt.Sprintf("%s is in namespace %s", pod.NamespacedName, pod.Namespace)
	}
	if ns := namespaceLabels(tr.tree.namespaces, pod.Namespace); p.namespaces != nil && !p.namespaces.Matches(ns) {
		return fmt.Sprintf("namespace %s has labels %s", pod.Namespace, labelsText(ns))
	}
	if p.pods.Empty() {
		return fmt.Sprintf("%s is in namespace %s", pod.NamespacedName, pod.Namespace)
	}
	return fmt.Sprintf("%s has labels %s", pod.NamespacedName, labelsText(pod.Labels))
}

func (tr *tracer) portStep(p portRange) Step {
	rule := boundRule{ports: []portRange{p}}
	s := Step{Text: p.String(), Matched: tr.protocol.HasPorts() && rule.covers(slotOf(tr.protocol), tr.port, tr.named)}
	switch {
	case !tr.protocol.HasPorts():
		s.Why = fmt.Sprintf("%s has no ports: only rules without ports match it", tr.protocol)
	case p.protocol != tr.protocol:
		s.Why = fmt.Sprintf("the protocol is %s", tr.protocol)
	case p.name != "":
		s.Why = namedWhy(p, tr.named, tr.port)
	default:
		s.Why = fmt.Sprintf("the port is %d", tr.port)
	}
	return s
}

func namedWhy(p portRange, named []ContainerPort, port uint16) string {
	var numbers []string
	for _, n := range named {
		if p.means(n) {
			numbers = append(numbers, fmt.Sprint(n.Port))
		}
	}
	if len(numbers) == 0 {
		return fmt.Sprintf("the destination has no port named %s/%s", p.name, p.protocol)
	}
	return fmt.Sprintf("%s is %s on the destination, the port is %d", p.name, strings.Join(numbers, ", "), port)
}

// explain says why a block contains an address or not.
func (b *ipBlock) explain(a netip.Addr) (text, why string) {
	text = "ipBlock " + b.cidr.String()
	for i, e := range b.except {
		sep := ", "
		if i == 0 {
			sep = " except "
		}
		text += sep + e.String()
	}
	if !b.cidr.Contains(a) {
		return text, fmt.Sprintf("%s is outside", a)
	}
	for _, e := range b.except {
		if e.Contains(a) {
			return text, fmt.Sprintf("%s is in the exception %s", a, e)
		}
	}
	return text, fmt.Sprintf("%s is inside", a)
}

func (p *peer) describe() string {
	pods := "pods " + selectorText(p.pods)
	if p.namespaces == nil {
		return pods + " in namespace " + p.namespace
	}
	return pods + " in namespaces " + selectorText(p.namespaces)
}

func selectorText(s labels.Selector) string {
	if _, selectable := s.Requirements(); !selectable {
		return "(none)"
	}
	if s.Empty() {
		return "(all)"
	}
	return s.String()
}

func labelsText(set labels.Set) string {
	if len(set) == 0 {
		return "(none)"
	}
	return set.String()
}
