package hook

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Hook owns the chains and sets of this package in one network namespace, that
// of the thread that called Open. Its methods may be called by any goroutine.
type Hook struct {
	cfg    Config
	names  names
	packet Marks
	ns     *namespace
	stacks []*stack // one for each family
	pace   *pace

	asking   sync.Mutex // for requests
	requests *sets      // sockets for handovers

	mu        sync.Mutex // one change at a time
	installed bool
	adopted   bool // Install found rules
	wanted    Policed
	epoch     uint32 // in force for every family
	tried     uint32 // the last one that a switch tried to put in force
}

// errNotInstalled is a call out of order.
var errNotInstalled = errors.New("the rules are not installed: call Install first")

// Open checks that everything that the rules need is there: the privilege, the
// commands, and every kernel feature, each tried in the real table. It changes
// nothing that lasts. Its errors say what is missing and how to get it; those
// about a privilege wrap ErrPermission, those about the kernel ErrUnsupported.
func Open(cfg Config) (*Hook, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	h, err := newHook(cfg)
	if err != nil {
		return nil, err
	}
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	if h.ns, err = currentNamespace(); err != nil {
		return nil, err
	}
	if err := h.ns.do(h.open); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func newHook(cfg Config) (*Hook, error) {
	h := &Hook{cfg: cfg, pace: cfg.pace}
	var err error
	if h.names, err = newNames(cfg.Prefix); err != nil {
		return nil, err
	}
	if h.packet, err = NewMarks(cfg.MarkMask); err != nil {
		return nil, fmt.Errorf("packet marks: %w", err)
	}
	return h, nil
}

// open runs in the namespace.
func (h *Hook) open() error {
	conn, err := h.packet.connection(h.cfg.ConnmarkMask)
	if err != nil {
		return fmt.Errorf("connection marks: %w", err)
	}
	all, err := chooseBackend(&h.cfg)
	if err != nil {
		return err
	}
	if h.requests, err = openSets(); err != nil {
		return err
	}
	var missing []error
	for _, t := range all {
		s, err := h.newStack(t, conn)
		if err != nil {
			return err
		}
		h.stacks = append(h.stacks, s)
		missing = append(missing, s.probe())
	}
	return errors.Join(missing...)
}

// newStack returns a stack with netlink sockets of its own: it may work while the
// one of the other family does.
func (h *Hook) newStack(t *tables, conn Marks) (*stack, error) {
	sets, err := openSets()
	if err != nil {
		return nil, err
	}
	return &stack{
		chain: chain{
			family: t.family, names: h.names, packet: h.packet, conn: conn,
			state:    state{allow: sideA, deny: sideA},
			queueNum: h.cfg.QueueNum, queueCount: h.cfg.QueueCount, failOpen: h.cfg.FailOpen, askLimit: h.cfg.AskLimit, sources: h.cfg.sources,
			allowTimeout: h.cfg.AllowTimeout, denyTimeout: h.cfg.DenyTimeout, antiSpoof: h.cfg.AntiSpoof,
		},
		tables: t, sets: sets, maxElem: h.cfg.MaxElem, mayAnswer: h.cfg.Answers, counted: Counters{},
	}, nil
}

// close frees what Open opened; rules and sets stay.
func (h *Hook) close() {
	for _, s := range h.stacks {
		s.sets.close()
	}
	if h.requests != nil {
		h.requests.close()
	}
	h.ns.file.Close()
}

// Marks returns how verdicts are written into packet marks.
func (h *Hook) Marks() Marks { return h.packet }

// Connmarks returns how verdicts are written into connection marks.
func (h *Hook) Connmarks() Marks { return h.stacks[0].chain.conn }

// Backend returns the backend in use, NFT or Legacy.
func (h *Hook) Backend() Backend { return h.stacks[0].tables.backend }

// Epoch is what belongs in the marks of verdicts given from now on, by the tree
// that takes effect after a Switch.
func (h *Hook) Epoch() uint32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.epoch
}

// change runs a change to installed rules.
func (h *Hook) change(f func() error) error {
	return h.do(func() error {
		if !h.installed {
			return errNotInstalled
		}
		return f()
	})
}

// do runs f, alone and in the namespace.
func (h *Hook) do(f func() error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ns.do(f)
}

