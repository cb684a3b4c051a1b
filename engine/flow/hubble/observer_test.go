package hubble

import (
	"runtime"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// TestLookBack asks for parts of a history whose records are a second apart.
func TestLookBack(t *testing.T) {
	s := newServer(t, Options{History: 100})
	start := time.Now().Add(-time.Hour)
	at := func(second int) *timestamppb.Timestamp {
		return timestamppb.New(start.Add(time.Duration(second) * time.Second))
	}
	for i, r := range numbered(1, 150) { // 1 to 50 are forgotten
		r.Time = at(i + 1).AsTime().UnixNano()
		if r.SrcPort%2 == 0 {
			r.DstPort = 443
		}
		s.Flows([]flow.Record{r})
	}
	c := observer(t, s)
	even := []*flowpb.FlowFilter{{DestinationPort: []string{"443"}}}
	for what, test := range map[string]struct {
		req  *observerpb.GetFlowsRequest
		want []int
	}{
		"everything":             {&observerpb.GetFlowsRequest{}, span(51, 150)},
		"last 3":                 {&observerpb.GetFlowsRequest{Number: 3}, span(148, 150)},
		"last 90":                {&observerpb.GetFlowsRequest{Number: 90}, span(61, 150)},
		"more than there is":     {&observerpb.GetFlowsRequest{Number: 1000}, span(51, 150)},
		"first 3":                {&observerpb.GetFlowsRequest{Number: 3, First: true}, span(51, 53)},
		"since":                  {&observerpb.GetFlowsRequest{Since: at(147)}, span(147, 150)},
		"until":                  {&observerpb.GetFlowsRequest{Until: at(53)}, span(51, 53)},
		"since and until":        {&observerpb.GetFlowsRequest{Since: at(60), Until: at(62)}, span(60, 62)},
		"last 2 until":           {&observerpb.GetFlowsRequest{Number: 2, Until: at(62)}, span(61, 62)},
		"first 2 since":          {&observerpb.GetFlowsRequest{Number: 2, First: true, Since: at(60)}, span(60, 61)},
		"last 2 that match":      {&observerpb.GetFlowsRequest{Number: 2, Whitelist: even}, []int{148, 150}},
		"first 2 that match":     {&observerpb.GetFlowsRequest{Number: 2, First: true, Whitelist: even}, []int{52, 54}},
		"last 2 that do not":     {&observerpb.GetFlowsRequest{Number: 2, Blacklist: even}, []int{147, 149}},
		"until before the start": {&observerpb.GetFlowsRequest{Until: at(1)}, []int{}},
		"from the year 1":        {&observerpb.GetFlowsRequest{Since: timestamppb.New(time.Time{}), Number: 1, First: true}, []int{51}},
		"to the year 9999":       {&observerpb.GetFlowsRequest{Until: timestamppb.New(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)), Number: 1}, []int{150}},
	} {
		wantPorts(t, what, sourcePorts(t, c, test.req), test.want)
	}
}

// TestFollow: what was, if asked for, then what comes, without a gap.
func TestFollow(t *testing.T) {
	s := newServer(t, Options{})
	s.Flows(numbered(1, 10))
	c := observer(t, s)
	fresh := follow(t, s, c, &observerpb.GetFlowsRequest{})
	after := follow(t, s, c, &observerpb.GetFlowsRequest{Number: 2})
	all := follow(t, s, c, &observerpb.GetFlowsRequest{Since: timestamppb.New(time.Now().Add(-time.Hour))})
	for i, r := range numbered(11, 200) {
		s.Flows([]flow.Record{r})
		if i%17 == 0 {
			runtime.Gosched()
		}
	}
	for _, f := range []struct {
		*follower
		from int
	}{{fresh, 11}, {after, 9}, {all, 1}} {
		for port := f.from; port <= 210; port++ {
			if got := f.flow().GetL4().GetTCP().GetSourcePort(); int(got) != port {
				t.Fatalf("follower from %d: port %d, want %d", f.from, got, port)
			}
		}
	}
}

