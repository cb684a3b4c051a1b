package policytest

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/oracle"
	"github.com/netverdict/netverdict/policy/validation"
)

const seeds = 300

// features counts how often the things a universe must contain were drawn.
type features map[string]int

func (f features) when(condition bool, name string) {
	if condition {
		f[name]++
	} else {
		f[name] += 0 // known, so that a feature that never occurs is reported
	}
}

func (f features) demand(t *testing.T, least int) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if f[name] < least {
			t.Errorf("%s: occurs %d times in %d seeds, want at least %d", name, f[name], seeds, least)
		}
	}
}

func TestRandomIsAFunctionOfTheSeed(t *testing.T) {
	one, again, other := Manifests(Random(7, Small)), Manifests(Random(7, Size{})), Manifests(Random(8, Small))
	if !bytes.Equal(one, again) {
		t.Error("the same seed gave two universes")
	}
	if bytes.Equal(one, other) {
		t.Error("two seeds gave the same universe")
	}
	a, b := NewRand(1), NewRand(1)
	s := Random(7, Small)
	for range 50 {
		if x, y := RandomFlow(a, s), RandomFlow(b, s); x != y {
			t.Fatalf("the same seed gave flows %s and %s", x, y)
		}
	}
}

func TestRandomSize(t *testing.T) {
	s := Random(1, Size{Pods: 40, Policies: 25, Namespaces: 2, Nodes: 1})
	if len(s.Pods) != 40 || len(s.Policies) != 25 || len(s.Namespaces) > 2 || len(s.Nodes) > 1 {
		t.Errorf("got %d pods, %d policies, %d namespaces, %d nodes", len(s.Pods), len(s.Policies), len(s.Namespaces), len(s.Nodes))
	}
}

func TestRandomHasEveryFeature(t *testing.T) {
	f := features{}
	for seed := range uint64(seeds) {
		s := Random(seed, Small)
		countScope(f, s)
		countPods(f, s)
		for _, np := range s.Policies {
			countPolicy(f, np)
		}
		eachRule(s, func(ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer) {
			countPorts(f, ports)
			countPeers(f, s, peers)
		})
	}
	f.demand(t, 10)
}

func countScope(f features, s *policy.Snapshot) {
	f.when(s.Local == nil, "local: nil")
	f.when(s.Local != nil && slices.ContainsFunc(s.Pods, s.Local), "local: some pods")
	f.when(s.Local != nil && !slices.ContainsFunc(s.Pods, s.Local), "local: no pod")
	f.when(len(s.LocalPodCIDRs) > 0, "local pod ranges")
	f.when(s.UnknownPod == policy.Allow, "unknown pods allowed")
	f.when(len(s.Nodes) < Small.Nodes, "node without object")
	for _, ns := range s.Namespaces {
		f.when(ns.Audit, "namespace: audited")
		f.when(ns.Denial == policy.DenialDrop, "namespace: denies by silence")
		f.when(ns.Denial == policy.DenialReject, "namespace: rejects")
		_, set := ns.Labels[metadataName]
		f.when(set, "namespace: name label in the manifest")
		f.when(!set, "namespace: name label to be added")
	}
	for _, p := range s.Pods {
		f.when(!slices.ContainsFunc(s.Namespaces, func(n *policy.Namespace) bool { return n.Name == p.Namespace }), "pod: namespace without object")
	}
}

func countPods(f features, s *policy.Snapshot) {
	claims := map[netip.Addr][]*policy.Pod{}
	for _, p := range s.Pods {
		f.when(len(p.Addrs) == 2 && p.Addrs[0].Is4(), "pod: dual stack, IPv4 first")
		f.when(len(p.Addrs) == 2 && p.Addrs[0].Is6(), "pod: dual stack, IPv6 first")
		f.when(len(p.Addrs) == 1 && p.Addrs[0].Is4(), "pod: IPv4")
		f.when(len(p.Addrs) == 1 && p.Addrs[0].Is6(), "pod: IPv6")
		f.when(len(p.Addrs) == 0, "pod: no address")
		f.when(p.HostNetwork, "pod: host network")
		f.when(p.NodeName == "", "pod: not scheduled")
		f.when(bytes.HasSuffix([]byte(p.Name), []byte(terminatingSuffix)), "pod: terminating")
		f.when(p.Phase == policy.PhasePending, "pod: pending")
		f.when(p.Phase == policy.PhaseRunning, "pod: running")
		f.when(p.Phase == policy.PhaseEnded, "pod: ended")
		countContainerPorts(f, p)
		for _, a := range p.Addrs {
			claims[a] = append(claims[a], p)
		}
	}
	for a, c := range claims {
		for _, p := range c[1:] {
			f.when(p.Phase == policy.PhaseRunning && c[0].Phase == policy.PhaseRunning, "claim: two running")
			f.when(p.Phase == c[0].Phase && p.Created.Equal(c[0].Created), "claim: tie to be broken by name")
			f.when(p.Phase != c[0].Phase, "claim: phases differ")
			f.when(p.HostNetwork != c[0].HostNetwork, "claim: pod against host network")
		}
		f.when(slices.ContainsFunc(s.Nodes, func(n *policy.Node) bool { return slices.Contains(n.Addrs, a) && !c[0].HostNetwork }), "claim: pod against node")
	}
}

