package flow

import (
	"math/bits"
	"strconv"
	"strings"
)

// maxRanges bounds the port ranges on a line: an nmap scan in random order that
// is half done has thousands.
const maxRanges = 32

// Ports are the destination ports of flows that were folded into one line.
type Ports struct {
	// Distinct is how many ports there were; 0 when they were not counted, and
	// Ranges are examples.
	Distinct int      `json:"distinct,omitempty"`
	Ranges   []string `json:"ranges"`         // "80", "8000-8080"; ascending
	More     int      `json:"more,omitempty"` // ranges left out
}

func (p *Ports) appendJSON(b []byte) []byte {
	b = append(b, '{')
	if p.Distinct != 0 {
		b = appendIntField(b, "distinct", int64(p.Distinct))
	}
	b = append(appendKey(b, "ranges"), '[')
	for i, r := range p.Ranges {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, r)
	}
	b = append(b, ']')
	if p.More != 0 {
		b = appendIntField(b, "more", int64(p.More))
	}
	return append(b, '}')
}

// MayHave reports whether a port is among them; when not all of them are listed,
// any may be.
func (p *Ports) MayHave(port uint16) bool {
	if p.More > 0 || p.Distinct == 0 {
		return true
	}
	for _, r := range p.Ranges {
		first, last, isRange := strings.Cut(r, "-")
		if !isRange {
			last = first
		}
		low, err := strconv.ParseUint(first, 10, 16)
		high, err2 := strconv.ParseUint(last, 10, 16)
		if err == nil && err2 == nil && low <= uint64(port) && uint64(port) <= high {
			return true
		}
	}
	return false
}

// portSet is a set of port numbers: 8 KiB, whatever is in it.
type portSet [1 << 16 / 64]uint64

func (s *portSet) add(port uint16) { s[port/64] |= 1 << (port % 64) }

func (s *portSet) has(port int) bool { return s[port/64]&(1<<(port%64)) != 0 }

// ports renders the set.
func (s *portSet) ports() *Ports {
	p := &Ports{Ranges: []string{}}
	for _, word := range s {
		p.Distinct += bits.OnesCount64(word)
	}
	for port := 0; port < 1<<16; port++ {
		if !s.has(port) {
			continue
		}
		first := port
		for port+1 < 1<<16 && s.has(port+1) {
			port++
		}
		p.add(first, port)
	}
	return p
}

func (p *Ports) add(first, last int) {
	if len(p.Ranges) == maxRanges {
		p.More++
		return
	}
	text := strconv.Itoa(first)
	if last > first {
		text += "-" + strconv.Itoa(last)
	}
	p.Ranges = append(p.Ranges, text)
}