// TestFollowUntil ends when the time has come, though nothing happens.
func TestFollowUntil(t *testing.T) {
	s := newServer(t, Options{})
	c := observer(t, s)
	req := &observerpb.GetFlowsRequest{Follow: true, Until: timestamppb.New(time.Now().Add(50 * time.Millisecond))}
	if all, err := answer(t, c, req); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
}

// TestSlowSubscriber: one that does not read costs the sink nothing and is told
// exactly how many records it missed; one that reads misses none.
func TestSlowSubscriber(t *testing.T) {
	const offered = 60_000
	s := newServer(t, Options{History: 256})
	c := observer(t, s)
	slow := follow(t, s, c, &observerpb.GetFlowsRequest{})
	batch := numbered(0, 200)
	for range offered / len(batch) { // flow control stops the stream long before
		s.Flows(batch)
	}
	last := record(defaultDeny)
	last.SrcPort = 65535
	s.Flows([]flow.Record{last})
	var got, lost uint64
	for done := false; !done || got+lost < offered; {
		resp := slow.next()
		if l := resp.GetLostEvents(); l != nil {
			if l.GetSource() != flowpb.LostEventSource_HUBBLE_RING_BUFFER || l.GetFirst().AsTime().After(l.GetLast().AsTime()) {
				t.Errorf("lost: %v", l)
			}
			lost += l.GetNumEventsLost()
			continue
		}
		if resp.GetFlow().GetL4().GetTCP().GetSourcePort() == 65535 {
			done = true
			continue
		}
		got++
	}
	if got+lost != offered || lost == 0 || s.Stats().Overwritten != lost {
		t.Errorf("%d flows and %d lost of %d; the server counts %d", got, lost, offered, s.Stats().Overwritten)
	}
}

