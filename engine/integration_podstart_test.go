package engine_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/policy"
)

// startPods is how many pods TestPodStart starts; `make promises` starts 500.
var startPods = flag.Int("pods", 24, "pods that TestPodStart starts one after another")

// newcomer is a pod that talks with its first instruction.
type newcomer struct {
	host    *netlab.Host
	allowed error // of the connection that policy allows
	denied  error // of the one that it forbids
}

// newcomers starts pods one after another. Each of them tries both connections
// before anybody knows it; the tree learns of it some time later, as an API
// server's watch would tell.
type newcomers struct {
	*network
	policies []*networkingv1.NetworkPolicy
	changed  chan struct{}

	mu    sync.Mutex
	known []*policy.Pod
}

// TestPodStart: no packet of a pod that is not known yet gets through that policy
// forbids, and none is refused that it allows, although the other end is policed
// by nobody.
func TestPodStart(t *testing.T) {
	eachBackendInTurn(t, func(t *testing.T, n *network) {
		n.serve(80, 81)
		var forbidden atomic.Int64
		n.countArrivals(n.server, 81, &forbidden)
		toServer := isolate(egress, "newcomer")
		peer := labelled("server")
		toServer.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{
			To:    []networkingv1.NetworkPolicyPeer{{PodSelector: &peer}},
			Ports: []networkingv1.NetworkPolicyPort{port(corev1.ProtocolTCP, 80)},
		}}
		s := &newcomers{network: n, policies: []*networkingv1.NetworkPolicy{toServer}, changed: make(chan struct{}, 1)}
		n.startWith(func(o *options) {
			o.engine.HoldLimit, o.engine.HoldTime = 1024, time.Minute
		}, s.policies...)
		n.applyTree(n.compile(s.snapshot()))
		pods := s.startAll(*startPods)
		var passed, refused int
		for _, p := range pods {
			if p.denied == nil || !errors.Is(p.denied, context.DeadlineExceeded) {
				passed++
				t.Errorf("%s: the forbidden connection: %v", p.host.Name(), p.denied)
			}
			if p.allowed != nil {
				refused++
				t.Errorf("%s: the allowed connection: %v", p.host.Name(), p.allowed)
			}
		}
		if got := forbidden.Load(); got != 0 {
			t.Errorf("%d packets arrived at the forbidden port", got)
		}
		stats := n.engine.Stats()
		if stats.Held < uint64(len(pods)) || stats.HoldExpired != 0 {
			t.Errorf("%d packets were held, %d too long: this tested little", stats.Held, stats.HoldExpired)
		}
		t.Logf("pod start: %d pods, forbidden got through %d, allowed refused %d, packets held %d", len(pods), passed, refused, stats.Held)
	})
}

// countArrivals counts the TCP packets that a host receives for a port.
func (n *network) countArrivals(h *netlab.Host, port uint16, count *atomic.Int64) {
	n.t.Helper()
	capture, err := h.Capture(toPort(policy.TCP, port))
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var counter sync.WaitGroup
	counter.Go(func() {
		for {
			if _, err := capture.Next(ctx); err != nil {
				return
			}
			count.Add(1)
		}
	})
	n.t.Cleanup(func() {
		stop()
		counter.Wait()
		capture.Close()
	})
}

func (s *newcomers) snapshot() *policy.Snapshot {
	snap := s.network.snapshot(true, s.policies...)
	snap.LocalPodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/64")}
	snap.Pods = nil
	for _, h := range []*netlab.Host{s.client, s.server, s.other} {
		snap.Pods = append(snap.Pods, podOf(h, h.Name()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	snap.Pods = append(snap.Pods, s.known...)
	return snap
}

func podOf(h *netlab.Host, app string) *policy.Pod {
	return &policy.Pod{
		NamespacedName: policy.NamespacedName{Namespace: "shop", Name: h.Name()},
		Labels:         map[string]string{"app": app},
		NodeName:       "node", Addrs: h.Addrs(), Phase: policy.PhaseRunning,
	}
}

func (s *newcomers) startAll(count int) []*newcomer {
	s.t.Helper()
	stop := make(chan struct{})
	var builder, talking sync.WaitGroup
	builder.Go(func() { s.build(stop) })
	pods := make([]*newcomer, count)
	for i := range pods {
		h, err := s.node.AddHost(fmt.Sprintf("new%d", i), newcomerAddr(i))
		if err != nil {
			s.t.Fatal(err)
		}
		pods[i] = &newcomer{host: h}
		talking.Go(func() { s.talk(pods[i]) })
		talking.Go(func() {
			// On a slow machine the tree must not be faster than the pod: each has a packet
			// on hold before it is known.
			eventually(s.t, "a packet of "+h.Name()+" on hold", func() bool { return s.engine.Stats().Held > uint64(i) })
			time.Sleep(time.Duration(i%5) * 50 * time.Millisecond)
			s.learn(h)
		})
	}
	talking.Wait()
	close(stop)
	builder.Wait()
	return pods
}

// newcomerAddr is of one family: the kernel's table of neighbours, which all
// namespaces share, has no more than 1024 of each.
func newcomerAddr(i int) netip.Addr {
	if i%2 == 0 {
		return netip.AddrFrom4([4]byte{10, 1, byte(1 + i>>8), byte(i)})
	}
	v6 := netip.MustParseAddr("fd00:1::1:0").As16()
	v6[14], v6[15] = byte(i>>8), byte(i)
	return netip.AddrFrom16(v6)
}

// talk tries both connections at once.
func (s *newcomers) talk(p *newcomer) {
	to := s.server.Addr6()
	if p.host.Addrs()[0].Is4() {
		to = s.server.Addr4()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
		defer cancel()
		_, p.allowed = p.host.HTTPGet(ctx, netip.AddrPortFrom(to, 80))
	})
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, p.denied = p.host.HTTPGet(ctx, netip.AddrPortFrom(to, 81))
	})
	wg.Wait()
}

func (s *newcomers) learn(h *netlab.Host) {
	s.mu.Lock()
	s.known = append(s.known, podOf(h, "newcomer"))
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// build applies what is known, as often as that changes; bursts coalesce.
func (s *newcomers) build(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-s.changed:
		}
		tree, err := policy.Compile(s.snapshot())
		if err == nil {
			_, err = s.engine.Apply(tree)
		}
		if err != nil {
			s.t.Error(err)
			return
		}
	}
}
