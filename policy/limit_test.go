package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/bench/gen"
	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/oracle"
	"github.com/netverdict/netverdict/policy/policytest"
)

// The namespace of those who want to hurt.
const hostile = "mallory"

// explosions are policies, about n of something, that expand to n² and more. API
// servers accept objects of up to 1.5 MB, which is some 20,000 items.
var explosions = []struct {
	name string
	make func(n int) []*networkingv1.NetworkPolicy
}{
	{"blocks-with-holes", func(n int) []*networkingv1.NetworkPolicy {
		var peers []networkingv1.NetworkPolicyPeer
		for i := range n { // each contains nearly all addresses that the others leave out
			peers = append(peers, blockPeer("0.0.0.0/0", fmt.Sprint(v4addr(uint32(i)<<8|1<<24), "/32")))
		}
		return hostilePolicies("holes", ingressRule(nil, peers...))
	}},
	{"nested-blocks", func(n int) []*networkingv1.NetworkPolicy {
		var list []*networkingv1.NetworkPolicy
		for i := range n/28 + 1 {
			var peers []networkingv1.NetworkPolicyPeer
			for bits := 4; bits < 32; bits++ {
				peers = append(peers, blockPeer(netip.PrefixFrom(v4addr(uint32(i)*2654435761), bits).Masked().String()))
			}
			peers = append(peers, blockPeer("0.0.0.0/0", fmt.Sprint(v4addr(uint32(i)*2654435761), "/32")))
			list = append(list, hostilePolicies(fmt.Sprint("nested-", i), ingressRule(nil, peers...))...)
		}
		return list
	}},
	{"one-block-with-many-holes", func(n int) []*networkingv1.NetworkPolicy {
		var except []string
		for i := range n {
			except = append(except, fmt.Sprint(v4addr(uint32(i)*77777+1), "/32"))
		}
		return hostilePolicies("except", ingressRule(nil, blockPeer("0.0.0.0/0", except...)))
	}},
	{"selectors-of-all-others", func(n int) []*networkingv1.NetworkPolicy {
		var peers []networkingv1.NetworkPolicyPeer
		for i := range n {
			peers = append(peers, networkingv1.NetworkPolicyPeer{
				NamespaceSelector: &metav1.LabelSelector{}, PodSelector: unlike("id", fmt.Sprint(i)),
			})
		}
		return hostilePolicies("not-in", ingressRule(nil, peers...))
	}},
	{"requirements", func(n int) []*networkingv1.NetworkPolicy {
		sel := &metav1.LabelSelector{}
		for i := range n {
			sel.MatchExpressions = append(sel.MatchExpressions, unlike("id", fmt.Sprint("x", i)).MatchExpressions...)
		}
		return hostilePolicies("requirements", ingressRule(nil, networkingv1.NetworkPolicyPeer{NamespaceSelector: sel, PodSelector: sel}))
	}},
	{"port-ranges", func(n int) []*networkingv1.NetworkPolicy {
		var ports []networkingv1.NetworkPolicyPort
		for i := range n {
			first, last := intstr.FromInt(1+i*7919%60000), int32(1+i*7919%60000+i%5000)
			ports = append(ports, networkingv1.NetworkPolicyPort{Port: &first, EndPort: &last})
		}
		return hostilePolicies("ranges", ingressRule(ports))
	}},
	{"ports-by-peers", func(n int) []*networkingv1.NetworkPolicy {
		var rules []networkingv1.NetworkPolicyIngressRule
		for i := range n / 20 { // each pod matches about half of the rules, and each another half
			var ports []networkingv1.NetworkPolicyPort
			for j := range 20 {
				ports = append(ports, networkingv1.NetworkPolicyPort{Port: new(intstr.FromInt(1 + (i*20+j)*3%65000))})
			}
			in := networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{}, PodSelector: &metav1.LabelSelector{
				MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "id", Operator: "In"}}}}
			for id := range 400 {
				if (id*2654435761>>uint(i%16))&1 == 1 {
					in.PodSelector.MatchExpressions[0].Values = append(in.PodSelector.MatchExpressions[0].Values, fmt.Sprint(id))
				}
			}
			rules = append(rules, networkingv1.NetworkPolicyIngressRule{Ports: ports, From: []networkingv1.NetworkPolicyPeer{in}})
		}
		return hostilePolicies("bits", rules...)
	}},
	{"policies-by-pods", func(n int) []*networkingv1.NetworkPolicy {
		var peers []networkingv1.NetworkPolicyPeer
		for i := range n / 2 {
			peers = append(peers, networkingv1.NetworkPolicyPeer{PodSelector: unlike("id", fmt.Sprint(i))}, blockPeer(fmt.Sprint(v4addr(uint32(i)*99991+7), "/32")))
		}
		list := hostilePolicies("all", ingressRule(nil, peers...))
		for i := range 40 { // one program for each pod
			one := hostilePolicies(fmt.Sprint("one-", i))
			one[0].Spec.PodSelector = metav1.LabelSelector{MatchLabels: map[string]string{"id": fmt.Sprint(i)}}
			list = append(list, one...)
		}
		return list
	}},
	{"named-ports", func(n int) []*networkingv1.NetworkPolicy {
		var ports []networkingv1.NetworkPolicyPort
		for i := range n {
			ports = append(ports, networkingv1.NetworkPolicyPort{Port: new(intstr.FromString(fmt.Sprint("p", i%100)))})
		}
		p := hostilePolicies("names")
		p[0].Spec.PolicyTypes = []networkingv1.PolicyType{"Egress"}
		p[0].Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{Ports: ports}}
		return p
	}},
}

