package hubble

import (
	"context"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// readLen is how many records a subscriber copies at a time: little enough that
// the collector hardly waits for the copy, enough to read faster than it writes.
const readLen = 64

// lossPause is the time between two reports of losses to one subscriber, so that
// one which is always behind is not told so with every batch.
const lossPause = time.Second

// subscriber is a GetFlows request that is being served.
type subscriber struct {
	server  *Server
	request *request
	stream  observerpb.Observer_GetFlowsServer
	buf     [readLen]event

	next       uint64 // position of what to read next
	sent       uint64
	lastTime   int64 // of the last record read, to date a gap
	lostBefore uint64
	late, lost losses
}

// losses are what a subscriber is yet to be told about one cause.
type losses struct {
	count       uint64
	first, last time.Time
	told        time.Time
}

func (l *losses) add(n uint64, first, last time.Time) {
	if n == 0 {
		return
	}
	if l.count == 0 {
		l.first = first
	}
	l.count += n
	l.last = last
}

// run sends the part of the history that was asked for, then follows.
func (s *subscriber) run(ctx context.Context) error {
	st := s.server.history.state()
	s.start(st)
	s.server.subscribers.Add(1) // from here on it misses nothing
	defer s.server.subscribers.Add(-1)
	end := st.next
	for ctx.Err() == nil {
		limit := uint64(readLen)
		if !s.request.follow {
			limit = min(limit, end-min(end, s.next))
		}
		n, st, err := s.read(int(limit))
		if err != nil {
			return err
		}
		ended := s.full() || n == 0 && (!s.request.follow || s.request.over(time.Now()))
		if err := s.tell(ended); err != nil || ended {
			return err
		}
		if n == 0 {
			s.sleep(ctx, st)
		}
	}
	return ctx.Err()
}

// start finds where to begin.
func (s *subscriber) start(st state) {
	r := s.request
	s.lastTime = s.server.started.UnixNano()
	switch {
	case r.follow && r.number == 0 && !r.timed:
		s.next = st.next
	case r.first || r.number == 0:
		s.next = st.oldest
	default:
		s.next = s.rewind(st)
	}
	// Of losses before the present only those within the answer are its business.
	s.lostBefore = st.lost
	if s.next < st.next {
		if n, _, _ := s.server.history.read(s.buf[:1], s.next); n == 1 {
			s.lostBefore = s.buf[0].lost
		}
	}
}

// rewind returns the position from which on there are as many records as asked
// for, or the oldest.
func (s *subscriber) rewind(st state) uint64 {
	missing := s.request.number
	for end := st.next; end > st.oldest; {
		from := max(st.oldest, end-min(end, readLen))
		n, at, _ := s.server.history.read(s.buf[:end-from], from)
		for i := n - 1; i >= 0; i-- {
			position := at + uint64(i)
			if position >= end || s.request.matches(&s.buf[i], position) == 0 {
				continue
			}
			if missing--; missing == 0 {
				return position
			}
		}
		if at != from {
			break // it has been overwritten meanwhile
		}
		end = from
	}
	return st.oldest
}

// full reports whether the number of records asked for has been sent.
func (s *subscriber) full() bool {
	r := s.request
	return r.number > 0 && !r.follow && s.sent >= r.number
}

// read sends what matches of the next batch and returns how many records that
// was.
func (s *subscriber) read(limit int) (n int, st state, err error) {
	n, at, st := s.server.history.read(s.buf[:limit], s.next)
	now, then := time.Now(), time.Unix(0, s.lastTime)
	if n > 0 && at > s.next {
		s.server.overwritten.Add(at - s.next)
		s.late.add(at-s.next, then, now)
	}
	for i := range s.buf[:n] {
		e, position := &s.buf[i], at+uint64(i)
		s.next = position + 1
		s.lost.add(e.lost-s.lostBefore, then, now)
		s.lostBefore, s.lastTime = e.lost, e.Time
		if t := s.request.matches(e, position); t != 0 {
			if err := s.send(e, position, t); err != nil || s.full() {
				return n, st, err
			}
		}
	}
	if n == 0 && !s.request.bounded { // lost, and nothing got here since
		s.lost.add(st.lost-s.lostBefore, then, now)
		s.lostBefore = st.lost
	}
	return n, st, nil
}

func (s *subscriber) send(e *event, position uint64, t eventType) error {
	s.sent++
	f := s.server.render(e, position, t)
	s.request.mask.apply(f)
	return s.stream.Send(&observerpb.GetFlowsResponse{
		NodeName:      s.server.nodeName(s.server.opts.NodeName),
		Time:          timestamppb.New(time.Unix(0, e.Time)),
		ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: f},
	})
}

// tell reports losses: at once at the end, otherwise not too often.
func (s *subscriber) tell(atOnce bool) error {
	if err := s.tellOne(&s.late, flowpb.LostEventSource_HUBBLE_RING_BUFFER, atOnce); err != nil {
		return err
	}
	return s.tellOne(&s.lost, flowpb.LostEventSource_OBSERVER_EVENTS_QUEUE, atOnce)
}

func (s *subscriber) tellOne(l *losses, source flowpb.LostEventSource, atOnce bool) error {
	now := time.Now()
	if l.count == 0 || !atOnce && now.Sub(l.told) < lossPause {
		return nil
	}
	lost := &flowpb.LostEvent{
		Source: source, NumEventsLost: l.count,
		First: timestamppb.New(l.first), Last: timestamppb.New(l.last),
	}
	*l = losses{told: now}
	return s.stream.Send(&observerpb.GetFlowsResponse{
		NodeName:      s.server.nodeName(s.server.opts.NodeName),
		Time:          timestamppb.New(now),
		ResponseTypes: &observerpb.GetFlowsResponse_LostEvents{LostEvents: lost},
	})
}

// sleep waits until there may be something to do.
func (s *subscriber) sleep(ctx context.Context, st state) {
	wake := time.Duration(1<<63 - 1)
	if s.late.count > 0 || s.lost.count > 0 {
		wake = lossPause
	}
	if s.request.bounded {
		wake = min(wake, time.Until(time.Unix(0, s.request.until))+time.Millisecond)
	}
	due := time.NewTimer(wake)
	defer due.Stop()
	select {
	case <-ctx.Done():
	case <-due.C:
	case <-s.server.history.changed(st):
	}
}
