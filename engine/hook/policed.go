package hook

import (
	"net/netip"

	"github.com/netverdict/netverdict/policy"
)

// Policed is the complete list of the local pod addresses that some policy
// isolates, in each direction, both families mixed. Only their packets are
// asked about.
type Policed struct{ Egress, Ingress []netip.Addr }

// isolated is Policed for one family, by direction.
type isolated [len(policy.Directions)]map[netip.Addr]struct{}

// of picks the addresses of one family.
func (p *Policed) of(f family) *isolated {
	return &isolated{
		policy.Egress:  pick(p.Egress, f),
		policy.Ingress: pick(p.Ingress, f),
	}
}

func pick(addrs []netip.Addr, f family) map[netip.Addr]struct{} {
	picked := map[netip.Addr]struct{}{}
	for _, a := range addrs {
		if a.IsValid() && familyOf(a) == f {
			picked[a.Unmap().WithZone("")] = struct{}{}
		}
	}
	return picked
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
		addrs, err := s.sets.addrs(s.policedSet(d))
		if err != nil {
			return err
		}
		s.policed[d] = addrs
	}
	return nil
}

// prepare adds what is missing in the sets.
func (s *stack) prepare(wanted *isolated) error {
	for _, d := range policy.Directions {
		for a := range wanted[d] {
			if _, there := s.policed[d][a]; there {
				continue
			}
			if err := s.sets.add(s.policedSet(d), a); err != nil {
				return err
			}
			s.policed[d][a] = struct{}{}
		}
	}
	return nil
}

// lacks reports whether the sets miss an address.
func (s *stack) lacks(wanted *isolated) bool {
	for _, d := range policy.Directions {
		for a := range wanted[d] {
			if _, there := s.policed[d][a]; !there {
				return true
			}
		}
	}
	return false
}

// release removes from the sets what is not wanted any more.
func (s *stack) release(wanted *isolated) error {
	for _, d := range policy.Directions {
		for a := range s.policed[d] {
			if _, stays := wanted[d][a]; stays {
				continue
			}
			if err := s.sets.remove(s.policedSet(d), a); err != nil {
				return err
			}
			delete(s.policed[d], a)
		}
	}
	return nil
}
