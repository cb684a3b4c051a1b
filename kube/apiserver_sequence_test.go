package kube

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/policytest"
)

// objects are what an API server stores of one kind, by namespace/name.
type objects map[string]metav1.Object

func (o objects) put(obj metav1.Object) { o[obj.GetNamespace()+"/"+obj.GetName()] = obj }

// world decodes the manifests of a snapshot.
func world(t *testing.T, s *policy.Snapshot) (out [kinds]objects) {
	t.Helper()
	for k := range out {
		out[k] = objects{}
	}
	for doc := range bytes.SplitSeq(policytest.Manifests(s), []byte("---\n")) {
		var h metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &h); err != nil {
			t.Fatal(err)
		}
		obj, k := map[string]metav1.Object{
			"Namespace": &corev1.Namespace{}, "Pod": &corev1.Pod{}, "Node": &corev1.Node{}, "NetworkPolicy": &networkingv1.NetworkPolicy{},
		}[h.Kind], slices.Index([]string{"Namespace", "Pod", "Node", "NetworkPolicy"}, h.Kind)
		if k < 0 {
			continue // before the first document
		}
		if err := yaml.Unmarshal(doc, obj); err != nil {
			t.Fatal(err)
		}
		out[k].put(obj)
	}
	return out
}

// store is a feed as its reflector sees it.
type store interface {
	Add(any) error
	Update(any) error
	Delete(any) error
	Replace([]any, string) error
	Bookmark(string) error
}

type stores [kinds]store

func newStores(ctx context.Context, o *owner) stores {
	pods := &podConverter{}
	return stores{
		namespaceKind: &feed[*corev1.Namespace, *policy.Namespace]{ctx, o, namespaceKind, o.namespaces, namespaceRow},
		podKind:       &feed[*corev1.Pod, *policy.Pod]{ctx, o, podKind, o.pods, pods.row},
		nodeKind:      &feed[*corev1.Node, *policy.Node]{ctx, o, nodeKind, o.nodes, nodeRow},
		policyKind:    &feed[*networkingv1.NetworkPolicy, *networkingv1.NetworkPolicy]{ctx, o, policyKind, o.policies, policyRow},
	}
}

// player brings worlds to the stores in ways that watches may.
type player struct {
	t      *testing.T
	rng    *rand.Rand
	owner  *owner
	stores stores
	now    [kinds]objects // what the stores were told last
}

func (p *player) do(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
	for {
		select {
		case event := <-p.owner.events:
			event()
		default:
			return
		}
	}
}

// to makes the stores know a world: by a list, or by single events in any order
// across objects and kinds, some of them twice, some by way of another state.
func (p *player) to(want [kinds]objects) {
	p.t.Helper()
	type step struct {
		kind kind
		key  string
	}
	var steps []step
	for k := range kinds {
		if p.rng.IntN(8) == 0 {
			p.relist(k, want[k])
			continue
		}
		for key := range union(p.now[k], want[k]) {
			steps = append(steps, step{k, key})
		}
	}
	slices.SortFunc(steps, func(a, b step) int { return int(a.kind-b.kind)*2 + cmpString(a.key, b.key) })
	p.rng.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
	for _, s := range steps {
		p.event(s.kind, p.now[s.kind][s.key], want[s.kind][s.key])
	}
	p.now = want
}

