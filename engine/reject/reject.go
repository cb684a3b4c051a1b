//go:build linux

package reject

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// Config describes a Rejecter.
type Config struct {
	// IPv4 and IPv6 say which packets there are to answer.
	IPv4, IPv6 bool
	// Rate is how many answers are given a second at most. One source gets at most
	// an eighth of them.
	Rate uint32
	// Mark is the packet mark of answers, see hook.Marks.Own.
	Mark uint32
	// Group is the NFLOG group with the first packets of connections before DNAT.
	Group uint16
}

// Stats count since the Rejecter was opened.
type Stats struct {
	// Resets and Errors are answers sent: TCP resets, both ends' of a live
	// connection counted, and ICMP errors.
	Resets, Errors uint64
	// Limited are packets without an answer because there were too many, Lost those
	// for which there was no room to wait.
	Limited, Lost uint64
	// Failed are answers that could not be crafted or sent.
	Failed uint64
}

// request is a denied packet, or its beginning.
type request struct {
	packet packet.Packet
	length int // of raw
	raw    [maxQuote]byte
}

const (
	// maxQuote is how many bytes of a packet are kept: the default copy range of
	// queues.
	maxQuote = 256
	// ringSize is how many packets wait for their answers at most.
	ringSize = 512
)

// Rejecter answers denied packets.
type Rejecter struct {
	limit   *limit
	began   time.Time
	ring    chan request
	sockets *sockets
	dialed  *dialed // nil: not known
	table   *connections

	resets, errors, limited, lost, failed atomic.Uint64
}

// Open opens what answers need in the network namespace of the calling thread.
// When only the answers through Services are missing something, partly says what,
// and the Rejecter works without.
func Open(cfg Config) (r *Rejecter, partly, err error) {
	r = &Rejecter{limit: newLimit(cfg.Rate), began: time.Now(), ring: make(chan request, ringSize)}
	if r.sockets, err = openSockets(cfg.IPv4, cfg.IPv6, cfg.Mark); err != nil {
		return nil, nil, fmt.Errorf("answer denied packets: %w", err)
	}
	r.dialed, partly = openDialed(cfg.Group)
	if r.table, err = openConnections(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("answer denied packets: %w", err), r.dialed.close(), r.sockets.close())
	}
	return r, partly, nil
}

// Reject has a denied packet answered, of which payload is the beginning, from the
// IP header on. It never waits, allocates nothing and keeps nothing. It is false
// when there are too many: then the denial should be remembered, so that more of
// the kind does not get here. Packets that must not be answered count too.
func (r *Rejecter) Reject(p *packet.Packet, payload []byte) bool {
	if !r.limit.take(p.Src, int64(time.Since(r.began))) {
		r.limited.Add(1)
		return false
	}
	if !answerable(p) {
		return true
	}
	q := request{packet: *p}
	q.length = copy(q.raw[:], payload)
	select {
	case r.ring <- q:
		return true
	default:
		r.lost.Add(1)
		return false
	}
}

// Run sends answers until ctx ends, and closes the Rejecter.
func (r *Rejecter) Run(ctx context.Context) error {
	ended := make(chan struct{})
	if r.dialed != nil {
		go func() {
			defer close(ended)
			r.dialed.read()
		}()
	} else {
		close(ended)
	}
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case q := <-r.ring:
			if err := r.answer(&q); err != nil {
				r.failed.Add(1)
			}
		}
	}
	err := r.Close()
	<-ended
	return err
}

// Close frees everything; only for a Rejecter that does not run.
func (r *Rejecter) Close() error {
	return errors.Join(r.dialed.close(), r.sockets.close(), r.table.close())
}

// Stats may be called at any time by anybody.
func (r *Rejecter) Stats() Stats {
	return Stats{
		Resets: r.resets.Load(), Errors: r.errors.Load(),
		Limited: r.limited.Load(), Lost: r.lost.Load(), Failed: r.failed.Load(),
	}
}

func (r *Rejecter) answer(q *request) error {
	raw, p := q.raw[:q.length], &q.packet
	at, ok := packet.TransportAt(raw)
	if !ok {
		return errShort
	}
	to := netip.AddrPortFrom(p.Dst, p.DstPort)
	if before, known := r.dialed.find(raw, at, p); known {
		to = before
	}
	if p.Protocol == policy.TCP {
		return r.reset(raw, at, p, to)
	}
	return r.prohibit(raw, at, p, to)
}

// reset tells the sender of a segment in the name of its destination, and where
// that has a live connection, it in the name of the sender.
func (r *Rejecter) reset(raw []byte, at int, p *packet.Packet, to netip.AddrPort) error {
	s, err := readSegment(raw, at, p.Length)
	if err != nil {
		return err
	}
	if s.flags&flagSYN != 0 {
		s.dst = to
		return r.sendReset(s.reset, s.src.Addr())
	}
	known, isLive := r.table.live(&s)
	if !isLive {
		s.dst = to
		return r.sendReset(s.reset, s.src.Addr())
	}
	// Both in the addresses of the client's side, which conntrack translates in the
	// direction of the server.
	s.dst = known
	return errors.Join(r.sendReset(s.forward, s.dst.Addr()), r.sendReset(s.reset, s.src.Addr()))
}

func (r *Rejecter) sendReset(craft func() ([]byte, error), to netip.Addr) error {
	b, err := craft()
	if err == nil {
		err = r.sockets.sendRaw(b, to)
	}
	if err == nil {
		r.resets.Add(1)
	}
	return err
}

func (r *Rejecter) prohibit(raw []byte, at int, p *packet.Packet, to netip.AddrPort) error {
	if p.Protocol.HasPorts() {
		raw = addressed(raw, at, to)
	}
	b, err := prohibited(raw, p.Src)
	if err == nil {
		err = r.sockets.sendICMP(b, p.Src)
	}
	if err == nil {
		r.errors.Add(1)
	}
	return err
}
