package engine

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/netverdict/netverdict/bench/gen"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// BenchmarkHandle measures a worker from packet bytes to answer at 1,000
// policies and 10,000 pods, and what the flow cache buys: with few flows that
// come again and again (hot), and with more than it holds (cold).
func BenchmarkHandle(b *testing.B) {
	c := gen.New(1, gen.Size{Pods: 10_000, Policies: 1_000})
	from, local := c.OnNode(0)
	s := *c.Snapshot
	s.Local = local
	tree, err := policy.Compile(&s)
	if err != nil {
		b.Fatal(err)
	}
	for _, flows := range []struct {
		name string
		n    int
	}{{"hot", 64}, {"cold", 1 << 15}} {
		packets := synPackets(b, c.Connections(flows.n, from))
		for _, size := range []int{0, 4096} {
			b.Run(fmt.Sprintf("%s/cache=%d", flows.name, size), func(b *testing.B) {
				w := benchWorker(b, tree, size)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					a := w.Handle(&packets[i%len(packets)])
					if a.Action != queue.Repeat {
						b.Fatalf("packet %d: %v, want a verdict for the kernel to remember", i, a.Action)
					}
				}
			})
		}
	}
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
