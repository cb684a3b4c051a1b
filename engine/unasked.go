package engine

import (
	"log/slog"
	"sync"
	"time"

	"github.com/netverdict/netverdict/engine/conntrack"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// Connections are those that begin; *conntrack.Listener is one. See there for what
// each call does.
type Connections interface {
	Run(begins func(*conntrack.Connection), lost func(n uint64)) error
	Stop() error
}

// Unasked records the connections that the kernel allowed by itself, from the set
// of what was allowed before, while allowed flows are wanted:
//
//	conntrack NEW ─▶ marked as allowed by us ─▶ tree.Decide ─▶ late ring ─▶ Collector ─▶ sinks
//	                                                                           ▲
//	workers' rings ────────────────────────────────────────────────────────────┘
//
// The tree in force says which policy allows them. One that it would deny was
// allowed by a tree before it and is about to be asked about again: it has no
// record here.
type Unasked struct {
	Engine *Engine
	// Allows recognizes the connection marks of allowed connections.
	Allows func(mark uint32) bool
	// Open opens the source of connections.
	Open   func() (Connections, error)
	Ring   *flow.Ring // of Collector.NewLateRing
	Logger *slog.Logger

	mu     sync.Mutex
	conn   Connections // nil: not listening
	done   chan struct{}
	closed bool
}

// Want starts or stops listening; it is meant for Demand.OnAllowed. What begins
// after Want(true) has returned is not missed. That it cannot listen is logged:
// then allowed flows are those that were asked about.
func (u *Unasked) Want(wanted bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case wanted && u.conn == nil && !u.closed:
		u.start()
	case !wanted && u.conn != nil:
		u.stop()
	}
}

// Close stops listening for good.
func (u *Unasked) Close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	if u.conn != nil {
		u.stop()
	}
}

func (u *Unasked) start() {
	conn, err := u.Open()
	if err != nil {
		u.Logger.Error("of allowed flows only the first of a kind are reported", "error", err)
		return
	}
	done := make(chan struct{})
	u.conn, u.done = conn, done
	go func() {
		defer close(done)
		if err := conn.Run(u.begins, u.Ring.Lose); err != nil {
			u.Logger.Error("of allowed flows only the first of a kind are reported from now on", "error", err)
		}
	}()
}

func (u *Unasked) stop() {
	if err := u.conn.Stop(); err != nil {
		u.Logger.Warn("stop listening to new connections", "error", err)
	}
	<-u.done
	u.conn = nil
}

// begins records a connection, if it is ours. It is the ring's only producer.
func (u *Unasked) begins(c *conntrack.Connection) {
	by := u.Engine.by.Load()
	if by == nil || !u.Allows(c.Mark) {
		return
	}
	d := by.tree.Decide(c.Src, c.Dst, c.Protocol, c.DstPort)
	if d.Verdict != policy.Allow {
		return
	}
	u.Ring.Push(&flow.Record{
		Time: time.Now().UnixNano(),
		Src:  c.Src, Dst: c.Dst, SrcPort: c.SrcPort, DstPort: c.DstPort,
		Protocol: c.Protocol, ICMPType: c.ICMPType, ICMPCode: c.ICMPCode,
		Cached:   true,
		Decision: d,
		Names:    by.tree,
		Revision: by.serial,
	})
}