func hostilePolicies(name string, rules ...networkingv1.NetworkPolicyIngressRule) []*networkingv1.NetworkPolicy {
	return []*networkingv1.NetworkPolicy{{
		ObjectMeta: metav1.ObjectMeta{Namespace: hostile, Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{"Ingress"}, Ingress: rules},
	}}
}

func ingressRule(ports []networkingv1.NetworkPolicyPort, from ...networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicyIngressRule {
	return networkingv1.NetworkPolicyIngressRule{Ports: ports, From: from}
}

func blockPeer(cidr string, except ...string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}}
}

func unlike(key, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: "NotIn", Values: []string{value}}}}
}

func v4addr(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// attacked is a cluster of others, and the pods of the hostile namespace: each of its
// own kind, if a policy asks for its id, and with many named ports.
func attacked(policies []*networkingv1.NetworkPolicy) *policy.Snapshot {
	s := gen.New(1, gen.Size{Pods: 1000, Policies: 300}).Snapshot
	for i := range 400 {
		p := &policy.Pod{
			NamespacedName: policy.NamespacedName{Namespace: hostile, Name: fmt.Sprint("pod-", i)}, NodeName: "node-0000",
			Labels: map[string]string{"id": fmt.Sprint(i)}, Addrs: []netip.Addr{v4addr(10<<24 | 200<<16 | uint32(i))}, Phase: policy.PhaseRunning,
		}
		for j := range 20 {
			p.Ports = append(p.Ports, policy.ContainerPort{Name: fmt.Sprint("p", (i+j)%100), Protocol: policy.TCP, Port: uint16(1000 + i*20 + j)})
		}
		s.Pods = append(s.Pods, p)
	}
	s.Policies = append(s.Policies, policies...)
	s.Local = func(p *policy.Pod) bool { return p.NodeName == "node-0000" || p.Namespace == hostile }
	return s
}

// smallLimits make explosions of thousands of items small ones, for slow machines.
var smallLimits = policy.Limits{
	Comparisons: 1 << 22, Members: 1 << 18, Answers: 1 << 20, Steps: 1 << 24, NamespaceAnswers: 1 << 18, NamespaceSteps: 1 << 22,
}

// What explodes is given up before it has cost much, the hostile namespace alone pays
// for it, and the tree is the oracle's, of policies without the rules that were left out.
func TestExplosionsAreBounded(t *testing.T) {
	t.Parallel()
	for _, e := range explosions {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			s := attacked(e.make(4000))
			tree := boundedBuild(t, s, smallLimits)
			over := tree.OverLimit()
			for _, o := range over {
				if o.Policy.Namespace != hostile {
					t.Errorf("%v: an innocent namespace pays", o)
				}
			}
			if len(over) > 0 {
				t.Logf("%d policies over the limit: %.300s", len(over), over[0])
				if !strings.Contains(over[0].String(), "NetworkPolicy mallory/") || !strings.Contains(over[0].Limit, "spec.") {
					t.Errorf("the message %q names no policy or no field", over[0])
				}
			}
			compareWithoutRules(t, tree, s, 300)
		})
	}
}

