package hubble

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	peerpb "github.com/cilium/cilium/api/v1/peer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/netverdict/netverdict/engine/flow"
)

// DefaultCluster is the name that Hubble's clients take for none.
const DefaultCluster = "default"

// DefaultHistory is how many records are kept by default. One takes about 300
// bytes, and what it says of pods and policies besides.
const DefaultHistory = 4096

// healthService is what the hubble command asks the health service for.
const healthService = "hubble.server.Observer"

// Options make a server.
type Options struct {
	// NodeName is this node's; needed.
	NodeName string
	// Cluster is the cluster's name; empty for DefaultCluster.
	Cluster string
	// Version is this program's, without a "v".
	Version string
	// History is how many records to keep; 0 for DefaultHistory.
	History int
	// Demand is told what this sink wants: denied flows from New on, all of them
	// while a subscriber does. nil: nobody asks.
	Demand *flow.Demand
	// PeerPort is the TCP port on which the agents of all nodes serve; 0 if they do
	// not, and then there are no peers.
	PeerPort uint16
}

// Server is the sink that keeps a history and serves it. Its services may be
// registered with several gRPC servers.
type Server struct {
	observerpb.UnimplementedObserverServer
	peerpb.UnimplementedPeerServer

	opts    Options
	id      [8]byte // of the UUIDs of this server's flows
	started time.Time
	history *history
	peers   peers
	spaces  namespaces
	health  *health.Server

	keeper keeper // the collector's

	seen        atomic.Uint64
	overwritten atomic.Uint64 // records that subscribers did not get in time, over all of them
	subscribers atomic.Int64
}

var (
	_ flow.Sink                 = (*Server)(nil)
	_ observerpb.ObserverServer = (*Server)(nil)
	_ peerpb.PeerServer         = (*Server)(nil)
)

// New makes a server.
func New(opts Options) (*Server, error) {
	if opts.NodeName == "" {
		return nil, errors.New("hubble server: the name of this node is missing")
	}
	if opts.Cluster == "" {
		opts.Cluster = DefaultCluster
	}
	if opts.History <= 0 {
		opts.History = DefaultHistory
	}
	if opts.Demand == nil {
		opts.Demand = &flow.Demand{}
	}
	s := &Server{opts: opts, started: time.Now(), history: newHistory(opts.History), health: health.NewServer(), keeper: newKeeper()}
	if _, err := rand.Read(s.id[:]); err != nil {
		return nil, err
	}
	s.health.SetServingStatus(healthService, healthpb.HealthCheckResponse_SERVING)
	opts.Demand.Want(flow.Denied)
	return s, nil
}

// Register adds the services to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	observerpb.RegisterObserverServer(r, s)
	peerpb.RegisterPeerServer(r, s)
	healthpb.RegisterHealthServer(r, s.health)
}

// ServerOptions are what a gRPC server of these services should have: subscribers
// that went away without a word are noticed within two minutes.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 30 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.MaxConcurrentStreams(256),
		grpc.MaxRecvMsgSize(1 << 20), // requests are lists of filters
	}
}

// Flows keeps the records.
func (s *Server) Flows(records []flow.Record) {
	events := s.keeper.keep(records)
	s.spaces.note(events)
	s.seen.Add(uint64(len(events)))
	s.history.write(events)
}

// Lost reports to all subscribers that n records never got here.
func (s *Server) Lost(n uint64, _ time.Time) { s.history.miss(n) }

// Stats are running totals, for metrics.
type Stats struct {
	Seen        uint64 // records
	Overwritten uint64 // records that subscribers were too slow for; each counts its own
	Subscribers int64  // GetFlows requests being served now
}

// Stats may be called at any time from any goroutine.
func (s *Server) Stats() Stats {
	return Stats{Seen: s.seen.Load(), Overwritten: s.overwritten.Load(), Subscribers: s.subscribers.Load()}
}

// nodeName is the node's name as flows carry it: with the cluster's, unless that
// is the default.
func (s *Server) nodeName(node string) string {
	if s.opts.Cluster == DefaultCluster {
		return node
	}
	return s.opts.Cluster + "/" + node
}

// uuid names the record at a position: a UUID of version 8 (RFC 9562 section 5.8),
// this server's number and the position.
func (s *Server) uuid(position uint64) (u [16]byte) {
	copy(u[:8], s.id[:])
	binary.BigEndian.PutUint64(u[8:], position)
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u
}
