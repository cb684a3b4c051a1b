package hubble

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"github.com/google/uuid"

	"github.com/netverdict/netverdict/policy"
)

// compilers make conditions of the fields of a FlowFilter.
var compilers = map[fieldKey]func(*Server, *flowpb.FlowFilter) (condition, error){
	"uuid":      func(s *Server, ff *flowpb.FlowFilter) (condition, error) { return s.uuids(ff.GetUuid()) },
	"source_ip": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) { return addrs(source, ff.GetSourceIp()) },
	"destination_ip": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) {
		return addrs(destination, ff.GetDestinationIp())
	},
	"source_pod": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) { return pods(source, ff.GetSourcePod()) },
	"destination_pod": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) {
		return pods(destination, ff.GetDestinationPod())
	},
	"source_label": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) {
		return selectors(source, ff.GetSourceLabel())
	},
	"destination_label": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) {
		return selectors(destination, ff.GetDestinationLabel())
	},
	"source_workload": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) {
		return workloads(source, ff.GetSourceWorkload()), nil
	},
	"destination_workload": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) {
		return workloads(destination, ff.GetDestinationWorkload()), nil
	},
	"source_identity": func(s *Server, ff *flowpb.FlowFilter) (condition, error) {
		return s.identities(source, ff.GetSourceIdentity())
	},
	"destination_identity": func(s *Server, ff *flowpb.FlowFilter) (condition, error) {
		return s.identities(destination, ff.GetDestinationIdentity())
	},
	"source_cluster_name": func(s *Server, ff *flowpb.FlowFilter) (condition, error) {
		return s.clusters(source, ff.GetSourceClusterName()), nil
	},
	"destination_cluster_name": func(s *Server, ff *flowpb.FlowFilter) (condition, error) {
		return s.clusters(destination, ff.GetDestinationClusterName()), nil
	},
	"source_port": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) { return ports(source, ff.GetSourcePort()) },
	"destination_port": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) {
		return ports(destination, ff.GetDestinationPort())
	},
	"protocol":  func(_ *Server, ff *flowpb.FlowFilter) (condition, error) { return protocols(ff.GetProtocol()) },
	"node_name": func(s *Server, ff *flowpb.FlowFilter) (condition, error) { return s.nodes(ff.GetNodeName()) },
	"ip_version": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) {
		return oneOf(ipVersion, ff.GetIpVersion()), nil
	},
	"verdict": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) {
		return oneOf(verdictOf, ff.GetVerdict()), nil
	},
	"drop_reason_desc": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) {
		return oneOf(dropReason, ff.GetDropReasonDesc()), nil
	},
	"traffic_direction": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) {
		return oneOf(trafficDirection, ff.GetTrafficDirection()), nil
	},
	"tcp_flags": func(_ *Server, ff *flowpb.FlowFilter) (condition, error) { return tcpFlags(ff.GetTcpFlags()), nil },
	"reply":     func(_ *Server, ff *flowpb.FlowFilter) (condition, error) { return replies(ff.GetReply()), nil },
}

// oneOf holds for records of which a property is in the list.
func oneOf[T comparable](of func(*event) T, list []T) condition {
	return func(c *candidate) bool { return slices.Contains(list, of(c.event)) }
}

// replies: records are of the original direction only.
func replies(want []bool) condition {
	original := slices.Contains(want, false)
	return func(*candidate) bool { return original }
}

func eventTypes(want []*flowpb.EventTypeFilter, must bool) (condition, error) {
	possible := func(w *flowpb.EventTypeFilter) bool {
		t := eventType(w.GetType())
		return t == 0 || t == policyVerdictEvent || t == dropEvent
	}
	if must && !slices.ContainsFunc(want, possible) {
		return nil, fmt.Errorf("there are only events of the types %d (policy-verdict) and %d (drop)", policyVerdictEvent, dropEvent)
	}
	return func(c *candidate) bool {
		return slices.ContainsFunc(want, func(w *flowpb.EventTypeFilter) bool {
			return (w.GetType() == 0 || eventType(w.GetType()) == c.shown) &&
				(!w.GetMatchSubType() || w.GetSubType() == subType(c.event, c.shown))
		})
	}, nil
}

func (s *Server) uuids(want []string) (condition, error) {
	known := map[[16]byte]bool{}
	for _, text := range want {
		id, err := uuid.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		known[id] = true
	}
	return func(c *candidate) bool { return known[s.uuid(c.position)] }, nil
}

func ports(which side, want []string) (condition, error) {
	var list []uint16
	for _, text := range want {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is no port number", text)
		}
		list = append(list, uint16(port))
	}
	return func(c *candidate) bool {
		return c.decoded() && c.Protocol.HasPorts() && slices.Contains(list, which.port(c.event))
	}, nil
}

// protocolNumbers are the names that Hubble has for protocols of layer 4.
var protocolNumbers = map[string][]policy.Protocol{
	"icmp": {policy.ICMP, policy.ICMPv6}, "icmpv4": {policy.ICMP}, "icmpv6": {policy.ICMPv6},
	"tcp": {policy.TCP}, "udp": {policy.UDP}, "sctp": {policy.SCTP},
	"igmp": {2}, "vrrp": {112}, // IANA "Assigned Internet Protocol Numbers"
}

func protocols(want []string) (condition, error) {
	var list []policy.Protocol
	for _, text := range want {
		numbers, ok := protocolNumbers[strings.ToLower(text)]
		if !ok {
			return nil, fmt.Errorf("%q: want tcp, udp, sctp, icmp, icmpv4, icmpv6, igmp or vrrp", text)
		}
		list = append(list, numbers...)
	}
	return func(c *candidate) bool { return c.decoded() && slices.Contains(list, c.Protocol) }, nil
}

// tcpFlags holds for packets that have all flags of one of the sets.
func tcpFlags(want []*flowpb.TCPFlags) condition {
	var sets []uint8
	for _, w := range want {
		sets = append(sets, flagBits(w))
	}
	return func(c *candidate) bool {
		return c.decoded() && c.Protocol == policy.TCP &&
			slices.ContainsFunc(sets, func(set uint8) bool { return c.TCPFlags&set == set })
	}
}

// nodes is settled at once: all records are of this node. A pattern is NODE or
// CLUSTER/NODE, either of which may be empty or have asterisks.
func (s *Server) nodes(want []string) (condition, error) {
	ours := false
	for _, pattern := range want {
		cluster, node, both := strings.Cut(pattern, "/")
		if !both {
			cluster, node = "", pattern
		}
		if pattern == "" || strings.Contains(node, "/") {
			return nil, fmt.Errorf("%q: want NODE or CLUSTER/NODE", pattern)
		}
		ours = ours || glob(cluster, s.opts.Cluster) && glob(node, s.opts.NodeName)
	}
	return func(*candidate) bool { return ours }, nil
}

// glob matches a pattern in which * stands for anything and, as in names of DNS,
// neither case nor a dot at the end counts. An empty pattern matches everything.
func glob(pattern, name string) bool {
	pattern = strings.ToLower(strings.TrimSuffix(strings.TrimSpace(pattern), "."))
	name = strings.ToLower(name)
	if pattern == "" {
		return true
	}
	parts := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(name, parts[0])
	if !ok || len(parts) == 1 {
		return ok && rest == ""
	}
	for _, part := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}