func countContainerPorts(f features, p *policy.Pod) {
	for i, a := range p.Ports {
		for _, b := range p.Ports[:i] {
			f.when(a.Name == b.Name && a.Protocol == b.Protocol && a.Port != b.Port, "port name: several numbers")
			f.when(a.Name == b.Name && a.Protocol != b.Protocol, "port name: several protocols")
		}
	}
}

func countPolicy(f features, np *networkingv1.NetworkPolicy) {
	spec := np.Spec
	f.when(spec.PolicyTypes == nil, "types: absent")
	f.when(spec.PolicyTypes != nil && len(spec.PolicyTypes) == 0, "types: empty")
	egressOnly := slices.Equal(spec.PolicyTypes, []networkingv1.PolicyType{networkingv1.PolicyTypeEgress})
	ingressOnly := slices.Equal(spec.PolicyTypes, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress})
	f.when(egressOnly, "types: egress only")
	f.when(egressOnly && len(spec.Ingress) > 0, "types: ingress rules to be ignored")
	f.when(ingressOnly && len(spec.Egress) > 0, "types: egress rules to be ignored")
	f.when(len(spec.PolicyTypes) == 0 && len(spec.Egress) > 0, "types: egress by default")
	f.when(len(spec.PolicyTypes) == 0 && spec.Egress != nil && len(spec.Egress) == 0, "types: empty egress is none")
	f.when(len(spec.PolicyTypes) == 2, "types: both")
	f.when(spec.Ingress == nil, "ingress: absent")
	f.when(spec.Ingress != nil && len(spec.Ingress) == 0, "ingress: []")
	f.when(len(spec.Ingress) == 3, "ingress: three rules")
	countSelector(f, "spec.podSelector", &spec.PodSelector)
	for _, r := range spec.Ingress {
		f.when(r.From == nil && r.Ports == nil, "rule: {}")
		f.when(r.From != nil && len(r.From) == 0, "rule: from []")
		f.when(r.Ports != nil && len(r.Ports) == 0, "rule: ports []")
	}
}

func countSelector(f features, where string, sel *metav1.LabelSelector) {
	f.when(len(sel.MatchLabels)+len(sel.MatchExpressions) == 0, where+": {}")
	f.when(len(sel.MatchLabels) > 0 && len(sel.MatchExpressions) > 1, where+": labels and expressions")
	for _, op := range []metav1.LabelSelectorOperator{"In", "NotIn", "Exists", "DoesNotExist"} {
		f.when(slices.ContainsFunc(sel.MatchExpressions, func(r metav1.LabelSelectorRequirement) bool { return r.Operator == op }), where+": "+string(op))
	}
	for _, v := range sel.MatchLabels {
		f.when(v == "", where+": empty value")
	}
}

func countPorts(f features, ports []networkingv1.NetworkPolicyPort) {
	for i, p := range ports {
		f.when(p.Protocol == nil, "port: protocol by default")
		f.when(p.Port == nil && p.Protocol == nil, "port: {}")
		f.when(p.Port == nil && p.Protocol != nil, "port: protocol only")
		if p.Port == nil {
			continue
		}
		f.when(p.Port.Type == intstr.String && p.Port.StrVal == missingPortName, "port: name that nobody has")
		f.when(p.Port.Type == intstr.String, "port: named")
		f.when(p.Port.Type == intstr.Int && p.EndPort == nil, "port: number")
		if p.EndPort == nil {
			continue
		}
		f.when(p.Port.IntVal == 1 && *p.EndPort == 65535, "range: everything")
		f.when(p.Port.IntVal == *p.EndPort, "range: one port")
		for _, q := range ports[:i] {
			if q.EndPort != nil {
				f.when(p.Port.IntVal == *q.EndPort+1 || q.Port.IntVal == *p.EndPort+1, "range: touches another")
				f.when(p.Port.IntVal <= *q.EndPort && q.Port.IntVal <= *p.EndPort, "range: overlaps another")
			}
		}
	}
}

func countPeers(f features, s *policy.Snapshot, peers []networkingv1.NetworkPolicyPeer) {
	for _, p := range peers {
		f.when(p.PodSelector != nil && p.NamespaceSelector == nil, "peer: pods")
		f.when(p.PodSelector == nil && p.NamespaceSelector != nil, "peer: namespaces")
		f.when(p.PodSelector != nil && p.NamespaceSelector != nil, "peer: pods in namespaces")
		if p.NamespaceSelector != nil {
			countSelector(f, "namespaceSelector", p.NamespaceSelector)
			_, byName := p.NamespaceSelector.MatchLabels[metadataName]
			f.when(byName, "namespaceSelector: by name")
		}
		if p.IPBlock != nil {
			countBlock(f, s, p.IPBlock)
		}
	}
}

