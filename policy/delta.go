package policy

import (
	"maps"

	networkingv1 "k8s.io/api/networking/v1"
)

// Delta is what became of some objects of a cluster, by name: the newest state of
// each, nil if it is gone. The zero Delta is no change at all.
type Delta struct {
	// All says that objects which are not listed are gone.
	All bool

	Namespaces map[string]*Namespace
	Pods       map[NamespacedName]*Pod
	Nodes      map[string]*Node
	Policies   map[NamespacedName]*networkingv1.NetworkPolicy
}

// DeltaOf lists the objects of a snapshot as all there are.
func DeltaOf(s *Snapshot) *Delta {
	d := &Delta{
		All:        true,
		Namespaces: make(map[string]*Namespace, len(s.Namespaces)),
		Pods:       make(map[NamespacedName]*Pod, len(s.Pods)),
		Nodes:      make(map[string]*Node, len(s.Nodes)),
		Policies:   make(map[NamespacedName]*networkingv1.NetworkPolicy, len(s.Policies)),
	}
	for _, n := range s.Namespaces {
		d.Namespaces[n.Name] = n
	}
	for _, p := range s.Pods {
		d.Pods[p.NamespacedName] = p
	}
	for _, n := range s.Nodes {
		d.Nodes[n.Name] = n
	}
	for _, p := range s.Policies {
		d.Policies[NamespacedName{p.Namespace, p.Name}] = p
	}
	return d
}

// Add enters what happened after d, so that d says what happened in all.
func (d *Delta) Add(later *Delta) {
	if later.All {
		*d = Delta{All: true}
	}
	d.Namespaces = overlay(d.Namespaces, later.Namespaces)
	d.Pods = overlay(d.Pods, later.Pods)
	d.Nodes = overlay(d.Nodes, later.Nodes)
	d.Policies = overlay(d.Policies, later.Policies)
}

// Empty reports whether there is nothing in d.
func (d *Delta) Empty() bool {
	return !d.All && len(d.Namespaces)+len(d.Pods)+len(d.Nodes)+len(d.Policies) == 0
}

func overlay[K comparable, V any](under, over map[K]V) map[K]V {
	if len(over) == 0 {
		return under
	}
	if under == nil {
		return maps.Clone(over)
	}
	maps.Copy(under, over)
	return under
}
