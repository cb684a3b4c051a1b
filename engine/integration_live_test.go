package engine_test

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/policy"
)

// prompt is how long after the swap of the tree a byte of a revoked flow may still
// arrive. `make promises` sets what we promise, 100 ms; otherwise the machine may be
// busy with other tests, and all that counts is that the flow is cut.
var prompt = flag.Duration("prompt", patience, "how soon TestLiveFlows demands that a revoked flow is cut")

// traffic is a live flow of one kind, of which the last arrival counts.
type traffic struct {
	name  string
	last  atomic.Int64 // Unix nanoseconds
	bytes atomic.Int64
	stop  func()
}

func (f *traffic) arrived(n int) {
	f.last.Store(time.Now().UnixNano())
	f.bytes.Add(int64(n))
}

// drain counts what arrives at one end.
func (f *traffic) drain(r io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			f.arrived(n)
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// flood writes until the connection is closed.
func flood(w io.Writer) {
	buf := make([]byte, 32<<10)
	for {
		if _, err := w.Write(buf); err != nil {
			return
		}
	}
}

// bulk writes a lot, but leaves the machine some time: many of them run at once.
func bulk(w io.Writer) {
	buf := make([]byte, 16<<10)
	for {
		if _, err := w.Write(buf); err != nil {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// kinds are what the flows of TestLiveFlows do. Only over the last one nothing
// ever comes from the client again.
var kinds = []struct {
	name    string
	network string
	client  func(*traffic, net.Conn)
	server  func(*traffic, net.Conn)
}{
	{"tcp-upload", "tcp", func(_ *traffic, c net.Conn) { bulk(c) }, func(f *traffic, c net.Conn) { f.drain(c) }},
	{"tcp-download", "tcp", func(f *traffic, c net.Conn) { f.drain(c) }, func(_ *traffic, c net.Conn) { bulk(c) }},
	{"tcp-both-ways", "tcp",
		func(f *traffic, c net.Conn) { go bulk(c); f.drain(c) },
		func(f *traffic, c net.Conn) { go bulk(c); f.drain(c) }},
	{"tcp-server-push", "tcp", func(f *traffic, c net.Conn) { f.drain(c) }, func(_ *traffic, c net.Conn) { trickle(c) }},
	{"udp-both-ways", "udp",
		func(f *traffic, c net.Conn) { go trickle(c); f.drain(c) },
		func(f *traffic, c net.Conn) { go trickle(c); f.drain(c) }},
	{"udp-server-push", "udp", func(f *traffic, c net.Conn) { f.drain(c) }, func(_ *traffic, c net.Conn) { trickle(c) }},
}

// trickle sends a little every millisecond until the connection is closed.
func trickle(c net.Conn) {
	for {
		if _, err := c.Write(make([]byte, 100)); errors.Is(err, net.ErrClosed) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// startTraffic opens a flow of every kind over each family.
func startTraffic(t testing.TB, from, to *netlab.Host) (all []*traffic) {
	t.Helper()
	families(to, func(family string, a netip.Addr) {
		for _, k := range kinds {
			var s *stream
			if k.network == "tcp" {
				s = openTCP(t, from, to, a)
			} else {
				s = openUDP(t, from, to, a)
			}
			f := &traffic{name: fmt.Sprintf("%s %s %s>%s", k.name, family, from.Name(), to.Name())}
			var ends sync.WaitGroup
			ends.Go(func() { k.client(f, s.conns[0]) })
			ends.Go(func() { k.server(f, s.conns[1]) })
			f.stop = sync.OnceFunc(func() {
				s.close()
				ends.Wait()
			})
			t.Cleanup(f.stop)
			all = append(all, f)
		}
	})
	for _, f := range all {
		f.awaitMore(t)
	}
	return all
}

// awaitMore waits until something arrives.
func (f *traffic) awaitMore(t testing.TB) {
	t.Helper()
	have := f.bytes.Load()
	eventually(t, f.name+": more bytes", func() bool { return f.bytes.Load() > have })
}

// demandAllCut waits until nothing arrives any more, checks that nothing has later than
// it may, and reports the last arrivals.
func demandAllCut(t testing.TB, what string, flows []*traffic, swapped time.Time) {
	t.Helper()
	for _, f := range flows {
		awaitSilence(t, fmt.Sprintf("%s: %s", what, f.name), f.lastArrival)
		late := f.lastArrival().Sub(swapped)
		if late > *prompt {
			t.Errorf("%s: %s: a byte arrived %v after the swap of the tree", what, f.name, late)
		}
		t.Logf("live flow: %s: %s: last byte %v after the swap", what, f.name, max(late, 0).Round(100*time.Microsecond))
	}
}

func (f *traffic) lastArrival() time.Time { return time.Unix(0, f.last.Load()) }

// swapTime applies a tree and returns when it took effect, or a little earlier.
func (n *network) swapTime(tree *policy.Tree) time.Time {
	n.t.Helper()
	_, serial := n.engine.Tree()
	at := make(chan time.Time, 1)
	go func() {
		for {
			if _, now := n.engine.Tree(); now != serial {
				at <- time.Now()
				return
			}
			time.Sleep(50 * time.Microsecond)
		}
	}()
	n.applyTree(tree)
	return <-at
}

// TestLiveFlows: a flow that a change denies passes no byte any more, whatever its
// direction, and goes on when it is allowed again; also if it is older than the
// agent.
func TestLiveFlows(t *testing.T) {
	for _, b := range []hook.Backend{hook.NFT, hook.Legacy} {
		t.Run(b.String(), func(t *testing.T) { // one after the other: the time counts
			n := newNetwork(t, b)
			n.consecutive()
			n.track()
			older := startTraffic(t, n.client, n.server) // than the agent
			kept := startTraffic(t, n.server, n.other)   // policed, and allowed all the time
			fine := allow("server", "other")
			n.startWith(func(o *options) { o.engine.ConfineTo, o.engine.Log = 8, flow.None }, fine, allow("other", "server"))
			demandAllCut(t, "older than the agent", older, time.Now())

			n.apply(fine, allow("client", "server"))
			for _, f := range older {
				if !isTCP(f) { // what TCP sends again may take its time
					f.awaitMore(t)
				}
				f.stop()
			}
			flows := startTraffic(t, n.client, n.server)
			demandAllCut(t, "revoked", flows, n.swapTime(n.tree(fine, allow("other", "server"))))
			n.apply(fine, allow("client", "server"))
			for _, f := range flows {
				f.awaitMore(t) // cut flows live again
			}
			demandAllCut(t, "isolated", flows, n.swapTime(n.tree(fine, isolate(ingress, "server"), isolate(egress, "client"))))
			n.apply(fine)
			for _, f := range append(flows, kept...) {
				f.awaitMore(t)
			}
		})
	}
}

// track makes the node track connections from now on, as kube-proxy's rules do: the
// kernel does not before a rule wants it.
func (n *network) track() {
	n.t.Helper()
	for _, family := range []string{"v4", "v6"} {
		n.command(n.iptables(family, ""), "-A", "FORWARD", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")
	}
}

func isTCP(f *traffic) bool { return f.name[:3] == "tcp" }

// TestConfinedChangeDisturbsNobody: when a pod goes, comes, or gets another policy,
// nobody else is asked about again, and allowed UDP of others loses no datagram.
func TestConfinedChangeDisturbsNobody(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.consecutive()
		n.startWith(func(o *options) { o.engine.ConfineTo = 8 }, allow("client", "server"), isolate(ingress, "other"))
		demand(t, http(policy.Allow, n.client, n.server, 80)...)
		demand(t, http(policy.Deny, n.client, n.other, 80)...)
		var flows []*datagrams
		families(n.server, func(_ string, a netip.Addr) { flows = append(flows, openDatagrams(t, n.client, n.server, a)) })
		for _, f := range flows {
			eventually(t, "datagrams", func() bool { return f.received.Load() > 10 })
		}
		queued := n.queued()
		generation := n.matched(hook.PurposeAllowed)
		without := n.snapshot(true, allow("client", "server"), isolate(ingress, "other"))
		for i := range 6 {
			change, err := n.engine.Apply(n.compile(n.snapshot(i%2 == 0, allow("client", "server"), isolate(ingress, "other"), isolate(ingress, "late"))))
			if err != nil {
				t.Fatal(err)
			}
			if change == (policy.Change{}) {
				t.Fatal("the change is none")
			}
			demand(t, http(policy.Allow, n.client, n.server, 80)...) // by the allow set
		}
		n.applyTree(n.compile(without))
		for _, f := range flows {
			f.demandAll()
		}
		demand(t, http(policy.Allow, n.client, n.server, 80)...)
		if got := n.queued(); got != queued {
			t.Errorf("user space saw %d packets for changes that concern others", got-queued)
		}
		if got := n.matched(hook.PurposeAllowed); got != generation {
			t.Errorf("%d verdicts were given", got-generation)
		}
		demand(t, http(policy.Deny, n.client, n.other, 80)...)
	})
}

// TestConfinedRevocationForgets: when another pod gets an address, what its
// predecessor was allowed and denied is forgotten, and its flows are cut; also for a
// flow on which only the server still sends.
func TestConfinedRevocationForgets(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.consecutive()
		policies := []*networkingv1.NetworkPolicy{allow("client", "server")}
		// other's address belongs to a pod that may reach the server, or to one that may not.
		holder := func(app string) *policy.Tree {
			s := n.snapshot(false, policies...)
			for _, p := range s.Pods {
				if p.Name == "other" {
					p.Name, p.Labels = "next-"+app, map[string]string{"app": app}
				}
			}
			return n.compile(s)
		}
		n.startWith(func(o *options) { o.engine.ConfineTo = 8 }, policies...)
		n.applyTree(holder("client"))
		untouched := startTraffic(t, n.client, n.server)
		generation := n.generation()
		for range 3 {
			n.applyTree(holder("client"))
			demand(t, http(policy.Allow, n.other, n.server, 80)...)
			flows := startTraffic(t, n.other, n.server)
			demandAllCut(t, "another pod", flows, n.swapTime(holder("stranger")))
			demand(t, http(policy.Deny, n.other, n.server, 80)...)
			for _, f := range flows {
				f.stop()
			}
		}
		for _, f := range untouched {
			f.awaitMore(t)
		}
		if got := n.generation(); got != generation {
			t.Errorf("generation %q, was %q: everybody was asked about again", got, generation)
		}
	})
}

// generation is the rule that believes connection marks.
func (n *network) generation() string {
	n.t.Helper()
	var rule string
	for line := range strings.Lines(n.command("iptables-"+n.backend.String()+"-save", "-t", "mangle")) {
		if strings.Contains(line, " NETVERDICT -m connmark --mark ") && strings.HasSuffix(line, "-j RETURN\n") {
			rule = line
		}
	}
	if rule == "" {
		n.t.Fatal("no rule of the chain NETVERDICT believes connection marks")
	}
	return rule
}

// BenchmarkThroughputDuringChanges: one TCP connection that stays allowed, while
// policies change for all ten times a second, five times revoking something; and,
// to compare, while nothing changes.
func BenchmarkThroughputDuringChanges(b *testing.B) {
	for _, changing := range []bool{false, true} {
		name := "quiet"
		if changing {
			name = "ten-changes-per-second"
		}
		b.Run(name, func(b *testing.B) { throughput(b, changing) })
	}
}

func throughput(b *testing.B, changing bool) {
	n := newNetwork(b, hook.NFT)
	n.startWith(func(o *options) { o.engine.Log = flow.None }, allow("client", "server"))
	s := openTCP(b, n.client, n.server, n.server.Addr4())
	b.Cleanup(s.close)
	go flood(s.conns[0])
	stop := make(chan struct{})
	var changes sync.WaitGroup
	if changing {
		changes.Go(func() { n.changeUntil(stop) })
	}
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := io.ReadFull(s.conns[1], buf); err != nil {
			b.Fatal(err)
		}
	}
	close(stop)
	changes.Wait()
}

// changeUntil revokes something five times a second, and adds it again as often.
func (n *network) changeUntil(stop <-chan struct{}) {
	trees := []*policy.Tree{n.tree(allow("client", "server"), isolate(ingress, "other")), n.tree(allow("client", "server"))}
	for i := 0; ; i++ {
		if _, err := n.engine.Apply(trees[i%2]); err != nil {
			n.t.Error(err)
			return
		}
		select {
		case <-stop:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}
