package engine_test

import (
	"flag"
	"io"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// `make promises` sets what we promise, 5 %, and takes more windows: on a busy machine
// two seconds differ by anything, so that no dip is too much by itself.
var (
	dip        = flag.Float64("dip", 100, "per cent of its throughput that a flow which stays allowed may lose in TestKeptFlows while something is revoked")
	dipWindows = flag.Int("dip-windows", 4, "windows with a revocation in TestKeptFlows, and as many without")
)

const dipWindow = time.Second

// TestKeptFlows: revoking something makes the engine judge all live flows again. Those
// that stay allowed lose no byte of TCP and no datagram, and hardly any throughput:
// windows with a revocation take turns with windows without, and each is compared with
// its neighbour, because what else the machine does changes in the long run.
func TestKeptFlows(t *testing.T) {
	eachBackendInTurn(t, func(t *testing.T, n *network) {
		n.startWith(func(o *options) { o.engine.Log = flow.None }, allow("client", "server"))
		lines := openStreams(t, n.client, n.server)
		var numbered []*datagrams
		families(n.server, func(_ string, a netip.Addr) { numbered = append(numbered, openDatagrams(t, n.client, n.server, a)) })
		b := n.startBulk()
		queued := n.queued()
		fine, revoking := n.tree(allow("client", "server")), n.tree(allow("client", "server"), isolate(ingress, "other"))
		var quiet, busy, ratios []float64
		for range *dipWindows {
			quiet = append(quiet, b.window(nil))
			busy = append(busy, b.window(func() { n.demandRevokes(revoking) }))
			ratios = append(ratios, busy[len(busy)-1]/quiet[len(quiet)-1])
			n.applyTree(fine) // adds only: nobody is asked about again
		}
		var sent, arrived uint64
		for _, f := range numbered {
			f.demandAll()
			sent, arrived = sent+f.sent.Load(), arrived+f.received.Load()
		}
		var received int64
		for _, s := range lines {
			s.awaitLines(10)
			received += s.received[0].lines.Load() + s.received[1].lines.Load()
		}
		asked := n.queued() - queued
		if asked == 0 {
			t.Error("nobody was asked about again: this tested nothing")
		}
		lost := 100 * (1 - median(ratios))
		t.Logf("kept flows: %d revocations, %d packets judged again: %.0f MB/s without, %.0f MB/s with one in the window (medians), dip %.1f%% (median of neighbours); %d lines over TCP, none missing; datagrams arrived %d of %d",
			len(busy), asked, median(quiet)/1e6, median(busy)/1e6, lost, received, arrived, sent)
		if lost > *dip {
			t.Errorf("the throughput dips by %.1f%%, want %.1f%% at most; MB/s without: %.0f, with: %.0f", lost, *dip, inMB(quiet), inMB(busy))
		}
	})
}

// demandRevokes applies a tree that must revoke something.
func (n *network) demandRevokes(tree *policy.Tree) {
	n.t.Helper()
	change, err := n.engine.Apply(tree)
	if err != nil || !change.Revokes {
		n.t.Fatalf("apply what revokes something: %+v, %v", change, err)
	}
}

// load is a TCP connection as fast as it can be.
type load struct{ bytes atomic.Int64 }

func (n *network) startBulk() *load {
	n.t.Helper()
	s := openTCP(n.t, n.client, n.server, n.server.Addr4())
	n.t.Cleanup(s.close)
	l := &load{}
	s.wg.Go(func() { flood(s.conns[0]) })
	s.wg.Go(func() {
		buf := make([]byte, 256<<10)
		for {
			got, err := io.ReadAtLeast(s.conns[1], buf, 1)
			l.bytes.Add(int64(got))
			if err != nil {
				return
			}
		}
	})
	time.Sleep(dipWindow) // until TCP has found its rate
	return l
}

// window is how many bytes a second arrive in one in which something happens at the
// beginning.
func (l *load) window(happens func()) float64 {
	start, before := time.Now(), l.bytes.Load()
	if happens != nil {
		happens()
	}
	time.Sleep(dipWindow - time.Since(start))
	return float64(l.bytes.Load()-before) / time.Since(start).Seconds()
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

func inMB(perSecond []float64) (out []float64) {
	for _, v := range perSecond {
		out = append(out, v/1e6)
	}
	return out
}
