package main

import (
	"slices"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// request asks a Hubble server for the flows that the flags choose. What a server
// has no words for is filtered here: it may send too much, never too little. exact
// is false when it may.
func (o *flowsOptions) request() (req *observerpb.GetFlowsRequest, exact bool) {
	req = &observerpb.GetFlowsRequest{}
	req.Whitelist, req.Blacklist, exact = o.filters.messages()
	if o.since.set {
		req.Since = timestamppb.New(o.since.Time)
	}
	if o.until.set {
		req.Until = timestamppb.New(o.until.Time)
	}
	return req, exact
}

// messages are the filters for a server: a flow must match one of allow, and
// none of deny.
func (f *flowFilters) messages() (allow, deny []*flowpb.FlowFilter, exact bool) {
	exact = true
	for _, g := range f.groups {
		asks := g.messages()
		if asks == nil {
			exact = false
			continue
		}
		var clean bool
		allow, clean = both(allow, asks)
		exact = exact && clean
	}
	for _, t := range f.not {
		exact = exact && t.asks != nil
		deny = append(deny, t.asks...)
	}
	return allow, deny, exact
}

// messages merges the terms of a flag: those of one field are one filter.
func (g *flowGroup) messages() []*flowpb.FlowFilter {
	if slices.ContainsFunc(g.terms, func(t *flowTerm) bool { return t.asks == nil }) {
		return nil
	}
	var all []*flowpb.FlowFilter
	for i, ask := range g.terms[0].asks {
		merged := proto.CloneOf(ask)
		for _, t := range g.terms[1:] {
			proto.Merge(merged, t.asks[i])
		}
		all = append(all, merged)
	}
	return all
}

// both returns filters of which one holds when one of a and one of b do; a may be
// nil, which always holds. Two that need the same field are alternatives for a
// server: then more may match, and clean is false.
func both(a, b []*flowpb.FlowFilter) (all []*flowpb.FlowFilter, clean bool) {
	if a == nil {
		return b, true
	}
	clean = true
	for _, x := range a {
		for _, y := range b {
			merged := proto.CloneOf(x)
			proto.Merge(merged, y)
			all = append(all, merged)
			clean = clean && !shareField(x, y)
		}
	}
	return all, clean
}

func shareField(x, y *flowpb.FlowFilter) (shared bool) {
	x.ProtoReflect().Range(func(d protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		shared = shared || y.ProtoReflect().Has(d)
		return !shared
	})
	return shared
}
