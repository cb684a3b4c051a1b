// Package bench measures netverdict. Every benchmark asserts the verdict it
// measures; README.md says how to run them and what they showed.
package bench

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/bench/cputime"
	"github.com/netverdict/netverdict/bench/gen"
	"github.com/netverdict/netverdict/policy"
)

const decisions = 1 << 14 // connections a benchmark goes round in

// BenchmarkMapLookup is the yardstick for decisions: one look-up of a 16-byte
// key in a Go map of 100,000 entries, in random order.
func BenchmarkMapLookup(b *testing.B) {
	m := map[[16]byte]uint32{}
	var keys [][16]byte
	for i := range uint32(100_000) {
		k := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).As16()
		m[k] = i
		keys = append(keys, k)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	rng.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	b.ReportAllocs()
	defer cputime.Report(b)()
	for i := 0; b.Loop(); {
		if _, ok := m[keys[i]]; !ok {
			b.Fatal("key is missing")
		}
		if i++; i == len(keys) {
			i = 0
		}
	}
}

// outcomes are the kinds of answers that BenchmarkDecide measures apart, and
// any of them in the order in which they come.
var outcomes = []struct {
	name string
	is   func(*policy.Decision) bool
}{
	{"any", func(*policy.Decision) bool { return true }},
	{"allow/policy", func(d *policy.Decision) bool {
		return d.Verdict == policy.Allow && d.Outcome().Reason == policy.ReasonPolicy
	}},
	{"deny/default-deny", func(d *policy.Decision) bool { return d.Verdict == policy.Deny }},
}

// BenchmarkDecide measures connections between random pods of a cluster. scope
// says whose policies are compiled: one node's, as an agent does (then the source
// is one of its pods), or all, as the offline tools do.
func BenchmarkDecide(b *testing.B) {
	for _, size := range decideSizes() {
		for _, scope := range scopes {
			tree := sync.OnceValue(func() scene { return newScene(b, size, scope) })
			for _, o := range outcomes {
				b.Run(fmt.Sprintf("%s/%s/%dpods/%dpolicies", o.name, scope, size.Pods, size.Policies), func(b *testing.B) {
					s := tree()
					conns := draw(s.cluster, s.tree, s.from, o.is)
					if conns == nil {
						b.Skip("too few policies for this outcome to occur")
					}
					decide(b, s.tree, conns, o.is)
				})
			}
		}
	}
}

// scene is a compiled cluster, and the pods that connections come from.
type scene struct {
	cluster *gen.Cluster
	tree    *policy.Tree
	from    []*policy.Pod
}

func newScene(b *testing.B, size gen.Size, scope string) scene {
	c := gen.New(1, size)
	s := *c.Snapshot
	var from []*policy.Pod
	if scope == "node" {
		from, s.Local = c.OnNode(0)
	}
	return scene{c, compile(b, &s), from}
}

// decideSizes vary the policies at 100,000 pods, and the pods at 1,000 policies.
func decideSizes() []gen.Size {
	if once() {
		return []gen.Size{{Pods: 100, Policies: 100}, {Pods: 1_000, Policies: 10}, {Pods: 1_000, Policies: 1_000}}
	}
	var all []gen.Size
	for _, policies := range []int{10, 100, 1_000, 10_000, 100_000} {
		all = append(all, gen.Size{Pods: 100_000, Policies: policies})
	}
	for _, pods := range []int{100, 1_000, 10_000, 200_000} {
		all = append(all, gen.Size{Pods: pods, Policies: 1_000})
	}
	return all
}

