package hubble

import (
	"fmt"
	"regexp"
	"testing"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }

// newerFilter has a field that flow.proto does not know.
func newerFilter(t *testing.T) *flowpb.FlowFilter {
	t.Helper()
	raw := protowire.AppendVarint(protowire.AppendTag(nil, 12345, protowire.VarintType), 1)
	ff := &flowpb.FlowFilter{}
	if err := proto.Unmarshal(raw, ff); err != nil {
		t.Fatal(err)
	}
	return ff
}

// flows are what the filters are tried on, one kind each.
func flows() map[string]flow.Record {
	change := func(ingress *policy.Outcome, f func(*flow.Record)) flow.Record {
		r := record(ingress)
		f(&r)
		return r
	}
	return map[string]flow.Record{
		"allowed": record(byRule),
		"denied":  record(defaultDeny),
		"audited": change(defaultDeny, func(r *flow.Record) {
			o := *defaultDeny
			o.Audit = true
			r.Decision.Verdict, r.Decision.Audit, r.Decision.Ingress = policy.Allow, true, &o
		}),
		"egress": change(noPolicy, func(r *flow.Record) {
			r.Decision = policy.Decision{Direction: policy.Egress, Egress: byRuleDeny, Ingress: noPolicy}
		}),
		"udp6": change(defaultDeny, func(r *flow.Record) {
			r.Dst, r.Protocol, r.DstPort, r.TCPFlags = serverAddr6, policy.UDP, 53, 0
			r.Src = serverAddr6.Next()
		}),
		"ping": change(defaultDeny, func(r *flow.Record) {
			r.Protocol, r.SrcPort, r.DstPort, r.TCPFlags, r.ICMPType = policy.ICMP, 0, 0, 0, 8
		}),
		"world":   change(defaultDeny, func(r *flow.Record) { r.Src = worldAddr }),
		"node":    change(defaultDeny, func(r *flow.Record) { r.Src = nodeAddr }),
		"remote":  change(defaultDeny, func(r *flow.Record) { r.Src = otherNode }),
		"unknown": change(unknownPod, func(r *flow.Record) { r.Dst = unknownAddr }),
		"broken": change(malformed, func(r *flow.Record) {
			*r = flow.Record{Malformed: packet.TruncatedHeader, Names: town{}, Decision: policy.Decision{Egress: malformed, Ingress: malformed}}
		}),
		"ack": change(defaultDeny, func(r *flow.Record) { r.TCPFlags = 0x12 }),
	}
}