// Most of them do expand beyond the limits that clusters have: otherwise the test above
// would show nothing of those.
func TestExplosionsExplode(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"blocks-with-holes", "selectors-of-all-others", "port-ranges", "ports-by-peers"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := slices.IndexFunc(explosions, func(e struct {
				name string
				make func(n int) []*networkingv1.NetworkPolicy
			}) bool {
				return e.name == name
			})
			s := attacked(explosions[at].make(20_000))
			if over := boundedBuild(t, s, policy.Limits{}).OverLimit(); len(over) == 0 {
				t.Error("20,000 items are within the limits")
			}
		})
	}
}

// boundedBuild compiles step by step and from scratch, and wants no compilation to cost
// more than its limits say, and there to be few of them.
func boundedBuild(t *testing.T, s *policy.Snapshot, limits policy.Limits) *policy.Tree {
	t.Helper()
	most := limits
	if most == (policy.Limits{}) {
		most = policy.DefaultLimits
	}
	b := policy.NewBuilder(policy.Scope{Local: s.Local, LocalPodCIDRs: s.LocalPodCIDRs, UnknownPod: s.UnknownPod, Limits: limits})
	trials := 0
	b.OnTrial(func(spent policy.Limits, ok bool) {
		trials++
		// One step of a loop may pass the limit, by no more than the policies list.
		for _, c := range [][3]int{
			{spent.Comparisons, most.Comparisons, 1 << 25}, {spent.Members, most.Members, 1 << 17},
			{spent.Answers, most.Answers, 1 << 21}, {spent.NamespaceAnswers, most.NamespaceAnswers, 1 << 21},
		} {
			if c[0] > c[1]+c[2] {
				t.Errorf("trial %d spent %+v of %+v", trials, spent, most)
			}
		}
	})
	calm := *s
	calm.Policies = slices.DeleteFunc(slices.Clone(s.Policies), func(np *networkingv1.NetworkPolicy) bool { return np.Namespace == hostile })
	b.Apply(policy.DeltaOf(&calm))
	if first, err := b.Build(); err != nil || len(first.OverLimit()) > 0 {
		t.Fatalf("without the explosion: %v, %v", first.OverLimit(), err)
	}
	trials = 0
	b.Apply(policy.DeltaOf(s))
	tree, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if trials > 16 {
		t.Errorf("%d compilations", trials)
	}
	scratch := policy.NewBuilder(policy.Scope{Local: s.Local, LocalPodCIDRs: s.LocalPodCIDRs, UnknownPod: s.UnknownPod, Limits: limits})
	shuffled := *s
	shuffled.Policies = slices.Clone(s.Policies)
	slices.Reverse(shuffled.Policies)
	scratch.Apply(policy.DeltaOf(&shuffled))
	again, err := scratch.Build()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(again.OverLimit(), tree.OverLimit()); diff != "" && len(tree.OverLimit()) > 0 {
		t.Errorf("from scratch, others are left out (-scratch +step):\n%.2000s", diff)
	}
	b.Apply(&policy.Delta{Policies: goneOf(s.Policies)})
	after, err := b.Build()
	if err != nil || len(after.OverLimit()) > 0 {
		t.Errorf("after the explosion: %v, %v", after.OverLimit(), err)
	}
	return tree
}

// goneOf deletes the hostile policies.
func goneOf(list []*networkingv1.NetworkPolicy) map[policy.NamespacedName]*networkingv1.NetworkPolicy {
	gone := map[policy.NamespacedName]*networkingv1.NetworkPolicy{}
	for _, np := range list {
		if np.Namespace == hostile {
			gone[policy.NamespacedName{Namespace: np.Namespace, Name: np.Name}] = nil
		}
	}
	return gone
}

