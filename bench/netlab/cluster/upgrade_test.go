//go:build linux

package cluster_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/bench/netlab/cluster"
)

// connections are new connections, one after another, all of one fate.
type connections struct {
	tried, other atomic.Int64 // other: those whose fate was another
	stop         context.CancelFunc
	wg           sync.WaitGroup
}

// keepConnecting opens some connections at a time, over each family, until end.
func (s *scene) keepConnecting(from *netlab.Host, to *cluster.Pod, allowed bool) *connections {
	ctx, stop := context.WithCancel(s.Context())
	c := &connections{stop: stop}
	limit := cluster.Silence
	if allowed {
		limit = cluster.Patience
	}
	for _, target := range to.Targets(80) {
		for range 4 {
			c.wg.Go(func() {
				for ctx.Err() == nil {
					once, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
					_, err := cluster.Reach(once, from, tcp, target)
					cancel()
					c.tried.Add(1)
					if (err == nil) != allowed {
						c.other.Add(1)
						s.Errorf("%s > %s: %v; want allowed: %v", from.Name(), target, err, allowed)
						return
					}
					time.Sleep(5 * time.Millisecond)
				}
			})
		}
	}
	s.Cleanup(c.end)
	return c
}

func (c *connections) end() {
	c.stop()
	c.wg.Wait()
}

// TestUpgrade is what a DaemonSet with maxSurge: 1 does to a node: an agent starts with
// the same arguments beside the one that enforces, and when it is ready, the old one is
// told to stop. No connection is refused that is allowed, none passes that is not, and
// an established one goes on. The two want the same ports and sockets meanwhile.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.New(t, cluster.Options{Nodes: 1, AgentArgs: []string{"--allow-timeout=0", "--deny-timeout=0"}}))
	node := s.c.Node("node-1")
	server := s.pod("server", "node-1", cluster.TCP("", 80))
	client, stranger := s.pod("client", "node-1"), s.pod("stranger", "node-1")
	s.apply("client-only", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}")
	s.demand("before", allowed(client.Host, server, tcp, 80), denied(stranger.Host, server, tcp, 80))
	stream, err := cluster.OpenStream(s.within(), client.Host, server.Targets(80)[1])
	s.ok(err)
	defer stream.Close()

	good, bad := s.keepConnecting(client.Host, server, true), s.keepConnecting(stranger.Host, server, false)
	old := node.Agent()
	const upgrades = 3
	for range upgrades {
		next, err := node.StartAgent()
		s.ok(err)
		if strings.Join(next.Args, " ") == strings.Join(old.Args, " ") {
			s.Error("the agents' health sockets are the same, which are their pods' own")
		}
		s.ok(next.AwaitReady(s.within()))
		s.ok(stream.Exchange(cluster.Patience))
		s.await("the old agent to wait", func() bool {
			ready, said := old.Ready(s.within())
			return !ready && strings.Contains(said, "another agent has taken over")
		})
		s.await("the new agent's metrics", func() bool { return s.measures(node, "netverdict_listeners_waiting 0") })
		s.await("the new agent's status", func() bool {
			st, err := next.Status(s.within())
			return err == nil && st.Enforcing
		})
		s.ok(old.Stop())
		s.ok(stream.Exchange(cluster.Patience))
		if ready, said := next.Ready(s.within()); !ready {
			s.Errorf("after the end of the old agent the new one says %q", said)
		}
		old = next
	}
	good.end()
	bad.end()
	t.Logf("%d upgrades: allowed connections %d, refused %d; forbidden %d, passed %d; the established one answers",
		upgrades, good.tried.Load(), good.other.Load(), bad.tried.Load(), bad.other.Load())
}

// measures reports whether an agent of the node serves a line on install.yaml's port.
func (s *scene) measures(node *cluster.Node, line string) bool {
	client := &http.Client{Transport: &http.Transport{DialContext: node.DialContext, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(s.within(), http.MethodGet, "http://127.0.0.1:8052/metrics", http.NoBody)
	s.ok(err)
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return err == nil && strings.Contains(string(text), line+"\n")
}

// TestUpgradeFails: the new agent dies before or after it has taken over; the old one,
// which waits, goes on.
func TestUpgradeFails(t *testing.T) {
	t.Parallel()
	s := newScene(t, cluster.New(t, cluster.Options{Nodes: 1}))
	node := s.c.Node("node-1")
	server := s.pod("server", "node-1", cluster.TCP("", 80))
	client, stranger := s.pod("client", "node-1"), s.pod("stranger", "node-1")
	s.apply("client-only", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}")
	old := node.Agent()

	broken, err := node.StartAgent("--kubeconfig=/nonexistent")
	s.ok(err)
	<-broken.Done()
	if broken.ExitError() == nil {
		s.Error("an agent without an API server ended well")
	}
	if ready, said := old.Ready(s.within()); !ready {
		s.Errorf("after an agent that never began the old one says %q", said)
	}
	next, err := node.StartAgent()
	s.ok(err)
	s.ok(next.AwaitReady(s.within()))
	next.Kill()
	s.ok(old.AwaitReady(s.within()))
	s.demand("by the old agent", allowed(client.Host, server, tcp, 80), denied(stranger.Host, server, tcp, 80))
	s.ok(old.Stop())
	if err := old.ExitError(); err != nil && !errors.Is(err, context.Canceled) {
		s.Error(err)
	}
}
