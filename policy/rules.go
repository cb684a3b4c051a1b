package policy

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"strconv"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	netutils "k8s.io/utils/net"
)

// KindNetworkPolicy is the PolicyRef kind of networking.k8s.io/v1 NetworkPolicy.
const KindNetworkPolicy = "NetworkPolicy"

// parsedPolicy is a policy with the API's defaults applied and its selectors
// compiled.
type parsedPolicy struct {
	object   *networkingv1.NetworkPolicy
	ref      PolicyRef
	target   labels.Selector // spec.podSelector, in the policy's own namespace
	isolates [2]bool         // by Direction: spec.policyTypes
	rules    [2][]parsedRule // by Direction
	// overLimit is why the rules are left out; empty: they are not.
	overLimit string

	// What follows is the compiler's; nobody reads it through a tree.
	id    uint32 // never given twice
	local int    // groups with local pods that it selects; without any it has no part in the tree
	live  bool   // local > 0, and its peers count as used
}

// parsedRule is one item of spec.ingress or spec.egress.
type parsedRule struct {
	anyPeer bool    // no peers listed
	peers   []*peer // in the order of the API object
	anyPort bool    // no ports listed
	ports   []portRange
	outcome uint32 // what the tree answers when this rule decides; 0: not in the table yet
}

// portRange is one item of a rule's ports: numbers from first to last, or a
// name that each destination pod resolves for itself.
type portRange struct {
	protocol    Protocol
	name        string
	first, last uint16
}

// peer is one distinct item of from or to. Equal peers of different policies
// are one, so that what they select is worked out once.
type peer struct {
	key string
	// One of three: pods of one namespace, pods of selected namespaces, or a block.
	namespace  string
	namespaces labels.Selector
	pods       labels.Selector
	block      *ipBlock
	hash       uint64 // of the key: equal peers of different trees have the same

	// What follows is the compiler's; nobody reads it through a tree.
	id       uint32 // never given twice
	listed   int    // how often policies list it
	users    int    // how often live policies do, in directions that they isolate
	used     bool   // users > 0, and classes tell its members apart
	pages    []pageMask
	programs map[*program]struct{}
	mark     uint32 // compiler.stamp: of the class that is being looked at
}

// ipBlock is a CIDR with its holes, host bits masked off.
type ipBlock struct {
	cidr   netip.Prefix
	except []netip.Prefix
}

// parsePolicy compiles one policy's text. An error names the policy and field.
func parsePolicy(p *networkingv1.NetworkPolicy) (*parsedPolicy, error) {
	ref := PolicyRef{KindNetworkPolicy, NamespacedName{p.Namespace, p.Name}}
	fail := func(err error) (*parsedPolicy, error) { return nil, fmt.Errorf("NetworkPolicy %s: %w", ref, err) }
	out := &parsedPolicy{object: p, ref: ref}
	var err error
	if out.target, err = metav1.LabelSelectorAsSelector(&p.Spec.PodSelector); err != nil {
		return fail(fmt.Errorf("spec.podSelector: %w", err))
	}
	out.isolates = isolates(p)
	for i, r := range p.Spec.Egress {
		rule, err := parseRule(p.Namespace, Egress, r.To, r.Ports)
		if err != nil {
			return fail(fmt.Errorf("spec.egress[%d].%w", i, err))
		}
		out.rules[Egress] = append(out.rules[Egress], rule)
	}
	for i, r := range p.Spec.Ingress {
		rule, err := parseRule(p.Namespace, Ingress, r.From, r.Ports)
		if err != nil {
			return fail(fmt.Errorf("spec.ingress[%d].%w", i, err))
		}
		out.rules[Ingress] = append(out.rules[Ingress], rule)
	}
	return out, nil
}

// isolates applies the default of spec.policyTypes: Ingress always, Egress
// when there are egress rules (NetworkPolicySpec.policyTypes).
func isolates(p *networkingv1.NetworkPolicy) (d [2]bool) {
	if len(p.Spec.PolicyTypes) == 0 {
		d[Ingress], d[Egress] = true, len(p.Spec.Egress) > 0
	}
	for _, t := range p.Spec.PolicyTypes {
		d[Ingress] = d[Ingress] || t == networkingv1.PolicyTypeIngress
		d[Egress] = d[Egress] || t == networkingv1.PolicyTypeEgress
	}
	return d
}

func parseRule(namespace string, d Direction, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) (parsedRule, error) {
	rule := parsedRule{anyPeer: len(peers) == 0, anyPort: len(ports) == 0}
	list := [...]string{Egress: "to", Ingress: "from"}[d]
	for i := range peers {
		p, err := parsePeer(namespace, &peers[i])
		if err != nil {
			return rule, fmt.Errorf("%s[%d].%w", list, i, err)
		}
		p.hash = maphash.String(fingerprintSeed, p.key)
		rule.peers = append(rule.peers, p)
	}
	for i := range ports {
		pr, err := parsePort(&ports[i])
		if err != nil {
			return rule, fmt.Errorf("ports[%d].%w", i, err)
		}
		rule.ports = append(rule.ports, pr)
	}
	return rule, nil
}

