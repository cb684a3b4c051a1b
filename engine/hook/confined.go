package hook

import (
	"fmt"
	"net/netip"
)

// manyKeys is how large a set of verdicts may be for its keys to be looked
// through one by one. Beyond that it is exchanged for an empty one, and every
// client of a service asks once more.
const manyKeys = 16384

// SwitchFor starts a new epoch, as Switch does, for a change that concerns only
// connections with one of some addresses at an end. Those of all others stay as
// they are; what is known of these is for Forget and Review to remove, when the
// new tree is in force.
func (h *Hook) SwitchFor(addrs []netip.Addr) error {
	return h.change(func() error { return h.switchAll(change{addrs: addrs}) })
}

// Forget removes the keys of some addresses from the sets that the rules use.
// When it returns, no packet is on its way that was let through by one of them.
func (h *Hook) Forget(addrs []netip.Addr) error {
	return h.change(func() error {
		// A packet that still walks the rules of the epoch before may add a key.
		awaitPackets()
		for _, s := range h.stacks {
			if err := s.forget(addrs); err != nil {
				return fmt.Errorf("forget the verdicts about %v: %w", addrs, err)
			}
		}
		awaitPackets()
		return nil
	})
}

func (s *stack) forget(addrs []netip.Addr) error {
	about := map[netip.Addr]struct{}{}
	for _, a := range addrs {
		if familyOf(a) == s.family {
			about[a.Unmap().WithZone("")] = struct{}{}
		}
	}
	if len(about) == 0 {
		return nil
	}
	for _, name := range s.usedSets() {
		var keys []entry
		err := s.sets.each(name, func(e entry) {
			_, src := about[e.addr]
			_, dst := about[e.dst]
			if src || dst {
				keys = append(keys, e)
			}
		})
		if err != nil {
			return err
		}
		for _, k := range keys {
			if err := s.sets.remove(name, k); err != nil {
				return err
			}
		}
	}
	return nil
}

// usedSets are the sets of verdicts that the rules use.
func (s *stack) usedSets() (names []string) {
	if s.allowTimeout != 0 {
		names = append(names, s.allowSet())
	}
	if s.denyTimeout != 0 {
		names = append(names, s.denySet())
	}
	return names
}

// exchange decides which sets are exchanged because there are too many keys in
// them to look for those of a few addresses.
func (s *stack) exchange(ch *change) error {
	concerned := false
	for _, a := range ch.addrs {
		concerned = concerned || familyOf(a) == s.family
	}
	if !concerned {
		return nil
	}
	for _, c := range [...]struct {
		name string
		used bool
		flip *bool
	}{
		{s.allowSet(), s.allowTimeout != 0, &ch.flipAllow},
		{s.denySet(), s.denyTimeout != 0, &ch.flipDeny},
	} {
		if !c.used {
			continue
		}
		have, err := s.sets.list(c.name)
		if err != nil {
			return err
		}
		*c.flip = have == nil || have.entries > manyKeys
	}
	return nil
}
