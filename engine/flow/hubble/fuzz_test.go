package hubble

import (
	"testing"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// FuzzRequest: no request of a client makes the server panic, neither when it is read
// nor when flows are compared with it.
func FuzzRequest(f *testing.F) {
	for _, req := range []*observerpb.GetFlowsRequest{
		{Number: 7, First: true, FieldMask: &fieldmaskpb.FieldMask{Paths: []string{"source.pod_name", "verdict"}}},
		{Whitelist: []*flowpb.FlowFilter{{SourceIp: []string{"10.0.0.0/8", "fd00::1"}, SourcePod: []string{"shop/cart", "/a", "b/"}, DestinationPort: []string{"80"}}}},
		{Blacklist: []*flowpb.FlowFilter{{SourceLabel: []string{"k8s:app in (a, b),!c", "reserved:world"}, Protocol: []string{"tcp", "ICMPv6"}}}},
		{Whitelist: []*flowpb.FlowFilter{{NodeName: []string{"default/nod*-1", "**"}, TcpFlags: []*flowpb.TCPFlags{{SYN: true}}, Reply: []bool{false}, Uuid: []string{"00000000-0000-0000-0000-000000000000"}}}},
		{Whitelist: []*flowpb.FlowFilter{{HttpMethod: []string{"GET"}, SourceIdentity: []uint32{1}, SourceWorkload: []*flowpb.Workload{{}}, Verdict: []flowpb.Verdict{99}}}},
	} {
		b, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		req := &observerpb.GetFlowsRequest{}
		if proto.Unmarshal(b, req) != nil {
			return
		}
		s := newServer(t, Options{})
		r, err := s.newRequest(req)
		if err != nil {
			return
		}
		k := newKeeper()
		for i, e := range k.keep(append(numbered(1, 2), record(byRule), record(unknownPod), record(malformed))) {
			r.matches(&e, uint64(i))
		}
	})
}
