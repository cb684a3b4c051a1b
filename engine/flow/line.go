package flow

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// Line is one line of the flow log; the package comment describes its fields.
// When Lost or Withheld is not 0 the line reports what is missing from the log,
// and only Time, Node, Lost, Withheld and Lines are set.
type Line struct {
	Time        time.Time        `json:"time"`
	Verdict     policy.Verdict   `json:"verdict"`
	Direction   policy.Direction `json:"direction"`
	Reason      policy.Reason    `json:"reason"`
	Protocol    policy.Protocol  `json:"protocol"`
	Source      Endpoint         `json:"source"`
	Destination Endpoint         `json:"destination"`
	Policy      string           `json:"policy,omitempty"`
	Rule        *int             `json:"rule,omitempty"`
	IsolatedBy  []string         `json:"isolatedBy,omitempty"`
	OverLimit   []string         `json:"overLimit,omitempty"`
	Egress      *OutcomeJSON     `json:"egress,omitempty"`
	Ingress     *OutcomeJSON     `json:"ingress,omitempty"`
	TCPFlags    TCPFlags         `json:"tcpFlags,omitempty"`
	ICMP        *ICMP            `json:"icmp,omitempty"`
	Malformed   packet.State     `json:"malformed,omitempty"` // never packet.OK
	Cached      bool             `json:"cached,omitempty"`
	Revision    uint64           `json:"revision,omitempty"`
	// Count, First, Last and Ports are set when the line stands for several flows.
	Count uint64    `json:"count,omitempty"`
	First time.Time `json:"first,omitzero"`
	Last  time.Time `json:"last,omitzero"`
	Ports *Ports    `json:"ports,omitempty"`

	Node     string `json:"node,omitempty"` // whose agent says so, where several do
	Lost     uint64 `json:"lost,omitempty"`
	Withheld uint64 `json:"withheld,omitempty"`
	Lines    uint64 `json:"lines,omitempty"` // that the withheld flows would have been
}

// Flows returns how many decided flows the line tells of, apart from those that
// it says are missing.
func (l *Line) Flows() uint64 {
	if l.Lost+l.Withheld > 0 {
		return 0
	}
	return max(l.Count, 1)
}

// Endpoint is one end of a flow.
type Endpoint struct {
	IP        netip.Addr `json:"ip"`                  // invalid when the packet hid it
	Port      uint16     `json:"port,omitempty"`      // host byte order
	Namespace string     `json:"namespace,omitempty"` // with Pod: who held the address
	Pod       string     `json:"pod,omitempty"`
	// Labels of the pod. The agent's log leaves them out; the flows verb has them.
	Labels map[string]string `json:"labels,omitempty"`
}

// ICMP is the message's type and code.
type ICMP struct {
	Type uint8 `json:"type"`
	Code uint8 `json:"code"`
}

// NewLine renders a record.
func NewLine(r *Record) Line {
	l := Line{
		Time:        time.Unix(0, r.Time).UTC(),
		Verdict:     r.Decision.Reported(),
		Direction:   r.Decision.Direction,
		Protocol:    r.Protocol,
		Source:      newEndpoint(r.Src, r.SrcPort, r.Names),
		Destination: newEndpoint(r.Dst, r.DstPort, r.Names),
		Egress:      NewOutcome(r.Decision.Egress),
		Ingress:     NewOutcome(r.Decision.Ingress),
		Cached:      r.Cached,
		Revision:    r.Revision,
	}
	decided := l.Egress
	if l.Direction == policy.Ingress {
		decided = l.Ingress
	}
	if decided != nil {
		l.Reason, l.Policy, l.Rule = decided.Reason, decided.Policy, decided.Rule
		l.IsolatedBy, l.OverLimit = decided.IsolatedBy, decided.OverLimit
	}
	if r.Malformed != packet.OK && r.Malformed != packet.Undecoded {
		l.Malformed = r.Malformed
		return l // the packet's own fields were not read
	}
	switch r.Protocol {
	case policy.TCP:
		l.TCPFlags = TCPFlags(r.TCPFlags)
	case policy.ICMP, policy.ICMPv6:
		l.ICMP = &ICMP{Type: r.ICMPType, Code: r.ICMPCode}
	}
	return l
}

func newEndpoint(addr netip.Addr, port uint16, names Names) Endpoint {
	e := Endpoint{IP: addr, Port: port}
	if names != nil && addr.IsValid() {
		if name, ok := names.Pod(addr); ok {
			e.Namespace, e.Pod = name.Namespace, name.Name
		}
	}
	return e
}

