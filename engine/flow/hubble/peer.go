package hubble

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	peerpb "github.com/cilium/cilium/api/v1/peer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Node is a node of the cluster, all of which serve on the same port.
type Node struct {
	Name string
	Addr netip.Addr // where its agent is reached
}

// peer is a node as relays need it.
type peer struct {
	address    string
	serverName string
}

// peers are the nodes by their names in flows. A published map never changes.
type peers struct {
	mu      sync.Mutex
	known   map[string]peer
	changed chan struct{} // closed at the next change; nil: nobody waits
}

func (p *peers) get(name string) (peer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	found, ok := p.known[name]
	return found, ok
}

// set replaces the nodes.
func (p *peers) set(known map[string]peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if maps.Equal(p.known, known) {
		return
	}
	p.known = known
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// look returns the nodes, and a channel that is closed when there are others.
func (p *peers) look() (known map[string]peer, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed == nil {
		p.changed = make(chan struct{})
	}
	return p.known, p.changed
}

// SetNodes tells relays which nodes there are.
func (s *Server) SetNodes(nodes []Node) {
	if s.opts.PeerPort == 0 {
		return
	}
	known := make(map[string]peer, len(nodes))
	for _, n := range nodes {
		if n.Addr.IsValid() {
			known[s.nodeName(n.Name)] = peer{
				address:    net.JoinHostPort(n.Addr.String(), strconv.Itoa(int(s.opts.PeerPort))),
				serverName: ServerName(n.Name, s.opts.Cluster),
			}
		}
	}
	s.peers.set(known)
}

// ServerName is the name that a relay demands of a node's certificate:
// NODE.CLUSTER.hubble-grpc.cilium.io, dots within the names made hyphens. It is
// Cilium's, so that its tools and manuals for certificates apply: a wildcard
// certificate for *.default.hubble-grpc.cilium.io serves all nodes.
func ServerName(node, cluster string) string {
	if cluster == "" {
		cluster = DefaultCluster
	}
	hyphens := strings.NewReplacer(".", "-")
	return hyphens.Replace(node) + "." + hyphens.Replace(cluster) + ".hubble-grpc.cilium.io"
}

// Notify tells a relay of all nodes, and then of every change. A stream compares
// what it has sent with what there is, so a slow one misses no node, only states
// that are over.
func (s *Server) Notify(_ *peerpb.NotifyRequest, stream peerpb.Peer_NotifyServer) error {
	if s.opts.PeerPort == 0 {
		return status.Error(codes.FailedPrecondition, "the agents of this cluster serve a unix socket only, so no relay can reach them: start them with --hubble-listen")
	}
	var sent map[string]peer
	for {
		known, changed := s.peers.look()
		for _, change := range changesOf(sent, known) {
			if err := stream.Send(change); err != nil {
				return err
			}
		}
		sent = known
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// changesOf lists what became of the nodes, sorted by name within each kind.
func changesOf(before, after map[string]peer) (changes []*peerpb.ChangeNotification) {
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if _, ok := after[name]; !ok {
			changes = append(changes, before[name].change(name, peerpb.ChangeNotificationType_PEER_DELETED))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		now := after[name]
		switch was, ok := before[name]; {
		case !ok:
			changes = append(changes, now.change(name, peerpb.ChangeNotificationType_PEER_ADDED))
		case was != now:
			changes = append(changes, now.change(name, peerpb.ChangeNotificationType_PEER_UPDATED))
		}
	}
	return changes
}

func (p peer) change(name string, t peerpb.ChangeNotificationType) *peerpb.ChangeNotification {
	return &peerpb.ChangeNotification{
		Name: name, Address: p.address, Type: t, Tls: &peerpb.TLS{ServerName: p.serverName},
	}
}
