package policytest

import "github.com/netverdict/netverdict/policy"

// DeltaBetween is what has changed from one snapshot to another. Objects are told
// apart by their addresses: one that changed must be another.
func DeltaBetween(before, after *policy.Snapshot) *policy.Delta {
	a, b := policy.DeltaOf(before), policy.DeltaOf(after)
	return &policy.Delta{
		Namespaces: changed(a.Namespaces, b.Namespaces), Pods: changed(a.Pods, b.Pods),
		Nodes: changed(a.Nodes, b.Nodes), Policies: changed(a.Policies, b.Policies),
	}
}

func changed[K comparable, T any](a, b map[K]*T) map[K]*T {
	d := map[K]*T{}
	for k := range a {
		if b[k] == nil {
			d[k] = nil
		}
	}
	for k, v := range b {
		if a[k] != v {
			d[k] = v
		}
	}
	return d
}