// compareWithoutRules compares a tree with the oracle, for which policies over a limit
// have no rules: they isolate as they did, and allow nothing.
func compareWithoutRules(t *testing.T, tree *policy.Tree, s *policy.Snapshot, flows int) {
	t.Helper()
	known := withoutRules(s, tree.OverLimit())
	rng := policytest.NewRand(3)
	for range flows {
		f := policytest.RandomFlow(rng, s)
		got, want := f.Decide(tree.Decide), policytest.Comparable(oracle.Decide(known, f.Src, f.Dst, f.Protocol, f.Port))
		for _, o := range []*policy.Outcome{want.Egress, want.Ingress} {
			for _, ref := range o.IsolatedBy {
				if slices.ContainsFunc(tree.OverLimit(), func(l policy.OverLimit) bool { return l.Policy == ref }) {
					o.OverLimit = append(o.OverLimit, ref)
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%v: decision differs from the oracle's (-want +got):\n%s", f, diff)
		}
	}
}

// withoutRules writes the directions out that a policy isolates, and empties it.
func withoutRules(s *policy.Snapshot, over []policy.OverLimit) *policy.Snapshot {
	known := *s
	known.Policies = slices.Clone(s.Policies)
	for i, np := range known.Policies {
		if !slices.ContainsFunc(over, func(o policy.OverLimit) bool {
			return o.Policy.NamespacedName == policy.NamespacedName{Namespace: np.Namespace, Name: np.Name}
		}) {
			continue
		}
		empty := &networkingv1.NetworkPolicy{ObjectMeta: np.ObjectMeta, Spec: networkingv1.NetworkPolicySpec{PodSelector: np.Spec.PodSelector, PolicyTypes: np.Spec.PolicyTypes}}
		if len(np.Spec.PolicyTypes) == 0 {
			empty.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
			if len(np.Spec.Egress) > 0 {
				empty.Spec.PolicyTypes = append(empty.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
			}
		}
		known.Policies[i] = empty
	}
	return &known
}

// Random clusters under random, tiny limits: whatever is left out, the rest is what
// the oracle says, also after any sequence of changes.
func TestLimitsAgainstOracle(t *testing.T) {
	t.Parallel()
	left, trees := 0, 0
	for seed := range uint64(150) {
		n, of := underLimits(t, seed, 8)
		left, trees = left+n, trees+of
	}
	t.Logf("%d of %d trees left policies out", left, trees)
	if left < trees/10 || left > trees*9/10 {
		t.Error("that shows too little")
	}
}

func FuzzLimits(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) { underLimits(t, seed, 6) })
}

func underLimits(t *testing.T, seed uint64, steps int) (left, trees int) {
	t.Helper()
	rng := policytest.NewRand(seed ^ 0x6c696d)
	tiny := policy.Limits{
		Comparisons: 100 + rng.IntN(2000), Members: 10 + rng.IntN(400), Answers: 20 + rng.IntN(2000), Steps: 200 + rng.IntN(20000),
		NamespaceAnswers: 20 + rng.IntN(500), NamespaceSteps: 100 + rng.IntN(5000),
	}
	s := policytest.Random(seed, policytest.Size{})
	b := policy.NewBuilder(policy.Scope{Local: s.Local, LocalPodCIDRs: s.LocalPodCIDRs, UnknownPod: s.UnknownPod, Limits: tiny})
	before := s
	b.Apply(policy.DeltaOf(s))
	for range steps {
		tree, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		if trees++; len(tree.OverLimit()) > 0 {
			left++
		}
		compareWithoutRules(t, tree, s, 40)
		s = policytest.Mutate(rng, s)
		b.Apply(policytest.DeltaBetween(before, s))
		before = s
	}
	return left, trees
}

// The limits must not get in the way of clusters.
func TestLimitsAreFarAway(t *testing.T) {
	t.Parallel()
	s := gen.New(1, gen.Size{Pods: 10_000, Policies: 10_000}).Snapshot
	for name, local := range map[string]func(*policy.Pod) bool{
		"a node":   func(p *policy.Pod) bool { return p.NodeName == "node-0007" },
		"all pods": nil, // as offline verbs have it
	} {
		b := policy.NewBuilder(policy.Scope{Local: local})
		b.Apply(policy.DeltaOf(s))
		if _, err := b.Build(); err != nil {
			t.Fatal(err)
		}
		spent, limits := b.Spent(), policy.DefaultLimits
		t.Logf("%s: %+v", name, spent)
		factor := 20
		if local == nil {
			factor = 2
		}
		if factor*spent.Comparisons > limits.Comparisons || factor*spent.Members > limits.Members || factor*spent.Answers > limits.Answers ||
			factor*spent.Steps > limits.Steps || factor*spent.NamespaceAnswers > limits.NamespaceAnswers || factor*spent.NamespaceSteps > limits.NamespaceSteps {
			t.Errorf("%s: spent %+v, a %dth of %+v is less", name, spent, factor, limits)
		}
	}
}
