package engine_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/policy"
)

// TestPortScan sends a SYN to each of 60,000 ports of a pod that nobody may
// reach. The engine counts 60,000 denials, and the flow log tells of 60,000 in a
// few lines.
func TestPortScan(t *testing.T) {
	const ports = 60_000
	n := newNetwork(t, hook.NFT)
	var out bytes.Buffer
	log := flow.NewLog(&out, flow.LogConfig{FoldEvery: time.Minute, Rate: 100, Burst: 1000})
	n.sinks = []flow.Sink{log}
	n.startWith(func(o *options) { o.queue.MaxLen = 4096 }, isolate(ingress, "server"))
	scan(t, n, ports)
	if got := n.engine.Stats().Decided(policy.Deny); got != ports {
		t.Errorf("the engine counts %d denials, want %d", got, ports)
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	lines, told, distinct := bytes.Count(out.Bytes(), []byte("\n")), uint64(0), 0
	for l, err := range flow.ReadJSON(&out) {
		if err != nil {
			t.Fatal(err)
		}
		told += l.Flows() + l.Lost + l.Withheld
		if l.Ports != nil {
			distinct = max(distinct, l.Ports.Distinct)
		}
	}
	if told != ports {
		t.Errorf("the log tells of %d denials, want %d", told, ports)
	}
	// 8 ports with a line each, then a line for the others when the log ends; on
	// a slow machine also for each minute, and for what full rings lost.
	if lines > 100 || distinct == 0 {
		t.Errorf("%d lines, the longest scan among them of %d ports", lines, distinct)
	}
	t.Logf("%d ports: %d lines, stats %+v", ports, lines, log.Stats())
}

// scan sends SYNs to ports 1 to n, no more at a time than the queue holds.
func scan(t *testing.T, n *network, ports int) {
	t.Helper()
	syn := tcpSYN(t, n.client.Addr4(), n.server.Addr4(), 40000, 0)
	const atOnce = 1000
	for first := 1; first <= ports; first += atOnce {
		var frames [][]byte
		for port := first; port < min(first+atOnce, ports+1); port++ {
			frames = append(frames, toPortOf(syn, uint16(port)))
		}
		sendFrames(t, n.node.Host, n.client, frames)
		sent := uint64(first + len(frames) - 1)
		eventually(t, fmt.Sprintf("%d denials", sent), func() bool { return n.engine.Stats().Decided(policy.Deny) >= sent })
	}
}

// toPortOf is a copy of an IPv4 TCP packet to another port; the checksum follows
// (RFC 1624).
func toPortOf(p []byte, port uint16) []byte {
	p = bytes.Clone(p)
	tcp := p[20:]
	old := binary.BigEndian.Uint16(tcp[2:])
	sum := uint32(^binary.BigEndian.Uint16(tcp[16:])) + uint32(^old) + uint32(port)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(tcp[2:], port)
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
	return p
}
