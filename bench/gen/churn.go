package gen

import (
	"fmt"
	"maps"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/policy"
)

// The changes of a cluster as a watch would bring them. Each returns what changes
// and what takes it back, for any i.

// PodGoes removes a pod.
func (c *Cluster) PodGoes(i int) (does, undoes *policy.Delta) {
	p := c.pod(i)
	return podDelta(p.NamespacedName, nil), podDelta(p.NamespacedName, p)
}

// PodMoves gives a pod to another application of its namespace, by its label.
func (c *Cluster) PodMoves(i int) (does, undoes *policy.Delta) {
	p := c.pod(i)
	moved := *p
	moved.Labels = maps.Clone(p.Labels)
	if moved.Labels["app"] = appName(i % appsPerTenant); moved.Labels["app"] == p.Labels["app"] {
		moved.Labels["app"] = appName((i + 1) % appsPerTenant)
	}
	return podDelta(p.NamespacedName, &moved), podDelta(p.NamespacedName, p)
}

// PodRolls gives a pod the labels of the next version: no policy looks at them.
func (c *Cluster) PodRolls(i int) (does, undoes *policy.Delta) {
	p := c.pod(i)
	rolled := *p
	rolled.Labels = maps.Clone(p.Labels)
	rolled.Labels["version"], rolled.Labels["pod-template-hash"] = "next", fmt.Sprint(i)
	return podDelta(p.NamespacedName, &rolled), podDelta(p.NamespacedName, p)
}

// AppComes deploys an application that was not there: a pod that no other is like.
func (c *Cluster) AppComes(i int) (does, undoes *policy.Delta) {
	p := *c.pod(i)
	p.Name = fmt.Sprint("new-", i)
	p.Labels = map[string]string{"app": p.Name, "tier": tiers[i%len(tiers)]}
	a := uint32(nodeSubnet + 0x00fe0000 + i%0xffff)
	p.Addrs = append(p.Addrs[:0:0], v4(a), v6(a))
	return podDelta(p.NamespacedName, &p), podDelta(p.NamespacedName, nil)
}

// PolicyGoes removes a policy.
func (c *Cluster) PolicyGoes(i int) (does, undoes *policy.Delta) {
	np := c.policy(i)
	return policyDelta(np, nil), policyDelta(np, np)
}

// PolicyEdited changes the rules of a policy: one port more, one peer less, and
// where there are no rules, one that allows everything.
func (c *Cluster) PolicyEdited(i int) (does, undoes *policy.Delta) {
	np := c.policy(i)
	edited := np.DeepCopy()
	for j := range edited.Spec.Ingress {
		r := &edited.Spec.Ingress[j]
		r.Ports = append(r.Ports, tcp(int32(10000+i%1000)))
		r.From = r.From[:(len(r.From)+1)/2]
	}
	for j := range edited.Spec.Egress {
		edited.Spec.Egress[j].Ports = append(edited.Spec.Egress[j].Ports, tcp(int32(10000+i%1000)))
	}
	if len(edited.Spec.Ingress)+len(edited.Spec.Egress) == 0 {
		edited.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{}}
	}
	return policyDelta(np, edited), policyDelta(np, np)
}

func (c *Cluster) pod(i int) *policy.Pod { return c.Snapshot.Pods[i*7919%len(c.Snapshot.Pods)] }

func (c *Cluster) policy(i int) *networkingv1.NetworkPolicy {
	return c.Snapshot.Policies[i*7919%len(c.Snapshot.Policies)]
}

func podDelta(name policy.NamespacedName, p *policy.Pod) *policy.Delta {
	return &policy.Delta{Pods: map[policy.NamespacedName]*policy.Pod{name: p}}
}

func policyDelta(of, np *networkingv1.NetworkPolicy) *policy.Delta {
	name := policy.NamespacedName{Namespace: of.Namespace, Name: of.Name}
	return &policy.Delta{Policies: map[policy.NamespacedName]*networkingv1.NetworkPolicy{name: np}}
}