// Install starts asking about the packets of policed pods. Whatever a previous
// process left, however it ended, becomes part of it: the generation continues
// from the one found, so that every live flow is judged again, and in between no
// packet goes unjudged. Rules that are left in another backend, or for a family
// that is not wanted any more, are removed.
func (h *Hook) Install(p Policed) error {
	return h.do(func() error {
		h.want(p)
		epoch, err := h.foreignEpoch()
		if err != nil {
			return err
		}
		for _, s := range h.stacks {
			if err := s.install(epoch, p.of(s.family)); err != nil {
				return fmt.Errorf("install the rules of %v: %w", s.tables, err)
			}
			s.tables.release()
		}
		h.epoch, h.installed = epoch, true
		return errors.Join(h.removeStrays(), h.finish())
	})
}

func (h *Hook) want(p Policed) {
	h.wanted = p
	for _, s := range h.stacks {
		s.wantAnswers = p.Answers
	}
}

// Prepare adds the addresses that are policed from now on. Those that no longer
// are stay until Finish: between the two more is asked than necessary.
func (h *Hook) Prepare(p Policed) error {
	return h.change(func() error {
		h.want(p)
		for _, s := range h.stacks {
			if err := s.prepare(p.of(s.family)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Switch starts a new epoch: verdicts given in the one before still count for
// their own packet, but are not remembered. If the change to the policy revokes
// something, connections and the allow set are asked about again; if it adds
// something, the deny set. If it does neither, nothing happens.
//
// On an error the caller goes on with the old tree and the old epoch, whichever
// rules are in force. That is safe. Where the rules are the old ones, nothing
// has changed. Where they are the new ones, which may be for one family only,
// the old tree's verdicts are obeyed, but as they carry the old epoch they never
// enter a connection mark or a set: each packet of a flow is asked about until a
// later Switch succeeds. Nothing that was decided before the change that failed
// is believed after one that succeeds.
func (h *Hook) Switch(revokes, adds bool) error {
	if !revokes && !adds {
		return nil
	}
	return h.change(func() error { return h.switchAll(change{revokes: revokes, adds: adds}) })
}

func (h *Hook) switchAll(ch change) error {
	epoch := h.nextEpoch()
	err := h.both(func(s *stack) error { return s.switchTo(epoch, ch) })
	for _, s := range h.stacks {
		s.tables.release()
	}
	if err != nil {
		return err
	}
	h.epoch = epoch
	return nil
}

// both runs f for both families at once: nearly all of the time of a change goes
// into waiting for commands, and a policy is in force only when both have it.
func (h *Hook) both(f func(*stack) error) error {
	errs := make([]error, len(h.stacks))
	var all sync.WaitGroup
	for i, s := range h.stacks {
		all.Go(func() { errs[i] = h.ns.do(func() error { return f(s) }) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// nextEpoch returns an epoch that no rule has yet. That epochs come round again
// does no harm: a mark lives from the moment its verdict is sent until the
// packet has gone through the chain, which happens inside that system call.
func (h *Hook) nextEpoch() uint32 {
	h.tried = h.packet.next(h.tried)
	return h.tried
}

// Finish cleans up when the tree has been swapped: it removes the addresses that
// are no longer policed and empties the sets that the rules no longer use.
func (h *Hook) Finish() error { return h.change(h.finish) }

func (h *Hook) finish() error {
	if slices.ContainsFunc(h.stacks, func(s *stack) bool { return s.retired }) {
		awaitPackets() // of both families: it takes the kernel some 10 ms
	}
	for _, s := range h.stacks {
		if err := s.finish(h.wanted.of(s.family)); err != nil {
			return err
		}
	}
	return nil
}

// Verify checks that the rules and the policed addresses are as they should be,
// and puts them back if not. When repaired is true there is a new Epoch, and
// everything is asked about again.
func (h *Hook) Verify() (repaired bool, err error) {
	err = h.change(func() error {
		intact, err := h.intact()
		if err != nil || intact {
			return err
		}
		repaired = true
		return h.repair()
	})
	return repaired && err == nil, err
}

func (h *Hook) intact() (bool, error) {
	for _, s := range h.stacks {
		have, err := s.tables.read()
		if err != nil {
			return false, err
		}
		if o := s.observe(&have); o.state != s.state || !s.complete(&have) {
			return false, nil
		}
		if err := s.relist(); err != nil {
			return false, err
		}
		if s.lacks(h.wanted.of(s.family)) {
			return false, nil
		}
	}
	return true, nil
}

// repair makes sets and rules as Install does. Nothing is in the way of packets
// meanwhile that was not before.
func (h *Hook) repair() error {
	for _, s := range h.stacks {
		for _, spec := range s.allSets() {
			if err := s.sets.ensure(spec); err != nil {
				return err
			}
		}
		if err := s.relist(); err != nil {
			return err
		}
		if err := s.prepare(h.wanted.of(s.family)); err != nil {
			return err
		}
	}
	return h.switchAll(change{revokes: true, adds: true})
}
