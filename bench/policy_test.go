// Package bench measures netverdict. Every benchmark asserts the verdict it
// measures; README.md says how to run them and what they showed.
package bench

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

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
	for _, pods := range []int{1_000, 100_000} {
		for _, policies := range []int{10, 100, 1_000, 10_000} {
			c := gen.New(1, gen.Size{Pods: pods, Policies: policies})
			local, isLocal := c.OnNode(0)
			for _, scope := range []string{"node", "cluster"} {
				s := *c.Snapshot
				from := local
				if scope == "node" {
					s.Local = isLocal
				} else {
					from = nil
				}
				tree := compile(b, &s)
				for _, o := range outcomes {
					conns := draw(c, tree, from, o.is)
					if conns == nil {
						continue // too few policies for this outcome to occur
					}
					b.Run(fmt.Sprintf("%s/%s/%dpods/%dpolicies", o.name, scope, pods, policies), func(b *testing.B) {
						decide(b, tree, conns, o.is)
					})
				}
			}
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
	var got, n int
	for b.Loop() {
		c := &conns[n%decisions]
		d := tree.Decide(c.Src, c.Dst, c.Protocol, c.Port)
		got += int(d.Verdict)
		n++
	}
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
	for _, size := range []gen.Size{{Pods: 1_000, Policies: 100}, {Pods: 10_000, Policies: 1_000}, {Pods: 100_000, Policies: 10_000}} {
		c := gen.New(1, size)
		_, isLocal := c.OnNode(0)
		for _, scope := range []string{"node", "cluster"} {
			s := *c.Snapshot
			if scope == "node" {
				s.Local = isLocal
			}
			b.Run(fmt.Sprintf("%s/%dpods/%dpolicies", scope, size.Pods, size.Policies), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					compile(b, &s)
				}
			})
		}
	}
}
