package hubble

import (
	"net/netip"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// Reserved identities (pkg/identity/numericidentity.go of Cilium).
const (
	unknownIdentity    = 0
	hostIdentity       = 1
	worldIdentity      = 2
	remoteNodeIdentity = 6
	firstPodIdentity   = 256
)

// Kinds of match of a policy verdict (pkg/monitor/api/types.go of Cilium).
const (
	matchNone = 0
	matchL3L4 = 2 // a rule of a NetworkPolicy looks at peers and ports
	matchAll  = 4 // nothing needed to match
)

// render makes the message of a record.
func (s *Server) render(e *event, position uint64, shown eventType) *flowpb.Flow {
	f := &flowpb.Flow{
		Time:             timestamppb.New(time.Unix(0, e.Time)),
		Uuid:             uuid.UUID(s.uuid(position)).String(),
		Emitter:          &flowpb.Emitter{Name: "Netverdict", Version: s.opts.Version},
		Verdict:          verdictOf(e),
		DropReasonDesc:   dropReason(e),
		IP:               ipOf(e),
		L4:               layer4(e),
		Source:           s.endpoint(&e.src),
		Destination:      s.endpoint(&e.dst),
		Type:             flowpb.FlowType_L3_L4,
		NodeName:         s.nodeName(s.opts.NodeName),
		EventType:        &flowpb.CiliumEventType{Type: int32(shown), SubType: subType(e, shown)},
		TrafficDirection: trafficDirection(e),
		PolicyMatchType:  matchType(e),
		IsReply:          wrapperspb.Bool(false),
		PolicyLog:        reasonsOf(e),
	}
	f.DropReason = uint32(f.GetDropReasonDesc()) //nolint:staticcheck // deprecated, and what older clients read
	f.Summary = summary(e)                       //nolint:staticcheck // deprecated, and what hubble observe prints
	addPolicies(f, e)
	return f
}

// verdictOf is the one place that knows what became of the packet.
func verdictOf(e *event) flowpb.Verdict {
	switch e.Decision.Reported() {
	case policy.Allow:
		return flowpb.Verdict_FORWARDED
	case policy.Audit:
		return flowpb.Verdict_AUDIT
	}
	return flowpb.Verdict_DROPPED
}

func dropReason(e *event) flowpb.DropReason {
	if e.Decision.Verdict == policy.Allow {
		return flowpb.DropReason_DROP_REASON_UNKNOWN
	}
	switch e.Decision.Outcome().Reason {
	case policy.ReasonPolicy:
		return flowpb.DropReason_POLICY_DENY
	case policy.ReasonUnknownPod:
		return flowpb.DropReason_NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION
	case policy.ReasonMalformed:
		return flowpb.DropReason_INVALID_PACKET_DROPPED
	}
	return flowpb.DropReason_POLICY_DENIED
}

func trafficDirection(e *event) flowpb.TrafficDirection {
	if e.Decision.Direction == policy.Ingress {
		return flowpb.TrafficDirection_INGRESS
	}
	return flowpb.TrafficDirection_EGRESS
}

func matchType(e *event) uint32 {
	switch e.Decision.Outcome().Reason {
	case policy.ReasonPolicy:
		return matchL3L4
	case policy.ReasonNoPolicy, policy.ReasonNodeTraffic, policy.ReasonSelf, policy.ReasonExternal, policy.ReasonNotLocal:
		return matchAll
	}
	return matchNone
}

// subType is the reason of a drop event; policy verdicts have none.
func subType(e *event, t eventType) int32 {
	if t == dropEvent {
		return int32(dropReason(e))
	}
	return 0
}

func ipVersion(e *event) flowpb.IPVersion {
	switch {
	case e.Src.Is4():
		return flowpb.IPVersion_IPv4
	case e.Src.Is6():
		return flowpb.IPVersion_IPv6
	}
	return flowpb.IPVersion_IP_NOT_USED
}

func ipOf(e *event) *flowpb.IP {
	text := func(a netip.Addr) string {
		if !a.IsValid() {
			return ""
		}
		return a.String()
	}
	return &flowpb.IP{Source: text(e.Src), Destination: text(e.Dst), IpVersion: ipVersion(e)}
}

// layer4 is nil for protocols that the API has no message for, and for packets
// that could not be decoded.
func layer4(e *event) *flowpb.Layer4 {
	if !e.decoded() {
		return nil
	}
	src, dst := uint32(e.SrcPort), uint32(e.DstPort)
	switch e.Protocol {
	case policy.TCP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_TCP{TCP: &flowpb.TCP{SourcePort: src, DestinationPort: dst, Flags: flagsOf(e.TCPFlags)}}}
	case policy.UDP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_UDP{UDP: &flowpb.UDP{SourcePort: src, DestinationPort: dst}}}
	case policy.SCTP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_SCTP{SCTP: &flowpb.SCTP{SourcePort: src, DestinationPort: dst}}}
	case policy.ICMP:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_ICMPv4{ICMPv4: &flowpb.ICMPv4{Type: uint32(e.ICMPType), Code: uint32(e.ICMPCode)}}}
	case policy.ICMPv6:
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_ICMPv6{ICMPv6: &flowpb.ICMPv6{Type: uint32(e.ICMPType), Code: uint32(e.ICMPCode)}}}
	}
	return nil
}

