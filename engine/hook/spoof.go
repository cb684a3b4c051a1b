package hook

import (
	"errors"
	"fmt"

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

// SetPodLinks says behind which interfaces pods are. It needs Config.AntiSpoof and
// Install.
func (h *Hook) SetPodLinks(names []string) error {
	return h.change(func() error {
		var errs []error
		for _, s := range h.stacks {
			errs = append(errs, s.setLinks(s.names.podLinks(s.family), names))
		}
		return errors.Join(errs...)
	})
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