func countBlock(f features, s *policy.Snapshot, b *networkingv1.IPBlock) {
	block := netip.MustParsePrefix(b.CIDR)
	f.when(block.Bits() == 0 && block.Addr().Is4(), "block: 0.0.0.0/0")
	f.when(block.Bits() == 0 && block.Addr().Is6(), "block: ::/0")
	f.when(block.Addr().Is6(), "block: IPv6")
	f.when(block != block.Masked(), "block: host bits")
	f.when(block.IsSingleIP(), "block: one address")
	f.when(len(b.Except) > 1, "block: several exceptions")
	f.when(slices.ContainsFunc(s.Pods, func(p *policy.Pod) bool { return slices.ContainsFunc(p.Addrs, block.Contains) }), "block: holds a pod")
	for i, e := range b.Except {
		hole := netip.MustParsePrefix(e)
		f.when(hole != hole.Masked(), "except: host bits")
		f.when(slices.ContainsFunc(s.Pods, func(p *policy.Pod) bool { return slices.ContainsFunc(p.Addrs, hole.Contains) }), "except: holds a pod")
		for _, other := range b.Except[:i] {
			f.when(netip.MustParsePrefix(other).Overlaps(hole), "except: overlaps another")
		}
	}
}

func TestRandomIsValid(t *testing.T) {
	for seed := range uint64(seeds) {
		checkValid(t, seed, Random(seed, Small))
	}
}

// checkValid demands what an API server would.
func checkValid(t *testing.T, seed uint64, s *policy.Snapshot) {
	t.Helper()
	for _, np := range s.Policies {
		for _, err := range validation.NetworkPolicy(np) {
			t.Errorf("seed %d: policy %s/%s: %v", seed, np.Namespace, np.Name, err)
		}
	}
	for _, p := range s.Pods {
		for _, err := range validation.Pod(podObject(p)) {
			t.Errorf("seed %d: pod %s: %v", seed, p.NamespacedName, err)
		}
	}
	for _, n := range s.Nodes {
		for _, err := range validation.Node(nodeObject(n)) {
			t.Errorf("seed %d: node %s: %v", seed, n.Name, err)
		}
	}
}

// TestRandomFlowsAreDecidedBothWays keeps the comparison with the tree
// meaningful: a universe where everything is allowed finds no bug.
func TestRandomFlowsAreDecidedBothWays(t *testing.T) {
	const flowsPerSeed = 40
	reasons, kinds := features{}, features{}
	verdicts := map[policy.Verdict]int{}
	for seed := range uint64(seeds) {
		s, rng := Random(seed, Small), NewRand(seed)
		for range flowsPerSeed {
			f := RandomFlow(rng, s)
			if f.Src.Is4() != f.Dst.Is4() {
				t.Fatalf("seed %d: %s mixes address families", seed, f)
			}
			d := oracle.Decide(s, f.Src, f.Dst, f.Protocol, f.Port)
			verdicts[d.Verdict]++
			for r := policy.ReasonPolicy; r <= policy.ReasonUnknownPod; r++ {
				reasons.when(d.Egress.Reason == r, "egress "+r.String())
				reasons.when(d.Ingress.Reason == r, "ingress "+r.String())
			}
			countFlow(kinds, f, d)
		}
	}
	reasons.demand(t, 50)
	kinds.demand(t, 50)
	for _, v := range []policy.Verdict{policy.Allow, policy.Deny} {
		if share := verdicts[v] * 100 / (seeds * flowsPerSeed); share < 10 {
			t.Errorf("%s: %d%% of the flows, want at least 10%%", v, share)
		}
	}
}

func countFlow(f features, flow Flow, d policy.Decision) {
	for _, p := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, policy.ICMP, policy.ICMPv6} {
		f.when(flow.Protocol == p, p.String())
	}
	f.when(flow.Port == 65535, "port 65535")
	f.when(flow.Protocol.HasPorts() && flow.Port == 0, "port 0")
	f.when(flow.Src.Is6(), "IPv6")
	f.when(d.Egress.Rule > 0 || d.Ingress.Rule > 0, "later rule")
	f.when(len(d.Egress.IsolatedBy) > 1 || len(d.Ingress.IsolatedBy) > 1, "several isolating policies")
	f.when(d.Egress.Verdict == policy.Deny && d.Ingress.Verdict == policy.Deny, "both deny")
	f.when(d.Egress.Reason == policy.ReasonPolicy && d.Ingress.Reason == policy.ReasonPolicy, "both allowed by policy")
}
