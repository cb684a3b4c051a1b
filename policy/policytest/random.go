// Package policytest makes small, adversarial clusters for tests of package
// policy and of everything that carries objects to it: random snapshots, the
// connections most likely to be decided wrongly in them, single changes for
// incremental tests, and the same snapshots as manifests for end-to-end runs.
//
// Everything is a function of a seed, so a failing test names the seed and is
// repeated with it. Universes are small on purpose: few names, labels,
// addresses and ports collide often, and collisions are where mistakes hide.
package policytest

import (
	"math/rand/v2"
	"net/netip"

	"github.com/netverdict/netverdict/policy"
)

// Size says how many objects a universe has; zero fields take Small's.
type Size struct {
	Namespaces int // how many different namespaces pods and policies live in, at most 26
	Nodes      int
	Pods       int
	Policies   int
}

// Small is dense enough for most features to meet in one universe, and small
// enough to be read when a test fails.
var Small = Size{Namespaces: 4, Nodes: 3, Pods: 14, Policies: 7}

func (s Size) withDefaults() Size {
	for _, f := range []struct {
		field *int
		value int
	}{
		{&s.Namespaces, Small.Namespaces}, {&s.Nodes, Small.Nodes},
		{&s.Pods, Small.Pods}, {&s.Policies, Small.Policies},
	} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	return s
}

// NewRand is the source of randomness that Random uses for a seed; tests use it
// for their flows and mutations as well.
func NewRand(seed uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, 0x6e657476657264)) // "netverd"
}

// Random builds a valid snapshot: the same seed and size give the same snapshot.
func Random(seed uint64, size Size) *policy.Snapshot {
	g := &generator{rng: NewRand(seed), size: size.withDefaults(), s: &policy.Snapshot{}}
	g.namespaces()
	g.nodes()
	for range g.size.Pods {
		g.s.Pods = append(g.s.Pods, g.pod())
	}
	g.poachedAddresses()
	for range g.size.Policies {
		g.s.Policies = append(g.s.Policies, g.networkPolicy())
	}
	g.scope()
	g.audits()
	g.denials()
	g.shuffle()
	return g.s
}

// generator draws objects that fit into the snapshot s.
type generator struct {
	rng  *rand.Rand
	size Size
	s    *policy.Snapshot
}

// chance is true in p of 100 cases.
func (g *generator) chance(p int) bool { return g.rng.IntN(100) < p }

func pick[T any](rng *rand.Rand, from []T) T { return from[rng.IntN(len(from))] }

// scope draws the parts of a snapshot that say which node is looking at it.
func (g *generator) scope() {
	switch local := nodeName(0); g.rng.IntN(10) {
	case 0, 1, 2, 3:
		g.s.Local = nil
	case 4, 5, 6, 7:
		g.s.Local = func(p *policy.Pod) bool { return p.NodeName == local }
	case 8:
		g.s.Local = func(p *policy.Pod) bool { return p.NodeName != local }
	default:
		g.s.Local = func(*policy.Pod) bool { return false }
	}
	if g.chance(40) {
		g.s.LocalPodCIDRs = []netip.Prefix{podRange4(0), podRange6(0)}
	}
	if g.chance(30) {
		g.s.UnknownPod = policy.Allow
	}
}

// shuffle takes away any meaning that the order of the objects might have.
func (g *generator) shuffle() {
	shuffle(g.rng, g.s.Namespaces)
	shuffle(g.rng, g.s.Nodes)
	shuffle(g.rng, g.s.Pods)
	shuffle(g.rng, g.s.Policies)
}

func shuffle[T any](rng *rand.Rand, list []T) {
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}
