package hook

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// UseQueue makes the rules send packets to other queues, as many as before, from
// this number on. It must be called before Install.
func (h *Hook) UseQueue(num uint16) error {
	cfg := h.cfg
	cfg.QueueNum = num
	if err := cfg.validate(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cfg = cfg
	for _, s := range h.stacks {
		s.queueNum = num
	}
	return nil
}

// QueueInForce returns the first queue that the rules in the kernel send packets
// to, whoever has installed them. ok is false if there are no such rules.
func (h *Hook) QueueInForce() (num uint16, ok bool, err error) {
	err = h.ns.do(func() error {
		for _, s := range h.stacks {
			have, err := s.tables.read()
			if err != nil {
				return err
			}
			if o := s.observe(&have); o.queued {
				num, ok = o.queue, true
			}
		}
		return nil
	})
	return num, ok, err
}

// Superseded reports whether the rules of every family have been replaced by those
// of another process, which send packets to other queues.
func (h *Hook) Superseded() (bool, error) {
	superseded := true
	err := h.ns.do(func() error {
		for _, s := range h.stacks {
			have, err := s.tables.read()
			if err != nil {
				return err
			}
			o := s.observe(&have)
			superseded = superseded && o.queued && o.queue != s.queueNum
		}
		return nil
	})
	return superseded && err == nil, err
}

// RequestHandover asks the process that owns the rules to let this one replace
// them. The request is an empty set, because to make one takes the privilege that
// owning the rules takes.
func (h *Hook) RequestHandover() error {
	return h.aboutRequests(func(s *sets) error {
		err := s.ensure(setSpec{name: h.names.request(), typename: addrType, family: ipv4, maxElem: 1})
		if err != nil {
			return fmt.Errorf("ask for the rules: %w", err)
		}
		return nil
	})
}

// HandoverRequested reports whether somebody asks for the rules.
func (h *Hook) HandoverRequested() (asked bool, err error) {
	err = h.aboutRequests(func(s *sets) error {
		have, err := s.list(h.names.request())
		asked = have != nil
		return err
	})
	return asked, err
}

// EndHandover takes a request back, or says that it was followed.
func (h *Hook) EndHandover() error {
	return h.aboutRequests(func(s *sets) error { return s.destroy(h.names.request()) })
}

// aboutRequests runs f with sockets of their own: it does not wait for a change of
// the rules, which may wait for a lock of others. They stay open, as the owner of the
// rules looks for requests many times a second.
func (h *Hook) aboutRequests(f func(*sets) error) error {
	h.asking.Lock()
	defer h.asking.Unlock()
	return f(h.requests)
}

// Do runs f in the hook's network namespace.
func (h *Hook) Do(f func() error) error { return h.ns.do(f) }

// queueIn reads the first queue number from our rule with the target NFQUEUE.
func queueIn(r *savedRule) (num uint16, ok bool) {
	text := r.option("--queue-num")
	if text == "" {
		text, _, _ = strings.Cut(r.option("--queue-balance"), ":")
	}
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil
}

// foreignEpoch chooses an epoch for Install that the rules in force do not have: a
// process that still gives verdicts under them must not be taken for this one.
func (h *Hook) foreignEpoch() (uint32, error) {
	var used []uint32
	for _, s := range h.stacks {
		have, err := s.tables.read()
		if err != nil {
			return 0, err
		}
		o := s.observe(&have)
		h.adopted = h.adopted || o.installed
		if o.marked {
			used = append(used, o.epoch)
		}
	}
	epoch := h.nextEpoch()
	for slices.Contains(used, epoch) {
		epoch = h.nextEpoch() // there are four at least, and two families
	}
	return epoch, nil
}

// Adopted reports whether Install has found rules of an earlier process. They drop
// what nobody judges; who fails to replace them must not remove them.
func (h *Hook) Adopted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.adopted
}
