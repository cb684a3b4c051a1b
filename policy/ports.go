package policy

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// slot groups the protocols that a port program tells apart.
type slot uint8

const (
	slotTCP slot = iota
	slotUDP
	slotSCTP
	slotOther // no ports; only rules without ports can match
	slots
)

func slotOf(p Protocol) slot {
	switch p {
	case TCP:
		return slotTCP
	case UDP:
		return slotUDP
	case SCTP:
		return slotSCTP
	}
	return slotOther
}

// span is a run of destination ports with one answer. The spans of a slot are
// ascending and the last one ends at 65535, so that a search always finds one.
type span struct {
	last uint16 // host byte order
	to   ref
}

// portProgram says where the spans of each slot begin; a slot's end where the
// next one's begin. slotOther has a single span.
type portProgram struct {
	start [slots]uint32
}

// boundRule is a rule as one program has it: named ports that the judged pod
// resolves (ingress) are numbers, those that each peer resolves (egress) not yet.
type boundRule struct {
	peers   []*peer
	anyPeer bool
	anyPort bool
	ports   []portRange
	then    ref // an outcome or refPass
}

// covers reports whether the rule's ports include one. named are the ports of
// the destination pod.
func (r *boundRule) covers(s slot, port uint16, named []ContainerPort) bool {
	if r.anyPort {
		return true
	}
	return slices.ContainsFunc(r.ports, func(p portRange) bool {
		if slotOf(p.protocol) != s {
			return false
		}
		if p.name == "" {
			return p.first <= port && port <= p.last
		}
		return slices.ContainsFunc(named, func(n ContainerPort) bool {
			return n.Port == port && p.means(n)
		})
	})
}

// bounds appends the ports at which the rule's answer can change.
func (r *boundRule) bounds(starts []uint32, s slot, named []ContainerPort) []uint32 {
	for _, p := range r.ports {
		if slotOf(p.protocol) != s {
			continue
		}
		if p.name == "" {
			starts = append(starts, uint32(p.first), uint32(p.last)+1)
			continue
		}
		for _, n := range named {
			if p.means(n) {
				starts = append(starts, uint32(n.Port), uint32(n.Port)+1)
			}
		}
	}
	return starts
}

// resolve replaces named ports by the numbers they have on one pod.
func (r *boundRule) resolve(named []ContainerPort) {
	var numeric []portRange
	for _, p := range r.ports {
		if p.name == "" {
			numeric = append(numeric, p)
			continue
		}
		for _, n := range named {
			if p.means(n) {
				numeric = append(numeric, portRange{protocol: p.protocol, first: n.Port, last: n.Port})
			}
		}
	}
	r.ports = numeric
}

// tier is one layer of policies as a program sees it: rules in order of
// precedence, and what follows when none matches (refNone: the next tier).
type tier struct {
	rules     []boundRule
	otherwise ref
}

// answer walks the tiers for one port with those rules whose peers match:
// matched are their numbers over all tiers, ascending. This is the one place
// where precedence between tiers and rules is decided.
func answer(tiers []tier, matched []uint32, s slot, port uint16, named []ContainerPort) ref {
	base := uint32(0)
	for i := range tiers {
		t := &tiers[i]
		end := base + uint32(len(t.rules))
		then := t.otherwise
		for len(matched) > 0 && matched[0] < end {
			r := &t.rules[matched[0]-base]
			if r.covers(s, port, named) {
				then = r.then
				break
			}
			matched = matched[1:]
		}
		if then != refNone && then != refPass {
			return then
		}
		for len(matched) > 0 && matched[0] < end {
			matched = matched[1:]
		}
		base = end
	}
	return ref(outcomeNoPolicy) | refAllow
}

// spansOf works out one slot's spans.
func spansOf(tiers []tier, matched []uint32, s slot, named []ContainerPort, cost *spending) []span {
	starts := []uint32{0, 1 << 16}
	base, ports := uint32(0), 1
	for i := range tiers {
		for _, m := range matched {
			if m >= base && m < base+uint32(len(tiers[i].rules)) && s != slotOther {
				ports += 1 + len(tiers[i].rules[m-base].ports)
				starts = tiers[i].rules[m-base].bounds(starts, s, named)
			}
		}
		base += uint32(len(tiers[i].rules))
	}
	slices.Sort(starts)
	starts = slices.Compact(starts)
	if !cost.took(len(starts) * ports * (1 + len(named))) {
		return []span{{65535, 0}} // the tree will not be used
	}
	var spans []span
	for i, start := range starts[:len(starts)-1] {
		to, last := answer(tiers, matched, s, uint16(start), named), uint16(starts[i+1]-1)
		if n := len(spans); n > 0 && spans[n-1].to == to {
			spans[n-1].last = last
			continue
		}
		spans = append(spans, span{last, to})
	}
	return spans
}

// portTable holds the port programs of a tree, equal ones once. It only grows.
type portTable struct {
	programs []portProgram
	spans    []span
}

// portCompiler enters port programs.
type portCompiler struct {
	portTable
	known map[string]ref
}

// compile turns a set of matching rules into what a page holds: an outcome when
// every protocol and port has the same one, else a port program.
func (t *portCompiler) compile(tiers []tier, matched []uint32, named []ContainerPort, cost *spending) ref {
	var per [slots][]span
	single := true
	for s := range slots {
		per[s] = spansOf(tiers, matched, s, named, cost)
		cost.answered(len(per[s]))
		single = single && len(per[s]) == 1 && per[s][0].to == per[0][0].to
	}
	if single {
		return per[0][0].to
	}
	key := spansKey(per)
	if r, ok := t.known[key]; ok {
		return r
	}
	var p portProgram
	for s := range slots {
		p.start[s] = uint32(len(t.spans))
		t.spans = append(t.spans, per[s]...)
	}
	r := ref(len(t.programs)) | refPorts
	t.programs = append(t.programs, p)
	t.known[key] = r
	return r
}

func spansKey(per [slots][]span) string {
	var key []byte
	for s := range slots {
		for _, sp := range per[s] {
			key = binary.LittleEndian.AppendUint16(key, sp.last)
			key = binary.LittleEndian.AppendUint32(key, uint32(sp.to))
		}
	}
	return string(key)
}

// lookup returns the outcome of a port program for one port.
func (t *portTable) lookup(program ref, s slot, port uint16) ref {
	p := &t.programs[program&refIndex]
	from := p.start[s]
	if s == slotOther {
		return t.spans[from].to
	}
	list := t.spans[from:p.start[s+1]]
	if len(list) > 8 {
		at, _ := slices.BinarySearchFunc(list, port, func(sp span, port uint16) int { return cmp.Compare(sp.last, port) })
		return list[at].to
	}
	for i := range list {
		if port <= list[i].last {
			return list[i].to
		}
	}
	return ref(outcomeUnknownPod) // unreachable: the last span ends at 65535
}