func cmpString(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

func union(a, b objects) map[string]bool {
	keys := map[string]bool{}
	for _, o := range []objects{a, b} {
		for k := range o {
			keys[k] = true
		}
	}
	return keys
}

func (p *player) relist(k kind, want objects) {
	var all []any
	for _, obj := range want {
		all = append(all, obj)
	}
	p.do(p.stores[k].Replace(all, "1"))
}

func (p *player) event(k kind, before, after metav1.Object) {
	store := p.stores[k]
	switch {
	case before == nil && after == nil:
	case after == nil:
		p.do(store.Delete(before))
		if p.rng.IntN(4) == 0 {
			p.do(store.Delete(before))
		}
	case before == nil:
		p.arrive(store, after)
	default:
		switch p.rng.IntN(4) {
		case 0: // replaced by another of its name
			p.do(store.Delete(before))
		case 1: // back and forth
			p.do(store.Update(after))
			p.do(store.Update(before))
		}
		p.arrive(store, after)
	}
	if p.rng.IntN(5) == 0 {
		p.do(store.Bookmark("2"))
	}
}

func (p *player) arrive(store store, obj metav1.Object) {
	p.do(store.Update(obj))
	if p.rng.IntN(3) == 0 {
		p.do(store.Add(obj))
	}
}

// TestSnapshotDependsOnObjectsOnly brings the same objects in many ways and wants
// what loading them as manifests gives.
func TestSnapshotDependsOnObjectsOnly(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		rng := policytest.NewRand(seed)
		var got *policy.Snapshot
		c := newCluster("test", [kinds]lister{}, ClusterOptions{})
		builder := policy.NewBuilder(policy.Scope{})
		follow := func(s *policy.Snapshot, _ *Report) {
			got = s
			builder.Apply(s.Since)
		}
		o := newOwner(c, follow, func(err error) { t.Errorf("seed %d: %v", seed, err) })
		p := &player{t: t, rng: rng, owner: o, stores: newStores(t.Context(), o)}
		for k := range kinds {
			p.relist(k, nil)
		}
		s := policytest.Random(seed, policytest.Size{})
		p.to(world(t, s))
		for range 12 {
			s = policytest.Mutate(rng, s)
			if rng.IntN(3) > 0 {
				continue // several changes at once
			}
			p.to(world(t, s))
			if rng.IntN(3) == 0 {
				o.publish() // whatever is published must not disturb what comes later
			}
		}
		p.to(world(t, s))
		o.publish()
		want := fromManifests(t, s)
		if diff := cmp.Diff(want, got, compareAddrs, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(policy.Snapshot{}, "Local", "Since")); diff != "" {
			t.Fatalf("seed %d: snapshot of the events (+) and of manifests (-):\n%s", seed, diff)
		}
		before, after := compiled(t, want), compiled(t, got)
		if change := policy.Compare(before, after); change.Revokes || change.Adds {
			t.Fatalf("seed %d: the snapshot decides differently from the manifests: %+v", seed, change)
		}
		built, err := builder.Build()
		if err != nil {
			t.Fatal(err)
		}
		if change := policy.Compare(before, built); change != (policy.Change{}) || built.Stats() != before.Stats() {
			t.Fatalf("seed %d: following what changed leads to another tree: %+v, %+v, want %+v", seed, change, built.Stats(), before.Stats())
		}
	}
}

// fromManifests loads the objects of a snapshot, in the order and without the pods
// that Cluster leaves out.
func fromManifests(t *testing.T, s *policy.Snapshot) *policy.Snapshot {
	t.Helper()
	path := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(path, policytest.Manifests(s), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, err := Load(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	out.Pods = slices.DeleteFunc(out.Pods, func(p *policy.Pod) bool { return p.Phase == policy.PhaseEnded || len(p.Addrs) == 0 })
	slices.SortFunc(out.Pods, func(a, b *policy.Pod) int { return a.Compare(b.NamespacedName) })
	slices.SortFunc(out.Namespaces, func(a, b *policy.Namespace) int { return cmpString(a.Name, b.Name) })
	slices.SortFunc(out.Nodes, func(a, b *policy.Node) int { return cmpString(a.Name, b.Name) })
	slices.SortFunc(out.Policies, func(a, b *networkingv1.NetworkPolicy) int {
		return policy.NamespacedName{Namespace: a.Namespace, Name: a.Name}.Compare(policy.NamespacedName{Namespace: b.Namespace, Name: b.Name})
	})
	return out
}

// compiled ignores which node looks on: the source leaves that to its caller.
func compiled(t *testing.T, s *policy.Snapshot) *policy.Tree {
	t.Helper()
	tree, err := policy.Compile(&policy.Snapshot{Namespaces: s.Namespaces, Pods: s.Pods, Nodes: s.Nodes, Policies: s.Policies})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}
