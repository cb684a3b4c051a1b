package flow

import (
	"net/netip"

	"github.com/netverdict/netverdict/policy"
)

// begunLen bounds each half of begun: 32,768 connections, 3 MiB.
const begunLen = 1 << 15

// begunTime is how long a connection is remembered at least, in nanoseconds. The
// kernel tells of it within microseconds; what takes longer is the listener's
// reading, behind others in the socket's buffer.
const begunTime = 5e9

// begun remembers the connections that workers have allowed, and how often, until
// the kernel tells of them. When the new half is full, or old, it becomes the old
// half, and what was old is forgotten.
type begun struct {
	recent, older map[connection]int
	since         int64 // when recent was begun
}

// connection is a 5-tuple, or for ICMP what records have of one.
type connection struct {
	src, dst           netip.Addr
	srcPort, dstPort   uint16
	protocol           policy.Protocol
	icmpType, icmpCode uint8
}

func connectionOf(r *Record) connection {
	return connection{r.Src, r.Dst, r.SrcPort, r.DstPort, r.Protocol, r.ICMPType, r.ICMPCode}
}

// note enters the records of a worker that are of allowed connections.
func (b *begun) note(records []Record) {
	for i := range records {
		r := &records[i]
		if r.Decision.Verdict != policy.Allow {
			continue
		}
		if b.recent == nil || len(b.recent) >= begunLen || r.Time-b.since > begunTime {
			b.recent, b.older, b.since = map[connection]int{}, b.recent, r.Time
		}
		b.recent[connectionOf(r)]++
	}
}

// unknown returns the records of connections that were not noted, in the same
// slice. A connection that was noted once is known once: the next of the same
// ports, or ping of the same pods, is another one.
func (b *begun) unknown(records []Record) []Record {
	kept := records[:0]
	for i := range records {
		c := connectionOf(&records[i])
		if !take(b.older, c) && !take(b.recent, c) {
			kept = append(kept, records[i])
		}
	}
	return kept
}

func take(m map[connection]int, c connection) bool {
	n, ok := m[c]
	switch {
	case !ok:
		return false
	case n == 1:
		delete(m, c)
	default:
		m[c] = n - 1
	}
	return true
}