// BenchmarkDecideShape measures policies at the edge of what people write: many
// rules, port ranges, or networks with exceptions, asked from the pods that they
// isolate.
func BenchmarkDecideShape(b *testing.B) {
	c := gen.New(1, gen.Size{Pods: 10_000, Policies: 1_000})
	from := c.Tenant(0)
	for _, shape := range []struct {
		name  string
		sizes []int
		make  func(int) *networkingv1.NetworkPolicy
		ask   func(i, n int, conn *gen.Connection)
	}{
		{"rules", []int{1, 10, 100}, c.ManyRules, func(i, n int, conn *gen.Connection) { conn.Port = uint16(8000 + i%n) }},
		{"port-ranges", []int{1, 10, 100, 1000}, c.ManyPorts, func(i, n int, conn *gen.Connection) { conn.Port = uint16(1024 + i%(20*n)) }},
		{"networks", []int{1, 10, 100, 1_000, 10_000}, c.ManyBlocks, func(i, n int, conn *gen.Connection) {
			conn.Port, conn.Dst = 443, gen.Block(i%n, i%4 == 0)
			if !conn.Dst.Is4() {
				conn.Src = from[i%len(from)].Addrs[1]
			}
		}},
	} {
		for _, n := range shape.sizes {
			s := *c.Snapshot
			s.Policies = slices.Concat(s.Policies, []*networkingv1.NetworkPolicy{shape.make(n)})
			tree := compile(b, &s)
			conns := c.Connections(decisions, from)
			for i := range conns {
				shape.ask(i, n, &conns[i])
			}
			b.Run(fmt.Sprintf("%s/%d", shape.name, n), func(b *testing.B) { decide(b, tree, conns, outcomes[0].is) })
		}
	}
}

// draw collects connections with an outcome; nil if one round of them has none.
func draw(c *gen.Cluster, tree *policy.Tree, from []*policy.Pod, is func(*policy.Decision) bool) []gen.Connection {
	var conns []gen.Connection
	for range 1000 {
		for _, conn := range c.Connections(decisions, from) {
			d := tree.Decide(conn.Src, conn.Dst, conn.Protocol, conn.Port)
			if is(&d) {
				conns = append(conns, conn)
			}
			if len(conns) == decisions {
				return conns
			}
		}
		if len(conns) == 0 {
			return nil
		}
	}
	return nil
}

// decide measures, and asserts the outcome of every decision.
func decide(b *testing.B, tree *policy.Tree, conns []gen.Connection, is func(*policy.Decision) bool) {
	want := 0
	for _, c := range conns {
		d := tree.Decide(c.Src, c.Dst, c.Protocol, c.Port)
		if !is(&d) {
			b.Fatalf("%v: %+v is not the outcome to be measured", c, d)
		}
		want += int(d.Verdict)
	}
	b.ReportAllocs()
	report := cputime.Report(b)
	var got, n int
	for b.Loop() {
		c := &conns[n%decisions]
		d := tree.Decide(c.Src, c.Dst, c.Protocol, c.Port)
		got += int(d.Verdict)
		n++
	}
	report()
	for _, c := range conns[:n%decisions] { // the last round, which is not whole
		d := tree.Decide(c.Src, c.Dst, c.Protocol, c.Port)
		got -= int(d.Verdict)
	}
	if rounds := n / decisions; got != rounds*want {
		b.Fatalf("%d connections were allowed in %d rounds, want %d in each", got, rounds, want)
	}
	b.ReportMetric(float64(want)/decisions, "allowed/op")
}

func compile(b *testing.B, s *policy.Snapshot) *policy.Tree {
	b.Helper()
	tree, err := policy.Compile(s)
	if err != nil {
		b.Fatal(err)
	}
	return tree
}

// BenchmarkCompile measures a whole compilation.
func BenchmarkCompile(b *testing.B) {
	for _, size := range sizes() {
		for _, scope := range scopes {
			b.Run(fmt.Sprintf("%s/%dpods/%dpolicies", scope, size.Pods, size.Policies), func(b *testing.B) {
				c := gen.New(1, size)
				s := *c.Snapshot
				s.Local = scoped(c, scope).Local
				b.ReportAllocs()
				defer cputime.Report(b)()
				for b.Loop() {
					compile(b, &s)
				}
			})
		}
	}
}
