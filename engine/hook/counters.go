package hook

import "slices"

// Counters are what the rules of each purpose have matched, of all families
// together, since Open. What is matched during the milliseconds in which a
// switch replaces the rules is not counted.
type Counters map[Purpose]Count

// Counters reads the counters of the rules.
func (h *Hook) Counters() (Counters, error) {
	total := Counters{}
	err := h.do(func() error {
		for _, s := range h.stacks {
			have, err := s.tables.read()
			if err != nil {
				return err
			}
			total.add(s.counted)
			total.add(have.counters(s.names))
		}
		return nil
	})
	return total, err
}

func (c Counters) add(other Counters) {
	for p, n := range other {
		sum := c[p]
		sum.Packets += n.Packets
		sum.Bytes += n.Bytes
		c[p] = sum
	}
}

// counters sums up our rules. The jump is left alone: it outlives switches, and
// counts on.
func (s *saved) counters(n names) Counters {
	c := Counters{}
	for _, r := range s.rules {
		if p := r.purpose(); p != "" && slices.Contains(n.chains(), r.chain) {
			c.add(Counters{p: r.Count})
		}
	}
	return c
}