// TestFilters: which of the flows each filter lets through.
func TestFilters(t *testing.T) {
	s := newServer(t, Options{})
	const tcpTo80 = "ack allowed audited denied egress node remote unknown world"
	for _, test := range []struct {
		filter *flowpb.FlowFilter
		want   string
	}{
		{&flowpb.FlowFilter{}, "ack allowed audited broken denied egress node ping remote udp6 unknown world"},
		{&flowpb.FlowFilter{Verdict: []flowpb.Verdict{flowpb.Verdict_FORWARDED}}, "allowed"},
		{&flowpb.FlowFilter{Verdict: []flowpb.Verdict{flowpb.Verdict_FORWARDED, flowpb.Verdict_AUDIT}}, "allowed audited"},
		{&flowpb.FlowFilter{Verdict: []flowpb.Verdict{flowpb.Verdict_AUDIT}}, "audited"},
		{&flowpb.FlowFilter{DropReasonDesc: []flowpb.DropReason{flowpb.DropReason_POLICY_DENY}}, "egress"},
		{&flowpb.FlowFilter{DropReasonDesc: []flowpb.DropReason{flowpb.DropReason_INVALID_PACKET_DROPPED}}, "broken"},
		{&flowpb.FlowFilter{DropReasonDesc: []flowpb.DropReason{flowpb.DropReason_NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION}}, "unknown"},
		{&flowpb.FlowFilter{TrafficDirection: []flowpb.TrafficDirection{flowpb.TrafficDirection_EGRESS}}, "broken egress"},
		{&flowpb.FlowFilter{SourceIp: []string{"203.0.113.0/24"}}, "world"},
		{&flowpb.FlowFilter{SourceIp: []string{"203.0.113.7", "192.168.0.1"}}, "node world"},
		{&flowpb.FlowFilter{DestinationIp: []string{"fd00:1::/64"}}, "udp6"},
		{&flowpb.FlowFilter{DestinationIp: []string{"::ffff:10.1.0.99"}}, "unknown"},
		{&flowpb.FlowFilter{SourcePod: []string{"shop/"}, Protocol: []string{"icmp"}}, "ping"},
		{&flowpb.FlowFilter{SourcePod: []string{"shop/client-"}, Protocol: []string{"ICMPv4"}}, "ping"},
		{&flowpb.FlowFilter{SourcePod: []string{"/client"}, Protocol: []string{"ICMP"}}, "ping"},
		{&flowpb.FlowFilter{SourcePod: []string{"client"}}, ""},
		{&flowpb.FlowFilter{DestinationPod: []string{"server"}, Protocol: []string{"udp"}}, "udp6"},
		{&flowpb.FlowFilter{SourceLabel: []string{"app=client,!nothing"}, Protocol: []string{"icmp"}}, "ping"},
		{&flowpb.FlowFilter{SourceLabel: []string{"k8s:app in (client, other)"}, Protocol: []string{"icmp"}}, "ping"},
		{&flowpb.FlowFilter{SourceLabel: []string{"!k8s:app"}}, "broken node remote udp6 world"},
		{&flowpb.FlowFilter{SourceLabel: []string{"app.kubernetes.io/part-of"}, Protocol: []string{"icmp"}}, "ping"},
		{&flowpb.FlowFilter{SourceLabel: []string{"k8s:io.kubernetes.pod.namespace=shop"}, Protocol: []string{"icmp"}}, "ping"},
		{&flowpb.FlowFilter{SourceLabel: []string{"reserved:app"}}, ""},
		{&flowpb.FlowFilter{SourceLabel: []string{"reserved:world", "reserved:host"}, IpVersion: []flowpb.IPVersion{flowpb.IPVersion_IPv4}}, "node remote world"},
		{&flowpb.FlowFilter{DestinationLabel: []string{"reserved:unknown"}}, "unknown"},
		{&flowpb.FlowFilter{SourceWorkload: []*flowpb.Workload{{Kind: "Deployment"}}, Protocol: []string{"icmp"}}, "ping"},
		{&flowpb.FlowFilter{SourceWorkload: []*flowpb.Workload{{Name: "client"}}, Protocol: []string{"icmp"}}, "ping"},
		{&flowpb.FlowFilter{SourceWorkload: []*flowpb.Workload{{Name: "client", Kind: "Job"}}}, ""},
		{&flowpb.FlowFilter{DestinationWorkload: []*flowpb.Workload{{}}}, ""},
		{&flowpb.FlowFilter{SourceIdentity: []uint32{hostIdentity}}, "node"},
		{&flowpb.FlowFilter{SourceIdentity: []uint32{remoteNodeIdentity}}, "remote"},
		{&flowpb.FlowFilter{SourceClusterName: []string{"default"}, Protocol: []string{"icmp"}}, "ping"},
		{&flowpb.FlowFilter{SourceClusterName: []string{"elsewhere"}}, ""},
		{&flowpb.FlowFilter{DestinationPort: []string{"53", "54"}}, "udp6"},
		{&flowpb.FlowFilter{DestinationPort: []string{"0"}}, ""},
		{&flowpb.FlowFilter{SourcePort: []string{"40000"}, DestinationPort: []string{"80"}}, tcpTo80},
		{&flowpb.FlowFilter{Protocol: []string{"tcp"}}, tcpTo80},
		{&flowpb.FlowFilter{Protocol: []string{"sctp", "igmp"}}, ""},
		{&flowpb.FlowFilter{TcpFlags: []*flowpb.TCPFlags{{SYN: true, ACK: true}}}, "ack"},
		{&flowpb.FlowFilter{TcpFlags: []*flowpb.TCPFlags{{SYN: true}}}, tcpTo80},
		{&flowpb.FlowFilter{IpVersion: []flowpb.IPVersion{flowpb.IPVersion_IPv6}}, "udp6"},
		{&flowpb.FlowFilter{Reply: []bool{true}}, ""},
		{&flowpb.FlowFilter{Reply: []bool{false}, IpVersion: []flowpb.IPVersion{flowpb.IPVersion_IPv6}}, "udp6"},
		{&flowpb.FlowFilter{NodeName: []string{"node-2", "nod*-1"}, Protocol: []string{"udp"}}, "udp6"},
		{&flowpb.FlowFilter{NodeName: []string{"default/Node-1."}, Protocol: []string{"udp"}}, "udp6"},
		{&flowpb.FlowFilter{NodeName: []string{"elsewhere/node-1"}}, ""},
		{&flowpb.FlowFilter{EventType: []*flowpb.EventTypeFilter{{Type: 1, MatchSubType: true, SubType: 181}}}, "egress"},
		{&flowpb.FlowFilter{EventType: []*flowpb.EventTypeFilter{{Type: 5}}, Protocol: []string{"udp"}}, "udp6"},
		{&flowpb.FlowFilter{EventType: []*flowpb.EventTypeFilter{{Type: 1}, {Type: 129}}, Verdict: []flowpb.Verdict{flowpb.Verdict_FORWARDED}}, ""},
	} {
		got := selected(t, s, &observerpb.GetFlowsRequest{Whitelist: []*flowpb.FlowFilter{test.filter}})
		if got != test.want {
			t.Errorf("%v lets through %q, want %q", test.filter, got, test.want)
		}
	}
}

