package hook

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// spoofing matches packets that come from a pod's interface, when the way back to
// their source is another one: strict reverse-path filtering (RFC 3704 section 2.2),
// for these interfaces alone.
func (c *chain) spoofing() string {
	return fmt.Sprintf("-m set --match-set %s src,src -m rpfilter --invert", c.names.podLinks(c.family))
}

// maxLinks bounds the interfaces of pods; each has two entries.
const maxLinks = 1 << 14

func (s *stack) podLinksSpec() setSpec {
	return setSpec{name: s.names.podLinks(s.family), typename: linkType, family: s.family, maxElem: 2 * maxLinks}
}

// everywhere is all addresses of a family, in two halves: no entry has a prefix of
// length 0 to netlink's library.
func (f family) everywhere() []net.IP {
	if f == ipv6 {
		return []net.IP{net.IPv6zero, net.ParseIP("8000::")}
	}
	return []net.IP{net.IPv4zero.To4(), net.IPv4(128, 0, 0, 0).To4()}
}

// SetPodLinks says behind which interfaces pods are. It needs Config.AntiSpoof and
// Install.
func (h *Hook) SetPodLinks(names []string) error {
	return h.change(func() error {
		var errs []error
		for _, s := range h.stacks {
			errs = append(errs, s.setPodLinks(names))
		}
		return errors.Join(errs...)
	})
}

func (s *stack) setPodLinks(names []string) error {
	set := s.names.podLinks(s.family)
	have, err := s.sets.handle.IpsetList(set)
	if err != nil {
		return fmt.Errorf("read ipset %s: %w", set, explainSet(err))
	}
	var known []string
	for i := range have.Entries {
		if name := have.Entries[i].IFace; !slices.Contains(names, name) {
			err = errors.Join(err, ignoreGone(s.sets.handle.IpsetDel(set, &have.Entries[i])))
		} else {
			known = append(known, name)
		}
	}
	for _, name := range names {
		if countOf(known, name) == len(s.family.everywhere()) {
			continue
		}
		for _, half := range s.family.everywhere() {
			err = errors.Join(err, s.sets.handle.IpsetAdd(set, &netlink.IPSetEntry{IP: half, CIDR: 1, IFace: name, Replace: true}))
		}
	}
	if err != nil {
		return fmt.Errorf("change ipset %s: %w", set, explainSet(err))
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func countOf(names []string, name string) (n int) {
	for _, other := range names {
		if other == name {
			n++
		}
	}
	return n
}
