package engine

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/netverdict/netverdict/engine/conntrack"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// fakeConnections tells of what a test sends.
type fakeConnections struct {
	begin chan conntrack.Connection
	lost  chan uint64
	stop  chan struct{}
}

func (f *fakeConnections) Run(begins func(*conntrack.Connection), lost func(uint64)) error {
	for {
		select {
		case c := <-f.begin:
			begins(&c)
		case n := <-f.lost:
			lost(n)
		case <-f.stop:
			return nil
		}
	}
}

func (f *fakeConnections) Stop() error {
	close(f.stop)
	return nil
}

// TestUnasked: while allowed flows are wanted, connections that carry our mark and
// that the tree allows are recorded.
func TestUnasked(t *testing.T) {
	client, server := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	tree, err := policy.Compile(&policy.Snapshot{Pods: []*policy.Pod{
		{NamespacedName: policy.NamespacedName{Namespace: "shop", Name: "server"}, Addrs: []netip.Addr{server}, Phase: policy.PhaseRunning},
	}})
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{}
	var opened []*fakeConnections
	ring := flow.NewRing(16)
	u := &Unasked{
		Engine: e, Allows: func(mark uint32) bool { return mark == 1 }, Ring: ring, Logger: slog.New(slog.DiscardHandler),
		Open: func() (Connections, error) {
			f := &fakeConnections{begin: make(chan conntrack.Connection), lost: make(chan uint64), stop: make(chan struct{})}
			opened = append(opened, f)
			return f, nil
		},
	}
	var demand flow.Demand
	demand.OnAllowed(u.Want)
	if len(opened) != 0 {
		t.Fatal("it listens though nobody wants allowed flows")
	}
	release := demand.Want(flow.All)
	f := opened[0]
	mine := conntrack.Connection{Src: client, Dst: server, SrcPort: 4000, DstPort: 80, Protocol: policy.TCP, Mark: 1}
	f.begin <- mine // there is no tree yet
	e.by.Store(&judgement{tree: tree, serial: 7})
	others := mine
	others.Mark = 2
	f.begin <- others
	f.begin <- mine
	f.lost <- 5
	release()
	var got [4]flow.Record
	if n := ring.Pop(got[:]); n != 1 {
		t.Fatalf("%d records, want 1: %+v", n, got)
	}
	r := got[0]
	if r.Src != client || r.Dst != server || r.SrcPort != 4000 || r.DstPort != 80 || r.Revision != 7 || !r.Cached ||
		r.Decision.Ingress.Reason != policy.ReasonNoPolicy || r.Time == 0 {
		t.Errorf("%+v", r)
	}
	if ring.Lost() != 5 {
		t.Errorf("%d lost", ring.Lost())
	}
	demand.Want(flow.All)
	if len(opened) != 2 {
		t.Error("it does not listen again")
	}
	u.Close()
	u.Want(true)
	if len(opened) != 2 {
		t.Error("it listens after its end")
	}
}

// TestUnaskedCannotListen: that is said, and nothing else happens.
func TestUnaskedCannotListen(t *testing.T) {
	r := &logged{}
	u := &Unasked{Open: func() (Connections, error) { return nil, errors.New("no events") }, Logger: slog.New(slog.NewTextHandler(r, nil))}
	u.Want(true)
	u.Want(false)
	u.Close()
	if r.lines != 1 {
		t.Errorf("%d messages", r.lines)
	}
}

type logged struct{ lines int }

func (l *logged) Write(p []byte) (int, error) {
	l.lines++
	return len(p), nil
}
