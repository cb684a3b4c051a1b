package bench

import (
	"flag"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/netverdict/netverdict/bench/cputime"
	"github.com/netverdict/netverdict/bench/gen"
	"github.com/netverdict/netverdict/policy"
)

// once reports that every benchmark runs a single time, to see that it works: then
// the sizes that take long to set up are left out.
func once() bool { return flag.Lookup("test.benchtime").Value.String() == "1x" }

// sizes are clusters for changes and compilation.
func sizes() []gen.Size {
	if once() {
		return []gen.Size{{Pods: 1_000, Policies: 100}, {Pods: 10_000, Policies: 1_000}}
	}
	var all []gen.Size
	for _, pods := range []int{1_000, 10_000, 100_000} {
		for _, policies := range []int{100, 1_000, 10_000} {
			all = append(all, gen.Size{Pods: pods, Policies: policies})
		}
	}
	return all
}

// scoped is one node's view of a cluster, as an agent has it, or that of all, as the
// offline tools have it.
func scoped(c *gen.Cluster, scope string) policy.Scope {
	if scope == "node" {
		_, local := c.OnNode(0)
		return policy.Scope{Local: local}
	}
	return policy.Scope{}
}

var scopes = []string{"node", "cluster"}

// BenchmarkUpdate measures what one change costs, from the object to the tree and
// the answer what it does to connections. Every change is taken back by the next.
func BenchmarkUpdate(b *testing.B) {
	for _, size := range sizes() {
		for _, scope := range scopes {
			setUp := sync.OnceValue(func() *updated { return newUpdated(b, size, scope) })
			for _, change := range changes {
				b.Run(fmt.Sprintf("%s/%s/%dpods/%dpolicies", change.name, scope, size.Pods, size.Policies), func(b *testing.B) {
					setUp().update(b, change.make)
				})
			}
		}
	}
}

var changes = []struct {
	name string
	make func(*gen.Cluster, int) (does, undoes *policy.Delta)
}{
	{"pod-goes-and-comes", (*gen.Cluster).PodGoes},
	{"pod-relabelled-to-other-app", (*gen.Cluster).PodMoves},
	{"pod-relabelled-no-policy-looks", (*gen.Cluster).PodRolls},
	{"first-pod-of-an-app", (*gen.Cluster).AppComes},
	{"policy-goes-and-comes", (*gen.Cluster).PolicyGoes},
	{"policy-edited", (*gen.Cluster).PolicyEdited},
}

// updated is a cluster whose tree is changed step by step.
type updated struct {
	cluster *gen.Cluster
	builder *policy.Builder
	tree    *policy.Tree
}

func newUpdated(b *testing.B, size gen.Size, scope string) *updated {
	c := gen.New(1, size)
	builder, tree := build(b, c, scoped(c, scope))
	return &updated{c, builder, tree}
}

func build(b *testing.B, c *gen.Cluster, s policy.Scope) (*policy.Builder, *policy.Tree) {
	b.Helper()
	builder := policy.NewBuilder(s)
	builder.Apply(policy.DeltaOf(c.Snapshot))
	tree, err := builder.Build()
	if err != nil {
		b.Fatal(err)
	}
	return builder, tree
}

// update measures, and demands in the end that the tree is what it was.
func (u *updated) update(b *testing.B, change func(*gen.Cluster, int) (does, undoes *policy.Delta)) {
	stats := u.tree.Stats()
	var undo *policy.Delta
	b.ReportAllocs()
	end := cputime.Report(b)
	for i := 0; b.Loop(); i++ {
		do := undo
		if i%2 == 0 {
			do, undo = change(u.cluster, i/2)
		}
		u.step(b, do)
	}
	end()
	u.builder.Apply(undo)
	tree, err := u.builder.Build()
	if err != nil || tree.Stats() != stats {
		b.Fatalf("%+v after all was taken back, want %+v (%v)", tree.Stats(), stats, err)
	}
	u.tree = tree
}

func (u *updated) step(b *testing.B, d *policy.Delta) {
	u.builder.Apply(d)
	now, err := u.builder.Build()
	if err != nil {
		b.Fatal(err)
	}
	if now == u.tree {
		b.Fatal("nothing changed")
	}
	policy.Compare(u.tree, now)
	u.tree = now
}

// BenchmarkMemory measures what a builder and its tree hold, without the objects.
func BenchmarkMemory(b *testing.B) {
	for _, size := range sizes() {
		for _, scope := range scopes {
			b.Run(fmt.Sprintf("%s/%dpods/%dpolicies", scope, size.Pods, size.Policies), func(b *testing.B) {
				c := gen.New(1, size)
				var held float64
				for b.Loop() {
					before := heap()
					builder, tree := build(b, c, scoped(c, scope))
					held = float64(heap() - before)
					runtime.KeepAlive(builder)
					runtime.KeepAlive(tree)
				}
				b.ReportMetric(held/(1<<20), "MB")
				b.ReportMetric(held/float64(size.Pods), "B/pod")
			})
		}
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