// flagsOf is nil where no packet was seen: what the kernel let pass by itself.
func flagsOf(b uint8) *flowpb.TCPFlags {
	if b == 0 {
		return nil
	}
	return &flowpb.TCPFlags{
		FIN: b&1 != 0, SYN: b&2 != 0, RST: b&4 != 0, PSH: b&8 != 0,
		ACK: b&16 != 0, URG: b&32 != 0, ECE: b&64 != 0, CWR: b&128 != 0,
	}
}

// flagBits is the reverse of flagsOf. NS, withdrawn by RFC 8311, is no part of
// the byte.
func flagBits(f *flowpb.TCPFlags) (b uint8) {
	for i, set := range [...]bool{f.GetFIN(), f.GetSYN(), f.GetRST(), f.GetPSH(), f.GetACK(), f.GetURG(), f.GetECE(), f.GetCWR()} {
		if set {
			b |= 1 << i
		}
	}
	return b
}

func (s *Server) endpoint(e *end) *flowpb.Endpoint {
	p := &flowpb.Endpoint{Identity: s.identity(e), Labels: e.labels()}
	if e.kind == podEnd || e.kind == nodeEnd {
		p.ClusterName = s.opts.Cluster
	}
	if e.kind != podEnd {
		return p
	}
	p.Namespace, p.PodName = e.pod.Namespace, e.pod.Name
	if w := e.pod.Workload; w.Kind != "" {
		p.Workloads = []*flowpb.Workload{{Kind: w.Kind, Name: w.Name}}
	}
	return p
}

func (s *Server) identity(e *end) uint32 {
	switch e.kind {
	case worldEnd:
		return worldIdentity
	case nodeEnd:
		if e.node != "" && e.node != s.opts.NodeName {
			return remoteNodeIdentity
		}
		return hostIdentity
	}
	return unknownIdentity
}

// summary is what hubble observe prints in parentheses: the packet as Cilium has
// it, then why.
func summary(e *event) string {
	var text string
	switch {
	case !e.decoded():
		text = "malformed: " + e.Malformed.String()
	case e.Protocol == policy.TCP && e.TCPFlags != 0:
		text = "TCP Flags: " + flow.TCPFlags(e.TCPFlags).String()
	default:
		text = e.Protocol.String()
	}
	text += "; " + e.Decision.Direction.String() + " " + why(e.Decision.Outcome())
	if e.Decision.Audit {
		text += ", only audited"
	}
	return text
}