// MarshalJSON renders the line without its line feed.
func (l Line) MarshalJSON() ([]byte, error) { return l.AppendJSON(nil), nil }

var _ json.Marshaler = Line{}

// AppendJSON appends the line, without line feed, to b. The text holds no
// control characters and no invalid UTF-8, whatever the fields hold.
func (l *Line) AppendJSON(b []byte) []byte {
	b = append(b, '{')
	switch {
	case l.Lost > 0:
		b = appendUintField(b, "lost", l.Lost)
		return append(l.appendNode(l.appendTime(b)), '}')
	case l.Withheld > 0:
		b = appendUintField(b, "withheld", l.Withheld)
		b = appendUintField(b, "lines", l.Lines)
		return append(l.appendNode(l.appendTime(b)), '}')
	}
	b = l.appendTime(b)
	b = appendStringField(b, "verdict", l.Verdict.String())
	b = appendStringField(b, "direction", l.Direction.String())
	b = appendStringField(b, "reason", l.Reason.String())
	b = appendStringField(b, "protocol", l.Protocol.String())
	b = l.Source.appendJSON(appendKey(b, "source"))
	b = l.Destination.appendJSON(appendKey(b, "destination"))
	cause := OutcomeJSON{Policy: l.Policy, Rule: l.Rule, IsolatedBy: l.IsolatedBy, OverLimit: l.OverLimit}
	b = cause.appendCause(b)
	if l.Egress != nil {
		b = l.Egress.appendJSON(appendKey(b, "egress"))
	}
	if l.Ingress != nil {
		b = l.Ingress.appendJSON(appendKey(b, "ingress"))
	}
	return append(l.appendNode(l.appendFold(l.appendPacket(b))), '}')
}

// appendPacket appends what is known of the packet beside its addresses.
func (l *Line) appendPacket(b []byte) []byte {
	if l.TCPFlags != 0 {
		b = appendStringField(b, "tcpFlags", l.TCPFlags.String())
	}
	if l.ICMP != nil {
		b = append(appendKey(b, "icmp"), '{')
		b = appendUintField(b, "type", uint64(l.ICMP.Type))
		b = appendUintField(b, "code", uint64(l.ICMP.Code))
		b = append(b, '}')
	}
	if l.Malformed != 0 {
		b = appendStringField(b, "malformed", l.Malformed.String())
	}
	if l.Cached {
		b = append(appendKey(b, "cached"), "true"...)
	}
	if l.Revision != 0 {
		b = appendUintField(b, "revision", l.Revision)
	}
	return b
}

// appendFold appends what makes a line stand for several flows.
func (l *Line) appendFold(b []byte) []byte {
	if l.Count != 0 {
		b = appendUintField(b, "count", l.Count)
	}
	if !l.First.IsZero() {
		b = appendTimeField(b, "first", l.First)
	}
	if !l.Last.IsZero() {
		b = appendTimeField(b, "last", l.Last)
	}
	if l.Ports != nil {
		b = l.Ports.appendJSON(appendKey(b, "ports"))
	}
	return b
}

func (l *Line) appendNode(b []byte) []byte {
	if l.Node != "" {
		b = appendStringField(b, "node", l.Node)
	}
	return b
}

func (l *Line) appendTime(b []byte) []byte { return appendTimeField(b, "time", l.Time) }

func appendTimeField(b []byte, key string, t time.Time) []byte {
	b = append(appendKey(b, key), '"')
	b = t.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

func (e *Endpoint) appendJSON(b []byte) []byte {
	b = append(b, '{')
	if e.IP.IsValid() {
		b = appendStringField(b, "ip", e.IP.String())
	}
	if e.Port != 0 {
		b = appendUintField(b, "port", uint64(e.Port))
	}
	if e.Namespace != "" {
		b = appendStringField(b, "namespace", e.Namespace)
	}
	if e.Pod != "" {
		b = appendStringField(b, "pod", e.Pod)
	}
	if len(e.Labels) > 0 {
		b = append(appendKey(b, "labels"), '{')
		for i, key := range slices.Sorted(maps.Keys(e.Labels)) {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, key), ':')
			b = appendString(b, e.Labels[key])
		}
		b = append(b, '}')
	}
	return append(b, '}')
}

// fold makes the line stand for several flows.
func (l *Line) fold(f *Folded) {
	l.Count, l.Ports = f.Count, f.Ports
	l.First, l.Last = time.Unix(0, f.First).UTC(), time.Unix(0, f.Last).UTC()
}
