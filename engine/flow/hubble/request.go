package hubble

import (
	"math"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/netverdict/netverdict/engine/flow"
)

const allFlows = flow.All

// request is a GetFlowsRequest that has been checked.
type request struct {
	selection    *selection
	mask         fieldMask
	since, until int64 // Unix nanoseconds, both included
	bounded      bool  // until was given
	timed        bool  // since was given
	number       uint64
	first        bool
	follow       bool
}

func (s *Server) newRequest(req *observerpb.GetFlowsRequest) (*request, error) {
	if req.GetFirst() && req.GetFollow() {
		return nil, status.Error(codes.InvalidArgument, "first: cannot be combined with follow")
	}
	r := &request{
		since: math.MinInt64, until: math.MaxInt64,
		number: req.GetNumber(), first: req.GetFirst(), follow: req.GetFollow(),
	}
	var err error
	if r.since, r.timed, err = timeOf("since", req.GetSince(), math.MinInt64); err != nil {
		return nil, err
	}
	if r.until, r.bounded, err = timeOf("until", req.GetUntil(), math.MaxInt64); err != nil {
		return nil, err
	}
	if r.mask, err = newFieldMask(req.GetFieldMask()); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "field_mask: %v", err)
	}
	if r.selection, err = s.newSelection(req); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return r, nil
}

func timeOf(field string, t *timestamppb.Timestamp, absent int64) (ns int64, given bool, err error) {
	if t == nil {
		return absent, false, nil
	}
	if err := t.CheckValid(); err != nil {
		return 0, false, status.Errorf(codes.InvalidArgument, "%s: %v", field, err)
	}
	at := t.AsTime()
	switch { // what UnixNano can say
	case at.Year() < 1700:
		return math.MinInt64, true, nil
	case at.Year() > 2200:
		return math.MaxInt64, true, nil
	}
	return at.UnixNano(), true, nil
}

// matches says as which type of event a record is part of the answer; 0: it is not.
func (r *request) matches(e *event, position uint64) eventType {
	if e.Time < r.since || e.Time > r.until {
		return 0
	}
	return r.selection.matches(e, position)
}

// over reports whether nothing that comes can be part of the answer any more.
func (r *request) over(now time.Time) bool { return r.bounded && now.UnixNano() > r.until }