func parsePeer(namespace string, p *networkingv1.NetworkPolicyPeer) (*peer, error) {
	if p.IPBlock != nil {
		block, err := parseBlock(p.IPBlock)
		if err != nil {
			return nil, fmt.Errorf("ipBlock.%w", err)
		}
		return &peer{key: block.key(), block: block}, nil
	}
	pods, err := selectorOr(p.PodSelector, labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("podSelector: %w", err)
	}
	if p.NamespaceSelector == nil {
		if p.PodSelector == nil {
			pods = labels.Nothing() // an empty peer: refused by the API, selects nobody here
		}
		return &peer{key: "pods\x00" + namespace + "\x00" + selectorKey(pods), namespace: namespace, pods: pods}, nil
	}
	namespaces, err := metav1.LabelSelectorAsSelector(p.NamespaceSelector)
	if err != nil {
		return nil, fmt.Errorf("namespaceSelector: %w", err)
	}
	key := "namespaces\x00" + selectorKey(namespaces) + "\x00" + selectorKey(pods)
	return &peer{key: key, namespaces: namespaces, pods: pods}, nil
}

func selectorOr(s *metav1.LabelSelector, absent labels.Selector) (labels.Selector, error) {
	if s == nil {
		return absent, nil
	}
	return metav1.LabelSelectorAsSelector(s)
}

// selectorKey spells a selector so that different selectors differ: String
// renders Nothing and Everything alike.
func selectorKey(s labels.Selector) string {
	if _, selectable := s.Requirements(); !selectable {
		return "\x01"
	}
	return s.String()
}

func parsePort(p *networkingv1.NetworkPolicyPort) (portRange, error) {
	r := portRange{protocol: TCP, first: 0, last: 65535}
	if p.Protocol != nil {
		proto, err := ParseProtocol(string(*p.Protocol))
		if err != nil || !proto.HasPorts() {
			return r, fmt.Errorf("protocol: %q is not TCP, UDP or SCTP", *p.Protocol)
		}
		r.protocol = proto
	}
	switch {
	case p.Port == nil:
	case p.Port.Type == intstr.String:
		r.name = p.Port.StrVal
	default:
		return numericPort(r, p)
	}
	return r, nil
}

func numericPort(r portRange, p *networkingv1.NetworkPolicyPort) (portRange, error) {
	first, last := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		last = *p.EndPort
	}
	if first < 1 || last > 65535 || last < first {
		return r, fmt.Errorf("port: range %d–%d is not within 1–65535", first, last)
	}
	r.first, r.last = uint16(first), uint16(last)
	return r, nil
}

func parseBlock(b *networkingv1.IPBlock) (*ipBlock, error) {
	cidr, err := parseCIDR(b.CIDR)
	if err != nil {
		return nil, fmt.Errorf("cidr: %w", err)
	}
	block := &ipBlock{cidr: cidr}
	for i, e := range b.Except {
		except, err := parseCIDR(e)
		if err != nil {
			return nil, fmt.Errorf("except[%d]: %w", i, err)
		}
		block.except = append(block.except, except)
	}
	slices.SortFunc(block.except, comparePrefixes)
	return block, nil
}

// parseCIDR reads what API servers have accepted over the years: host bits may
// be set, and IPv4 octets of old objects may have leading zeros (decimal).
func parseCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err == nil {
		return p.Masked(), nil
	}
	_, n, sloppyErr := netutils.ParseCIDRSloppy(s)
	if sloppyErr != nil {
		return netip.Prefix{}, err
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a, bits).Masked(), nil
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func (b *ipBlock) key() string {
	key := append([]byte("block\x00"), b.cidr.String()...)
	for _, e := range b.except {
		key = e.AppendTo(append(key, 0))
	}
	return string(key)
}

// means reports whether a named port of the destination pod is the one that the
// policy names: a name counts together with its protocol.
func (r portRange) means(n ContainerPort) bool { return n.Name == r.name && n.Protocol == r.protocol }

func hasNames(ports []portRange) bool {
	return slices.ContainsFunc(ports, func(r portRange) bool { return r.name != "" })
}

func (r portRange) String() string {
	switch {
	case r.name != "":
		return r.name + "/" + r.protocol.String()
	case r.first == 0:
		return "every port/" + r.protocol.String()
	case r.first == r.last:
		return strconv.Itoa(int(r.first)) + "/" + r.protocol.String()
	}
	return fmt.Sprintf("%d–%d/%s", r.first, r.last, r.protocol)
}
