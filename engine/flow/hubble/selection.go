package hubble

import (
	"fmt"
	"slices"
	"sort"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/netverdict/netverdict/policy"
)

// eventType is a MessageType of Cilium's monitor (pkg/monitor/api/types.go), as
// far as records are events of such a type.
type eventType int32

const (
	dropEvent          eventType = 1
	policyVerdictEvent eventType = 5
)

// typesOf are the types as which a record can be shown, the usual one first.
func typesOf(e *event) []eventType {
	if e.Decision.Verdict == policy.Allow {
		return []eventType{policyVerdictEvent}
	}
	return []eventType{policyVerdictEvent, dropEvent}
}

// candidate is a record in a shape that it may be shown in.
type candidate struct {
	*event
	position uint64
	shown    eventType
}

// condition is one field of a filter.
type condition func(*candidate) bool

// filter is a FlowFilter: all of its conditions must hold.
type filter struct {
	conditions []condition
	verdicts   []flowpb.Verdict // of the field verdict; empty: any
	only       bool             // there is no other field
}

func (f *filter) matches(c *candidate) bool {
	for _, holds := range f.conditions {
		if !holds(c) {
			return false
		}
	}
	return true
}

// selection is the filters of a request: what one of allow matches, if there is
// any, and none of deny.
type selection struct {
	allow, deny []filter
}

func (s *Server) newSelection(req *observerpb.GetFlowsRequest) (*selection, error) {
	allow, err := s.newFilters("whitelist", req.GetWhitelist(), true)
	if err != nil {
		return nil, err
	}
	deny, err := s.newFilters("blacklist", req.GetBlacklist(), false)
	if err != nil {
		return nil, err
	}
	return &selection{allow, deny}, nil
}

// matches says as which type of event a record is selected; 0: it is not.
func (s *selection) matches(e *event, position uint64) eventType {
	for _, t := range typesOf(e) {
		c := candidate{e, position, t}
		hit := func(f filter) bool { return f.matches(&c) }
		if (len(s.allow) == 0 || slices.ContainsFunc(s.allow, hit)) && !slices.ContainsFunc(s.deny, hit) {
			return t
		}
	}
	return 0
}

// wantsAllowed reports whether a flow that passes could be selected; an audited one
// is one. It looks at verdicts alone: a wrong yes costs a little time, a wrong no
// would hide flows.
func (s *selection) wantsAllowed() bool {
	could := func(f filter) bool {
		return len(f.verdicts) == 0 || slices.Contains(f.verdicts, flowpb.Verdict_FORWARDED) || slices.Contains(f.verdicts, flowpb.Verdict_AUDIT)
	}
	never := func(f filter) bool {
		return f.only && slices.Contains(f.verdicts, flowpb.Verdict_FORWARDED) && slices.Contains(f.verdicts, flowpb.Verdict_AUDIT)
	}
	return (len(s.allow) == 0 || slices.ContainsFunc(s.allow, could)) && !slices.ContainsFunc(s.deny, never)
}

// fieldKey is a field of FlowFilter, by its name in flow.proto.
type fieldKey = protoreflect.Name

// newFilters compiles the filters of a list. Those that must match are refused if
// they cannot; of the others that is no harm.
func (s *Server) newFilters(list string, filters []*flowpb.FlowFilter, must bool) ([]filter, error) {
	var all []filter
	for i, ff := range filters {
		f := filter{verdicts: ff.GetVerdict()}
		if len(ff.ProtoReflect().GetUnknown()) > 0 {
			return nil, fmt.Errorf("%s[%d]: it has a field that is newer than this server (API of Cilium 1.19)", list, i)
		}
		fields := fieldsOf(ff)
		f.only = len(fields) == 1
		for _, field := range fields {
			c, err := s.newCondition(field, ff, must)
			if err != nil {
				return nil, fmt.Errorf("%s[%d].%s: %w", list, i, field, err)
			}
			f.conditions = append(f.conditions, c)
		}
		all = append(all, f)
	}
	return all, nil
}

// fieldsOf lists the fields that are set, sorted.
func fieldsOf(ff *flowpb.FlowFilter) (fields []fieldKey) {
	ff.ProtoReflect().Range(func(d protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		fields = append(fields, d.Name())
		return true
	})
	sort.Slice(fields, func(i, j int) bool { return fields[i] < fields[j] })
	return fields
}

// newCondition compiles one field.
func (s *Server) newCondition(field fieldKey, ff *flowpb.FlowFilter, must bool) (condition, error) {
	if why, ok := refused[field]; ok {
		return nil, fmt.Errorf("not supported: %s", why)
	}
	if field == "event_type" {
		return eventTypes(ff.GetEventType(), must)
	}
	compile, ok := compilers[field]
	if !ok {
		return nil, fmt.Errorf("not supported")
	}
	return compile(s, ff)
}

const (
	noNames    = "names of DNS are not known; filter by IP, pod, label or workload"
	noServices = "decisions are made on the address behind a Service; filter by pod, label or workload"
	noL7       = "records are of connections, not of what is said in them"
)

// refused are the fields that no record could ever match, and why.
var refused = map[fieldKey]string{
	"source_fqdn":         noNames,
	"destination_fqdn":    noNames,
	"source_service":      noServices,
	"destination_service": noServices,
	"source_ip_xlated":    "decisions are made before source NAT",
	"http_status_code":    noL7,
	"http_method":         noL7,
	"http_path":           noL7,
	"http_url":            noL7,
	"http_header":         noL7,
	"dns_query":           noL7,
	"trace_id":            noL7,
	"ip_trace_id":         "IP options are not read",
	"interface":           "decisions do not depend on the network interface",
	"encrypted":           "whether a packet will be encrypted is not known",
	"node_labels":         "labels of nodes are not known; filter by node_name",
	"experimental":        "CEL expressions are not evaluated",
}
