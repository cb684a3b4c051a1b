package engine

import (
	"flag"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/bench/cputime"
	"github.com/netverdict/netverdict/bench/gen"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// BenchmarkHandle measures a worker from packet bytes to answer, and what the flow
// cache buys: with few flows that come again and again (hot), with as many as fit
// into it (warm), and with more than it holds (cold). Besides the usual cluster of
// 1,000 policies and 10,000 pods there are those in which a decision costs the most:
// a tree that no CPU cache holds, long lists of ports, many networks.
func BenchmarkHandle(b *testing.B) {
	for _, world := range worlds(b) {
		for _, flows := range []struct {
			name string
			n    int
		}{{"hot", 64}, {"warm", 1 << 13}, {"cold", 1 << 15}} {
			packets := synPackets(b, world.connections(flows.n))
			for _, size := range []int{0, 1 << 14} {
				b.Run(fmt.Sprintf("%s/%s/cache=%d", world.name, flows.name, size), func(b *testing.B) {
					handle(b, benchWorker(b, world.tree, size), packets)
				})
			}
		}
	}
}

func handle(b *testing.B, w *worker, packets []queue.Packet) {
	for range 3 { // the cache admits what it sees a second time
		for i := range packets {
			w.Handle(&packets[i])
		}
	}
	b.ReportAllocs()
	defer cputime.Report(b)()
	for i := 0; b.Loop(); i++ {
		a := w.Handle(&packets[i%len(packets)])
		if a.Action != queue.Repeat {
			b.Fatalf("packet %d: %v, want a verdict for the kernel to remember", i, a.Action)
		}
	}
}

// world is a tree, and connections to ask it about.
type world struct {
	name        string
	tree        *policy.Tree
	connections func(n int) []gen.Connection
}

func worlds(b *testing.B) []world {
	big := gen.Size{Pods: 100_000, Policies: 10_000}
	if flag.Lookup("test.benchtime").Value.String() == "1x" { // to see that it works
		big = gen.Size{Pods: 2_000, Policies: 200}
	}
	usual := gen.New(1, gen.Size{Pods: 10_000, Policies: 1_000})
	huge := gen.New(1, big)
	local, isLocal := usual.OnNode(0)
	tenant := usual.Tenant(0)
	ports, blocks := usual.Connections(1<<15, tenant), usual.Connections(1<<15, tenant)
	for i := range ports {
		ports[i].Port = uint16(1024 + i%60000)
		blocks[i].Dst, blocks[i].Port = gen.Block(2*(i%5000), i%3 == 0), 443
	}
	first := func(all []gen.Connection) func(int) []gen.Connection {
		return func(n int) []gen.Connection { return all[:n] }
	}
	return []world{
		{"usual", treeOf(b, usual, isLocal), func(n int) []gen.Connection { return usual.Connections(n, local) }},
		{"big-clusterwide", treeOf(b, huge, nil), func(n int) []gen.Connection { return huge.Connections(n, nil) }},
		{"3000-port-ranges", treeOf(b, usual, nil, usual.ManyPorts(3000)), first(ports)},
		{"10000-networks", treeOf(b, usual, nil, usual.ManyBlocks(10_000)), first(blocks)},
	}
}

func treeOf(b *testing.B, c *gen.Cluster, local func(*policy.Pod) bool, more ...*networkingv1.NetworkPolicy) *policy.Tree {
	s := *c.Snapshot
	s.Local, s.Policies = local, slices.Concat(s.Policies, more)
	tree, err := policy.Compile(&s)
	if err != nil {
		b.Fatal(err)
	}
	return tree
}

func benchWorker(b *testing.B, tree *policy.Tree, cacheSize int) *worker {
	marks, err := hook.NewMarks(hook.DefaultMarkMask)
	if err != nil {
		b.Fatal(err)
	}
	c, err := newCache(cacheSize)
	if err != nil {
		b.Fatal(err)
	}
	by := new(atomic.Pointer[judgement])
	by.Store(&judgement{tree: tree, serial: 1, epoch: 1, cells: newCells(tree.Outcomes(), 1)})
	return &worker{by: by, marks: marks, decoder: packet.NewDecoder(), cache: c, ring: flow.NewRing(1024), log: flow.None}
}

func synPackets(b *testing.B, conns []gen.Connection) []queue.Packet {
	var packets []queue.Packet
	for i, c := range conns {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: c.Src.AsSlice(), DstIP: c.Dst.AsSlice()}
		tcp := &layers.TCP{SrcPort: layers.TCPPort(1024 + i%60000), DstPort: layers.TCPPort(c.Port), SYN: true, Window: 64240}
		if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
			b.Fatal(err)
		}
		buf := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, tcp); err != nil {
			b.Fatal(err)
		}
		packets = append(packets, queue.Packet{ID: uint32(i + 1), Payload: buf.Bytes()})
	}
	return packets
}
