package audit

import (
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// How long a flow is remembered without a packet, as conntrack does by default
// (nf_conntrack_*_timeout in Documentation/networking/nf_conntrack-sysctl.rst).
const (
	timeoutBegun   = 120 * time.Second // TCP and SCTP, since somebody asked for it
	timeoutNew     = 30 * time.Second  // UDP and ICMP, unanswered
	timeoutStream  = 120 * time.Second // UDP and ICMP, answered
	timeoutGeneric = 600 * time.Second // other protocols
)

const (
	// settling is for how long after the start a first datagram may be the reply
	// of a flow that is older than the audit.
	settling = timeoutStream
	// ephemeral is the first port that Linux gives to clients (ip_local_port_range).
	ephemeral = 32768
)

// The copies that came in wait for those that go out, which takes the packet's way
// through this node: usually microseconds, more where a queue is full.
const (
	inTransit     = 5 * time.Second
	inTransitSize = 16384
	samePrint     = 4 // packets that look alike and are on their way at one time
)

// known is what is remembered of a flow.
type known struct {
	at       int64 // of the last packet
	answered bool
	begun    uint64 // fingerprint of the TCP or SCTP packet that began it
	asked    uint64 // generation in which it was judged
}

// flows tells the packets that begin a flow from all others. It is for one
// goroutine, and takes time from the packets.
type flows struct {
	known   *simplelru.LRU[flowID, *known] // by the direction that began the flow
	incame  *simplelru.LRU[uint64, []sight]
	started int64 // Unix nanoseconds; 0: no flow is older than the audit
	unborn  int   // TCP and SCTP flows of which only later packets were seen
}

func newFlows(size int, started int64) (*flows, error) {
	k, err := simplelru.NewLRU[flowID, *known](size, nil)
	if err != nil {
		return nil, err
	}
	in, err := simplelru.NewLRU[uint64, []sight](inTransitSize, nil)
	if err != nil {
		return nil, err
	}
	return &flows{known: k, incame: in, started: started}, nil
}

// origin is where a packet came from.
type origin struct {
	id     flowID // that it had when it came in
	cameIn bool   // false: this node sent it, or nobody knows
}

// of returns a packet that goes out, with the source that it had when it came in.
func (o *origin) of(s *sight) packet.Packet {
	p := s.packet
	p.Src = o.id.src
	if p.Protocol.HasPorts() {
		p.SrcPort = o.id.srcPort
	}
	return p
}

// enter takes note of a packet, and says whether it begins a flow that is to be
// judged, and where it came from. Flows are judged once in each generation.
func (f *flows) enter(s *sight, generation uint64) (from origin, judge bool) {
	if k := f.fresh(s.flow.reverse(), s); k != nil && s.stage != begins {
		k.at, k.answered = s.at, true
		return from, false
	}
	if s.way == WayIn {
		f.comesIn(s)
		return from, false
	}
	from = f.originOf(s)
	k := f.fresh(s.flow, s)
	switch {
	case k == nil && f.isOlder(s):
		return from, false
	case k == nil || s.stage == begins && k.begun != s.print:
		k = &known{begun: s.print, asked: generation}
	case s.stage != unsaid || k.asked == generation:
		k.at = s.at
		return from, false
	}
	k.at, k.asked = s.at, generation
	f.known.Add(s.flow, k)
	f.known.Add(from.id, k) // replies on their way out answer to what came in
	return from, true
}

// fresh returns what is known of a flow, if that has not timed out.
func (f *flows) fresh(id flowID, s *sight) *known {
	k, ok := f.known.Get(id)
	if !ok || s.at-k.at > int64(k.timeout(id.protocol)) {
		return nil
	}
	return k
}

func (k *known) timeout(p policy.Protocol) time.Duration {
	switch p {
	case policy.TCP, policy.SCTP:
		return timeoutBegun
	case policy.UDP, policy.ICMP, policy.ICMPv6:
		if k.answered {
			return timeoutStream
		}
		return timeoutNew
	}
	return timeoutGeneric
}

// isOlder recognizes what belongs to a flow that began before the audit: the later
// packets of a connection, and what looks like a reply. It is remembered as that.
func (f *flows) isOlder(s *sight) bool {
	switch {
	case s.stage == carries:
		if s.packet.Protocol.HasPorts() {
			f.unborn++
			f.known.Add(s.flow, &known{at: s.at})
		}
		return true
	case s.packet.Protocol != policy.UDP || f.started == 0 || s.at-f.started > int64(settling):
		return false
	case s.flow.srcPort < ephemeral && s.flow.dstPort >= ephemeral:
		f.known.Add(s.flow.reverse(), &known{at: s.at, answered: true})
		return true
	}
	return false
}

// comesIn keeps a copy until the packet goes out.
func (f *flows) comesIn(s *sight) {
	if k := f.fresh(s.flow, s); k != nil && s.stage != begins {
		k.at = s.at
	}
	if s.stage == carries {
		return
	}
	waiting, _ := f.incame.Get(s.print)
	for i := range waiting {
		if waiting[i].flow == s.flow {
			waiting[i].at = s.at // on its way through a bridge, say
			return
		}
	}
	if len(waiting) == samePrint {
		waiting = waiting[1:]
	}
	f.incame.Add(s.print, append(waiting, *s))
}

// originOf finds the flow as it was when the packet came in. What this node sends
// itself never did.
func (f *flows) originOf(s *sight) origin {
	waiting, _ := f.incame.Get(s.print)
	best, rank := origin{id: s.flow}, 0
	for i := range waiting {
		in := waiting[i].flow
		if s.at-waiting[i].at > int64(inTransit) {
			continue
		}
		r := 1 // both ends were translated
		switch {
		case in == s.flow:
			return origin{in, true}
		case in.src == s.flow.src && in.srcPort == s.flow.srcPort:
			r = 3 // only the destination was
		case in.dst == s.flow.dst && in.dstPort == s.flow.dstPort:
			r = 2 // only the source was
		}
		if r > rank {
			best, rank = origin{in, true}, r
		}
	}
	return best
}