// TestRingLosses: what the workers' rings had no room for is reported to everybody,
// once, whatever their filters.
func TestRingLosses(t *testing.T) {
	s := newServer(t, Options{})
	c := observer(t, s)
	s.Lost(5, time.Now()) // before anybody subscribed
	nothing := &observerpb.GetFlowsRequest{Whitelist: []*flowpb.FlowFilter{{SourceIp: []string{"192.0.2.1"}}}}
	f := follow(t, s, c, nothing)
	s.Flows(numbered(1, 1))
	s.Lost(7, time.Now())
	if l := f.next().GetLostEvents(); l.GetNumEventsLost() != 7 || l.GetSource() != flowpb.LostEventSource_OBSERVER_EVENTS_QUEUE {
		t.Errorf("follower: %v", l)
	}
	s.Flows(numbered(2, 1))
	s.Lost(2, time.Now())
	all, err := answer(t, c, &observerpb.GetFlowsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var flows, lost uint64
	for _, resp := range all {
		if resp.GetFlow() != nil {
			flows++
		}
		lost += resp.GetLostEvents().GetNumEventsLost()
	}
	if flows != 2 || lost != 9 { // 5 are from before the first flow
		t.Errorf("look back: %d flows and %d lost, want 2 and 9: %v", flows, lost, all)
	}
}

// TestDemand: allowed flows are wanted only while somebody can see them.
func TestDemand(t *testing.T) {
	demand := &flow.Demand{}
	s := newServer(t, Options{Demand: demand})
	c := observer(t, s)
	wanted := func(v policy.Verdict) bool { return demand.Keep(v) }
	if !wanted(policy.Deny) || wanted(policy.Allow) {
		t.Error("without subscribers denied flows are wanted, and no others")
	}
	dropped := []*flowpb.FlowFilter{{Verdict: []flowpb.Verdict{flowpb.Verdict_DROPPED}}}
	forwarded := []*flowpb.FlowFilter{{Verdict: []flowpb.Verdict{flowpb.Verdict_FORWARDED}}}
	passed := []*flowpb.FlowFilter{{Verdict: []flowpb.Verdict{flowpb.Verdict_AUDIT, flowpb.Verdict_FORWARDED}}}
	for _, req := range []*observerpb.GetFlowsRequest{{Whitelist: dropped}, {Blacklist: passed}} {
		f := follow(t, s, c, req)
		if wanted(policy.Allow) {
			t.Errorf("%v needs no allowed flows", req)
		}
		f.cancel()
		eventually(t, "the end of the subscription", func() bool { return s.Stats().Subscribers == 0 })
	}
	for _, req := range []*observerpb.GetFlowsRequest{{}, {Whitelist: forwarded}, {Whitelist: append(dropped, passed...)}, {Blacklist: forwarded}} {
		f := follow(t, s, c, req)
		if !wanted(policy.Allow) {
			t.Errorf("%v needs allowed flows", req)
		}
		f.cancel()
		eventually(t, "the end of the wish", func() bool { return s.Stats().Subscribers == 0 && !wanted(policy.Allow) })
	}
}

func TestFieldMask(t *testing.T) {
	s := newServer(t, Options{})
	s.Flows(numbered(1, 1))
	c := observer(t, s)
	mask := &fieldmaskpb.FieldMask{Paths: []string{"source.pod_name", "verdict", "l4", "l4.TCP.source_port"}}
	all, err := answer(t, c, &observerpb.GetFlowsRequest{FieldMask: mask})
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	f := all[0].GetFlow()
	if f.GetSource().GetPodName() == "" || f.GetVerdict() != flowpb.Verdict_DROPPED || f.GetL4().GetTCP().GetDestinationPort() != 80 {
		t.Errorf("what was asked for is missing: %v", f)
	}
	if f.GetSource().GetNamespace() != "" || f.GetUuid() != "" || f.GetDestination() != nil {
		t.Errorf("there is more than was asked for: %v", f)
	}
	all, err = answer(t, c, &observerpb.GetFlowsRequest{FieldMask: &fieldmaskpb.FieldMask{Paths: []string{"event_type"}}})
	if err != nil || len(all) != 1 || len(all[0].GetFlow().GetIngressDeniedBy()) != 2 || all[0].GetFlow().GetTrafficDirection() != flowpb.TrafficDirection_INGRESS {
		t.Errorf("a type without what belongs to it: %v, %v", all, err)
	}
	if all[0].GetTime() == nil || all[0].GetNodeName() != "node-1" {
		t.Errorf("the response itself is not masked: %v", all[0])
	}
}

// TestRefused: what cannot be answered is refused, and the field named.
func TestRefused(t *testing.T) {
	c := observer(t, newServer(t, Options{}))
	for want, req := range map[string]*observerpb.GetFlowsRequest{
		`first: cannot be combined with follow`:           {First: true, Follow: true},
		`since: `:                                         {Since: &timestamppb.Timestamp{Nanos: -1}},
		`field_mask: .*no_such`:                           {FieldMask: &fieldmaskpb.FieldMask{Paths: []string{"no_such"}}},
		`whitelist\[1\]\.source_fqdn: not supported`:      {Whitelist: []*flowpb.FlowFilter{{}, {SourceFqdn: []string{"x.org"}}}},
		`blacklist\[0\]\.destination_service: not supp`:   {Blacklist: []*flowpb.FlowFilter{{DestinationService: []string{"a/b"}}}},
		`whitelist\[0\]\.http_path: not supported`:        {Whitelist: []*flowpb.FlowFilter{{HttpPath: []string{"/"}}}},
		`whitelist\[0\]\.experimental: not supported`:     {Whitelist: []*flowpb.FlowFilter{{Experimental: &flowpb.FlowFilter_Experimental{CelExpression: []string{"true"}}}}},
		`whitelist\[0\]\.source_ip: "10.0.0.0/33"`:        {Whitelist: []*flowpb.FlowFilter{{SourceIp: []string{"10.0.0.0/33"}}}},
		`whitelist\[0\]\.destination_port: "http"`:        {Whitelist: []*flowpb.FlowFilter{{DestinationPort: []string{"http"}}}},
		`whitelist\[0\]\.protocol: "dns"`:                 {Whitelist: []*flowpb.FlowFilter{{Protocol: []string{"dns"}}}},
		`whitelist\[0\]\.source_label: "a in \(b"`:        {Whitelist: []*flowpb.FlowFilter{{SourceLabel: []string{"a in (b"}}}},
		`whitelist\[0\]\.source_pod: ""`:                  {Whitelist: []*flowpb.FlowFilter{{SourcePod: []string{""}}}},
		`whitelist\[0\]\.uuid: "x"`:                       {Whitelist: []*flowpb.FlowFilter{{Uuid: []string{"x"}}}},
		`whitelist\[0\]\.source_identity: 4711`:           {Whitelist: []*flowpb.FlowFilter{{SourceIdentity: []uint32{4711}}}},
		`whitelist\[0\]\.event_type: there are only`:      {Whitelist: []*flowpb.FlowFilter{{EventType: []*flowpb.EventTypeFilter{{Type: 129}}}}},
		`whitelist\[0\]\.node_name: "a/b/c"`:              {Whitelist: []*flowpb.FlowFilter{{NodeName: []string{"a/b/c"}}}},
		`whitelist\[0\]: it has a field that is newer th`: {Whitelist: []*flowpb.FlowFilter{newerFilter(t)}},
	} {
		all, err := answer(t, c, req)
		if status.Code(err) != codes.InvalidArgument || !matches(want, status.Convert(err).Message()) || len(all) > 0 {
			t.Errorf("%v: %v, want InvalidArgument %q", req, err, want)
		}
	}
}

func TestServerStatus(t *testing.T) {
	s := newServer(t, Options{History: 10, Version: "1.2.3", PeerPort: 4244})
	s.SetNodes([]Node{{"node-1", nodeAddr}, {"node-2", otherNode}})
	s.Flows(numbered(1, 25))
	conn := dial(t, s)
	c := observerpb.NewObserverClient(conn)
	st, err := c.ServerStatus(t.Context(), &observerpb.ServerStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st.GetNumFlows() != 10 || st.GetMaxFlows() != 10 || st.GetSeenFlows() != 25 || st.GetUptimeNs() == 0 || st.GetVersion() != "netverdict 1.2.3" {
		t.Errorf("%v", st)
	}
	nodes, err := c.GetNodes(t.Context(), &observerpb.GetNodesRequest{})
	if err != nil || len(nodes.GetNodes()) != 1 {
		t.Fatalf("%v, %v", nodes, err)
	}
	if n := nodes.GetNodes()[0]; n.GetName() != "node-1" || n.GetAddress() != "192.168.0.1:4244" || !n.GetTls().GetEnabled() || n.GetSeenFlows() != 25 {
		t.Errorf("%v", n)
	}
	spaces, err := c.GetNamespaces(t.Context(), &observerpb.GetNamespacesRequest{})
	if err != nil || len(spaces.GetNamespaces()) != 2 || spaces.GetNamespaces()[0].GetNamespace() != "default" {
		t.Errorf("%v, %v", spaces, err)
	}
	for _, service := range []string{"", healthService} {
		h, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil || h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", service, h, err)
		}
	}
}

// TestRate counts the last minute, or what the history has of it.
func TestRate(t *testing.T) {
	now := time.Now()
	s := newServer(t, Options{History: 200})
	s.started = now.Add(-time.Hour)
	for i, r := range numbered(1, 120) {
		r.Time = now.Add(time.Duration(i-119) * time.Second).UnixNano()
		s.Flows([]flow.Record{r})
	}
	if got := s.rate(now); got < 0.9 || got > 1.1 {
		t.Errorf("%v flows a second, want 1", got)
	}
	full := newServer(t, Options{History: 10})
	full.started = now.Add(-time.Hour)
	for i, r := range numbered(1, 100) {
		r.Time = now.Add(time.Duration(i-99) * time.Second / 10).UnixNano()
		full.Flows([]flow.Record{r})
	}
	if got := full.rate(now); got < 9 || got > 12 {
		t.Errorf("with a full history %v flows a second, want about 10", got)
	}
}

// TestNamespacesAreForgotten after an hour without flows.
func TestNamespacesAreForgotten(t *testing.T) {
	s := newServer(t, Options{})
	s.Flows(numbered(1, 1))
	if got := s.spaces.list(time.Now().Add(50 * time.Minute)); len(got) != 2 {
		t.Errorf("after 50 minutes: %v", got)
	}
	if got := s.spaces.list(time.Now().Add(70 * time.Minute)); len(got) != 0 {
		t.Errorf("after 70 minutes: %v", got)
	}
}
