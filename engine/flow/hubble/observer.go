package hubble

import (
	"context"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	relaypb "github.com/cilium/cilium/api/v1/relay"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// GetFlows sends what the history has of the request and, if it follows, what
// comes. It ends with an error of the stream, or of the request.
func (s *Server) GetFlows(req *observerpb.GetFlowsRequest, stream observerpb.Observer_GetFlowsServer) error {
	r, err := s.newRequest(req)
	if err != nil {
		return err
	}
	if r.follow && r.selection.wantsAllowed() {
		release := s.opts.Demand.Want(allFlows)
		defer release()
	}
	sub := subscriber{server: s, request: r, stream: stream}
	return sub.run(stream.Context())
}

// GetAgentEvents is not offered: these events are about Cilium's agent.
func (s *Server) GetAgentEvents(*observerpb.GetAgentEventsRequest, observerpb.Observer_GetAgentEventsServer) error {
	return status.Error(codes.Unimplemented, "netverdict has no agent events")
}

// GetDebugEvents is not offered: these events are about Cilium's datapath.
func (s *Server) GetDebugEvents(*observerpb.GetDebugEventsRequest, observerpb.Observer_GetDebugEventsServer) error {
	return status.Error(codes.Unimplemented, "netverdict has no debug events")
}

// ServerStatus says how full the history is and since when it is kept.
func (s *Server) ServerStatus(context.Context, *observerpb.ServerStatusRequest) (*observerpb.ServerStatusResponse, error) {
	st := s.history.state()
	return &observerpb.ServerStatusResponse{
		NumFlows:  st.next - st.oldest,
		MaxFlows:  uint64(s.opts.History),
		SeenFlows: s.seen.Load(),
		UptimeNs:  uint64(time.Since(s.started)),
		Version:   "netverdict " + s.opts.Version,
		FlowsRate: s.rate(time.Now()),
	}, nil
}

// rate is the number of records a second over the last minute, or over as much of
// it as the history goes back.
func (s *Server) rate(now time.Time) float64 {
	since := now.Add(-time.Minute)
	if s.started.After(since) {
		since = s.started
	}
	st := s.history.state()
	var buf [readLen]event
	count, full := 0, st.oldest > 0
	for from := st.oldest; from < st.next; {
		n, at, _ := s.history.read(buf[:min(st.next-from, readLen)], from)
		for i := range buf[:n] {
			t := time.Unix(0, buf[i].Time)
			if full && from == st.oldest && i == 0 && t.After(since) {
				since = t
			}
			if !t.Before(since) {
				count++
			}
		}
		if n == 0 {
			break
		}
		from = at + uint64(n)
	}
	if elapsed := now.Sub(since).Seconds(); elapsed > 0 {
		return float64(count) / elapsed
	}
	return 0
}

// GetNodes lists this node: the only one whose flows are here. Of a whole cluster
// hubble-relay makes the list.
func (s *Server) GetNodes(ctx context.Context, _ *observerpb.GetNodesRequest) (*observerpb.GetNodesResponse, error) {
	st, err := s.ServerStatus(ctx, nil)
	if err != nil {
		return nil, err
	}
	node := &observerpb.Node{
		Name:     s.nodeName(s.opts.NodeName),
		Version:  st.GetVersion(),
		State:    relaypb.NodeState_NODE_CONNECTED,
		Tls:      &observerpb.TLS{},
		UptimeNs: st.GetUptimeNs(), NumFlows: st.GetNumFlows(), MaxFlows: st.GetMaxFlows(), SeenFlows: st.GetSeenFlows(),
	}
	if p, ok := s.peers.get(node.GetName()); ok {
		node.Address = p.address
		node.Tls = &observerpb.TLS{Enabled: true, ServerName: p.serverName}
	}
	return &observerpb.GetNodesResponse{Nodes: []*observerpb.Node{node}}, nil
}

// GetNamespaces lists the namespaces that had flows in the last hour.
func (s *Server) GetNamespaces(context.Context, *observerpb.GetNamespacesRequest) (*observerpb.GetNamespacesResponse, error) {
	resp := &observerpb.GetNamespacesResponse{}
	for _, name := range s.spaces.list(time.Now()) {
		resp.Namespaces = append(resp.Namespaces, &observerpb.Namespace{Cluster: s.clusterOf(), Namespace: name})
	}
	return resp, nil
}

// clusterOf is the cluster's name where Hubble leaves the default one out.
func (s *Server) clusterOf() string {
	if s.opts.Cluster == DefaultCluster {
		return ""
	}
	return s.opts.Cluster
}
