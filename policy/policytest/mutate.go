package policytest

import (
	"math/rand/v2"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/policy"
)

// Mutate returns a copy of the snapshot with one change, as a watch would bring
// it: an object added, removed or edited. Everything unchanged is shared with s;
// neither s nor its objects are written to.
func Mutate(rng *rand.Rand, s *policy.Snapshot) *policy.Snapshot {
	changed := *s
	g := &generator{rng: rng, s: &changed, size: sizeOf(s)}
	mutations := []func(*generator){
		addPod, addPod, removePod, relabelPod, changePhase, movePodAddrs,
		relabelNamespace, switchAudit, changeDenial, addOrRemoveNamespace, changeNodeAddrs,
		addPolicy, addPolicy, removePolicy, editPolicy, editPolicy,
	}
	pick(rng, mutations)(g)
	return &changed
}

// sizeOf keeps names, nodes and ranges of new objects those of the snapshot.
func sizeOf(s *policy.Snapshot) Size {
	size := Small
	size.Pods = max(size.Pods, len(s.Pods))
	size.Policies = max(size.Policies, len(s.Policies))
	return size
}

func addPod(g *generator) {
	g.s.Pods = append(slices.Clone(g.s.Pods), g.pod())
}

func removePod(g *generator) { g.s.Pods = without(g.rng, g.s.Pods) }

func relabelPod(g *generator) {
	replacePod(g, func(p *policy.Pod) { p.Labels = g.labels(podKeys) })
}

func changePhase(g *generator) {
	replacePod(g, func(p *policy.Pod) {
		p.Phase = pick(g.rng, slices.DeleteFunc(
			[]policy.Phase{policy.PhasePending, policy.PhaseRunning, policy.PhaseEnded},
			func(ph policy.Phase) bool { return ph == p.Phase }))
	})
}

func movePodAddrs(g *generator) {
	replacePod(g, func(p *policy.Pod) { p.Addrs = g.podAddrs(g.rng.IntN(g.size.Nodes)) })
}

func replacePod(g *generator, edit func(*policy.Pod)) {
	g.s.Pods = replaced(g.rng, g.s.Pods, func(p *policy.Pod) *policy.Pod {
		c := *p
		edit(&c)
		return &c
	})
}

func relabelNamespace(g *generator) {
	g.s.Namespaces = replaced(g.rng, g.s.Namespaces, func(n *policy.Namespace) *policy.Namespace {
		c := g.namespace(n.Name)
		c.Audit, c.Denial = n.Audit, n.Denial
		return c
	})
}

func switchAudit(g *generator) {
	g.s.Namespaces = replaced(g.rng, g.s.Namespaces, func(n *policy.Namespace) *policy.Namespace {
		c := *n
		c.Audit = !c.Audit
		return &c
	})
}

func changeDenial(g *generator) {
	g.s.Namespaces = replaced(g.rng, g.s.Namespaces, func(n *policy.Namespace) *policy.Namespace {
		c := *n
		c.Denial = (c.Denial + 1) % (policy.DenialReject + 1)
		return &c
	})
}

// addOrRemoveNamespace removes the object of a namespace or makes the missing
// one; the pods and policies in it stay.
func addOrRemoveNamespace(g *generator) {
	name := namespaceName(g.rng.IntN(g.size.Namespaces))
	named := func(n *policy.Namespace) bool { return n.Name == name }
	if slices.ContainsFunc(g.s.Namespaces, named) {
		g.s.Namespaces = slices.DeleteFunc(slices.Clone(g.s.Namespaces), named)
		return
	}
	made := g.namespace(name)
	made.Audit, made.Denial = g.chance(25), g.denial()
	g.s.Namespaces = append(slices.Clone(g.s.Namespaces), made)
}

func changeNodeAddrs(g *generator) {
	g.s.Nodes = replaced(g.rng, g.s.Nodes, func(n *policy.Node) *policy.Node {
		c := *n
		i := g.rng.IntN(g.size.Nodes)
		c.Addrs = []netip.Addr{pick(g.rng, []netip.Addr{nodeAddr4(i), nodeAddr6(i)})}
		return &c
	})
}

func addPolicy(g *generator) {
	g.s.Policies = append(slices.Clone(g.s.Policies), g.networkPolicy())
}

func removePolicy(g *generator) { g.s.Policies = without(g.rng, g.s.Policies) }

// editPolicy draws one part of a policy's spec anew.
func editPolicy(g *generator) {
	g.s.Policies = replaced(g.rng, g.s.Policies, func(np *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
		c := np.DeepCopy()
		switch g.rng.IntN(4) {
		case 0:
			c.Spec.PodSelector = *g.selector(podKeys, labelValues)
		case 1:
			c.Spec.PolicyTypes = g.policyTypes()
		case 2:
			c.Spec.Ingress = g.ingress()
		default:
			c.Spec.Egress = g.egress()
		}
		return c
	})
}

// without returns a copy of the list that lacks one element.
func without[T any](rng *rand.Rand, list []T) []T {
	if len(list) == 0 {
		return list
	}
	i := rng.IntN(len(list))
	return slices.Delete(slices.Clone(list), i, i+1)
}

// replaced returns a copy of the list with one element exchanged.
func replaced[T any](rng *rand.Rand, list []T, edit func(T) T) []T {
	if len(list) == 0 {
		return list
	}
	list = slices.Clone(list)
	i := rng.IntN(len(list))
	list[i] = edit(list[i])
	return list
}
