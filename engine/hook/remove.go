package hook

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/netverdict/netverdict/policy"
)

// Remove removes every chain and set with our names and the jumps to them, in
// every backend and family, whoever made them, and our bits from the marks of
// connections. It may be called any number of times. When it fails to remove a
// chain it leaves sets and marks alone, which rules may still use.
func (h *Hook) Remove() error {
	return h.do(func() error {
		h.installed = false
		chains := append(h.names.chains(), h.names.probe())
		var errs []error
		for _, s := range h.stacks {
			errs = append(errs, s.tables.removeAll(chains))
		}
		errs = append(errs, h.removeStrays())
		if err := errors.Join(errs...); err != nil {
			return err
		}
		for _, s := range h.stacks {
			errs = append(errs, s.connmarks().clear(nil, policy.Allow, policy.Deny))
		}
		for _, name := range h.names.allSets() {
			errs = append(errs, h.stacks[0].sets.destroy(name))
		}
		return errors.Join(errs...)
	})
}

// removeStrays removes our chains where this hook has none: in the other
// backend, and of the family that is not hooked. There they would go on sending
// packets to the queue, or drop them.
func (h *Hook) removeStrays() error {
	chains := append(h.names.chains(), h.names.probe())
	var errs []error
	for _, t := range everyTables(&h.cfg) {
		if slices.ContainsFunc(h.stacks, func(s *stack) bool {
			return s.tables.family == t.family && s.tables.backend == t.backend
		}) {
			continue
		}
		have, err := t.read()
		if err != nil {
			continue // not ours to use, and nothing of ours is known to be there
		}
		errs = append(errs, t.removeChains(&have, chains))
	}
	return errors.Join(errs...)
}

// everyTables lists the tables that can be looked at and exist.
func everyTables(cfg *Config) (all []*tables) {
	for _, f := range [...]family{ipv4, ipv6} {
		for _, b := range [...]Backend{NFT, Legacy} {
			if t, err := findTables(f, b, cfg.pace); err == nil && t.inUse() {
				all = append(all, t)
			}
		}
	}
	return all
}

func (t *tables) removeAll(chains []string) error {
	have, err := t.read()
	if err != nil {
		return err
	}
	return t.removeChains(&have, chains)
}

// removeChains removes those of the chains that exist, and the jumps to them
// from PREROUTING, FORWARD and POSTROUTING, in one transaction.
func (t *tables) removeChains(have *saved, chains []string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", mangle)
	var exist []string
	for _, name := range chains {
		if !slices.Contains(have.chains, name) {
			continue
		}
		exist = append(exist, name)
		for _, from := range [...]string{prerouting, forwarding, postrouting} {
			specs, _ := have.jumpsFrom(from, name)
			for _, spec := range specs {
				fmt.Fprintf(&b, "-D %s %s\n", from, spec)
			}
		}
	}
	if len(exist) == 0 {
		return nil
	}
	for _, verb := range [...]string{"-F", "-X"} {
		for _, name := range exist {
			fmt.Fprintf(&b, "%s %s\n", verb, name)
		}
	}
	b.WriteString("COMMIT\n")
	if err := t.apply(b.String()); err != nil {
		return fmt.Errorf("remove the chains %s: %w", strings.Join(exist, ", "), err)
	}
	return nil
}

// Leftovers lists the chains and sets with the names of a configuration that
// exist in the network namespace of the calling thread, in any backend and
// family. After Remove there are none.
func Leftovers(cfg Config) (left []string, err error) {
	cfg.setDefaults()
	n, err := newNames(cfg.Prefix)
	if err != nil {
		return nil, err
	}
	for _, t := range everyTables(&cfg) {
		have, err := t.read()
		if err != nil {
			return nil, err
		}
		for _, name := range have.leftovers(n) {
			left = append(left, fmt.Sprintf("%v chain %s", t, name))
		}
	}
	s, err := openSets()
	if err != nil {
		return nil, err
	}
	defer s.close()
	for _, name := range n.allSets() {
		have, err := s.list(name)
		if err != nil {
			return nil, err
		}
		if have != nil {
			left = append(left, "ipset "+name)
		}
	}
	return left, nil
}
