package hook

import (
	"net/netip"

	"github.com/netverdict/netverdict/policy"
)

// Policed says whose packets are asked about, both families mixed.
type Policed struct {
	// Egress and Ingress are all local pod addresses that some policy isolates in
	// a direction.
	Egress, Ingress []netip.Addr
	// Ranges are where this node's pods have their addresses, and Known all
	// addresses in them whose pod (or node) is known. The others belong to pods
	// that policies may be about as soon as they are known: their packets are asked
	// about in both directions. Without Ranges they pass.
	Ranges []netip.Prefix
	Known  []netip.Addr
	// Answers says that some denied packets are answered: the rules then let such
	// answers pass, and note where connections were addressed. It takes effect with
	// Install and with the next Switch.
	Answers bool
}

// policed is Policed for one family, by direction.
type policed [len(policy.Directions)]asked

// asked says of prefixes whether packets of addresses in them are asked about;
// the longest prefix counts. So an entry that is false is an exception
// (nomatch) from the range around it.
type asked map[netip.Prefix]bool

// of picks the addresses of one family.
func (p *Policed) of(f family) *policed {
	return &policed{
		policy.Egress:  p.asked(p.Egress, f),
		policy.Ingress: p.asked(p.Ingress, f),
	}
}

func (p *Policed) asked(isolated []netip.Addr, f family) asked {
	all := asked{}
	for _, r := range p.Ranges {
		for _, r := range halves(r) {
			if r.IsValid() && familyOf(r.Addr()) == f {
				all[r] = true
			}
		}
	}
	if len(all) > 0 {
		all.enter(p.Known, f, false)
	}
	all.enter(isolated, f, true)
	return all
}

func (as asked) enter(addrs []netip.Addr, f family, value bool) {
	for _, a := range addrs {
		if a = a.Unmap().WithZone(""); a.IsValid() && familyOf(a) == f {
			as[netip.PrefixFrom(a, a.BitLen())] = value
		}
	}
}

// halves cuts a range that is the whole family, which hash:net does not take, in two.
func halves(r netip.Prefix) []netip.Prefix {
	if r.Bits() != 0 {
		return []netip.Prefix{r.Masked()}
	}
	upper := r.Masked().Addr().AsSlice()
	upper[0] = 0x80
	a, _ := netip.AddrFromSlice(upper)
	return []netip.Prefix{netip.PrefixFrom(r.Masked().Addr(), 1), netip.PrefixFrom(a, 1)}
}

// covers reports whether an address is in a range that is asked about.
func (as asked) covers(p netip.Prefix) bool {
	for r, value := range as {
		if value && r.Bits() < p.Bits() && r.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// policedSet is the name of the set of a direction.
func (s *stack) policedSet(d policy.Direction) string {
	if d == policy.Ingress {
		return s.names.ingress(s.family)
	}
	return s.names.egress(s.family)
}

// relist reads what is in the sets.
func (s *stack) relist() error {
	for _, d := range policy.Directions {
		have := asked{}
		if err := s.sets.each(s.policedSet(d), func(e entry) { have[e.prefix()] = !e.nomatch }); err != nil {
			return err
		}
		s.policed[d] = have
	}
	return nil
}

// prepare makes every change after which more is asked, and those that make no
// difference yet: the known addresses of a new range are entered before it, so
// that nobody is asked about them even for a moment.
func (s *stack) prepare(wanted *policed) error {
	for _, d := range policy.Directions {
		have, want := s.policed[d], wanted[d]
		for p, value := range have {
			if _, stays := want[p]; !value && !stays {
				if err := s.drop(d, p); err != nil {
					return err
				}
			}
		}
		for p, value := range want {
			if _, there := have[p]; !value && !there && !have.covers(p) {
				if err := s.enter(d, p, false); err != nil {
					return err
				}
			}
		}
		for p, value := range want {
			if value && !have[p] {
				if err := s.enter(d, p, true); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// lacks reports whether packets pass that should be asked about.
func (s *stack) lacks(wanted *policed) bool {
	for _, d := range policy.Directions {
		for p, value := range wanted[d] {
			if value && !s.policed[d][p] {
				return true
			}
		}
		for p, value := range s.policed[d] {
			if except, known := wanted[d][p]; !value && (except || !known) {
				return true
			}
		}
	}
	return false
}

// release makes the other changes, after which less is asked.
func (s *stack) release(wanted *policed) error {
	for _, d := range policy.Directions {
		for p := range s.policed[d] {
			if _, stays := wanted[d][p]; !stays {
				if err := s.drop(d, p); err != nil {
					return err
				}
			}
		}
		for p, value := range wanted[d] {
			if have, there := s.policed[d][p]; !value && (have || !there) {
				if err := s.enter(d, p, false); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *stack) enter(d policy.Direction, p netip.Prefix, value bool) error {
	if err := s.sets.add(s.policedSet(d), prefixEntry(p, value)); err != nil {
		return err
	}
	s.policed[d][p] = value
	return nil
}

func (s *stack) drop(d policy.Direction, p netip.Prefix) error {
	if err := s.sets.remove(s.policedSet(d), prefixEntry(p, true)); err != nil {
		return err
	}
	delete(s.policed[d], p)
	return nil
}

func prefixEntry(p netip.Prefix, value bool) entry {
	return entry{addr: p.Addr(), bits: uint8(p.Bits()), nomatch: !value}
}