// selected names the flows that a request selects, sorted.
func selected(t *testing.T, s *Server, req *observerpb.GetFlowsRequest) string {
	t.Helper()
	sel, err := s.newSelection(req)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for name, r := range flows() {
		k := newKeeper()
		if sel.matches(&k.keep([]flow.Record{r})[0], 1) != 0 {
			names[name] = true
		}
	}
	text := fmt.Sprint(names) // sorted by key: map[a:true b:true]
	text = regexp.MustCompile(`:true|map\[|\]`).ReplaceAllString(text, "")
	return text
}

// TestLists: OR between filters, AND within, and the blacklist on top.
func TestLists(t *testing.T) {
	s := newServer(t, Options{})
	udp, ping := &flowpb.FlowFilter{Protocol: []string{"udp"}}, &flowpb.FlowFilter{Protocol: []string{"icmp"}}
	fromWorld := &flowpb.FlowFilter{SourceIdentity: []uint32{worldIdentity}}
	for want, req := range map[string]*observerpb.GetFlowsRequest{
		"ping udp6":       {Whitelist: []*flowpb.FlowFilter{udp, ping}},
		"ping":            {Whitelist: []*flowpb.FlowFilter{udp, ping}, Blacklist: []*flowpb.FlowFilter{udp}},
		"udp6 world":      {Whitelist: []*flowpb.FlowFilter{fromWorld}},
		"node ping world": {Whitelist: []*flowpb.FlowFilter{{SourceIp: []string{"192.168.0.1", "203.0.113.7"}}, ping}, Blacklist: []*flowpb.FlowFilter{udp, {EventType: []*flowpb.EventTypeFilter{{Type: 4}}}}},
	} {
		if got := selected(t, s, req); got != want {
			t.Errorf("%v selects %q, want %q", req, got, want)
		}
	}
}

// TestUUID finds one flow again by the name it was sent with.
func TestUUID(t *testing.T) {
	s := newServer(t, Options{})
	s.Flows(numbered(1, 20))
	c := observer(t, s)
	all, err := answer(t, c, &observerpb.GetFlowsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	id := all[7].GetFlow().GetUuid()
	if !matches(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`, id) {
		t.Errorf("%s is no UUID of version 8", id)
	}
	wantPorts(t, id, sourcePorts(t, c, &observerpb.GetFlowsRequest{Whitelist: []*flowpb.FlowFilter{{Uuid: []string{id}}}}), []int{8})
}

// TestEventTypes: a denied flow is shown as a drop to those who ask for drops only.
func TestEventTypes(t *testing.T) {
	s := newServer(t, Options{})
	s.Flows([]flow.Record{record(defaultDeny), record(byRule)})
	c := observer(t, s)
	drops := []*flowpb.FlowFilter{{EventType: []*flowpb.EventTypeFilter{{Type: 1}}}}
	verdicts := []*flowpb.FlowFilter{{EventType: []*flowpb.EventTypeFilter{{Type: 5}}}}
	for what, test := range map[string]struct {
		req  *observerpb.GetFlowsRequest
		want string
	}{
		"everything":        {&observerpb.GetFlowsRequest{}, "[5/0 DROPPED 5/0 FORWARDED]"},
		"drops":             {&observerpb.GetFlowsRequest{Whitelist: drops}, "[1/133 DROPPED]"},
		"without verdicts":  {&observerpb.GetFlowsRequest{Blacklist: verdicts}, "[1/133 DROPPED]"},
		"without drops":     {&observerpb.GetFlowsRequest{Blacklist: drops}, "[5/0 DROPPED 5/0 FORWARDED]"},
		"drops or verdicts": {&observerpb.GetFlowsRequest{Whitelist: append(drops, verdicts...)}, "[5/0 DROPPED 5/0 FORWARDED]"},
	} {
		all, err := answer(t, c, test.req)
		if err != nil {
			t.Fatal(err)
		}
		got := []string{}
		for _, resp := range all {
			f := resp.GetFlow()
			got = append(got, fmt.Sprintf("%d/%d %s", f.GetEventType().GetType(), f.GetEventType().GetSubType(), f.GetVerdict()))
		}
		if fmt.Sprint(got) != test.want {
			t.Errorf("%s: %v, want %s", what, got, test.want)
		}
	}
}
