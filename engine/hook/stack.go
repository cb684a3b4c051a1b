package hook

import (
	"fmt"
	"math/bits"
	"net/netip"
	"time"

	"github.com/netverdict/netverdict/policy"
)

// stack is the hook of one IP family. The generation and the sets are its own,
// as a connection belongs to one family; the epoch is the same for both.
type stack struct {
	chain  // as it is in the kernel, as far as known
	tables *tables
	sets   *sets

	maxElem uint32
	// policed is what the sets of addresses contain.
	policed policed
	// attempted is a state that may be in force although its command failed.
	attempted *state
	// retired says that sets which no rule uses any more are not empty yet.
	retired bool
	// stale says that connections may carry generations that will be used again.
	stale     bool
	mayAnswer bool // Config.Answers
	// wantAnswers is what the next rules say about answers.
	wantAnswers bool
	// counted are the counters of rules that were replaced.
	counted Counters
}

// change says what a switch must do.
type change struct {
	revokes bool // connections and the allow set are asked about again
	adds    bool // the deny set is asked about again
	onTop   bool // the jump becomes the first rule again

	// addrs are the only addresses that the change concerns, if it neither revokes
	// nor adds for all.
	addrs []netip.Addr
	// Sets that are exchanged although the generation stays.
	flipAllow, flipDeny bool
}

// forAll spells out what a change means for the sets.
func (ch *change) forAll() {
	ch.flipAllow = ch.flipAllow || ch.revokes
	ch.flipDeny = ch.flipDeny || ch.adds
}

// install makes the kernel judge by new rules, whatever was there before.
func (s *stack) install(epoch uint32, wanted *policed) error {
	have, err := s.tables.read()
	if err != nil {
		return err
	}
	if err := s.adopt(s.observe(&have)); err != nil {
		return err
	}
	for _, spec := range s.allSets() {
		if err := s.sets.ensure(spec); err != nil {
			return err
		}
	}
	if err := s.relist(); err != nil {
		return err
	}
	if err := s.prepare(wanted); err != nil {
		return err
	}
	return s.switchTo(epoch, change{revokes: true, adds: true, onTop: true})
}

// adopt continues from the rules of a previous process, if there are any. It
// leaves no connection with a generation that is to come: without rules in our
// bits nobody knows what the marks of connections mean.
func (s *stack) adopt(o observed) error {
	s.state, s.attempted, s.retired = o.state, nil, true
	if !o.marked {
		s.generation = 0
		err := s.connmarks().clear(nil, policy.Allow, policy.Deny)
		s.stale = err != nil
		return err
	}
	s.stale = true
	return s.clearStale()
}

// attempts is how often a switch tries to replace the rules: others may have
// changed the table meanwhile, or have held its lock for too long.
const (
	attempts     = 3
	attemptPause = 50 * time.Millisecond
)

// switchTo replaces the rules in one transaction. On an error the old rules are
// in force, or, if a command was killed, perhaps the new ones; the next switch
// finds out which.
func (s *stack) switchTo(epoch uint32, ch change) error {
	if err := s.clearStale(); err != nil {
		return err
	}
	if s.retired {
		awaitPackets()
	}
	if err := s.exchange(&ch); err != nil {
		return err
	}
	var err error
	for i := range attempts {
		if i > 0 {
			if s.tables.pace.inHurry() {
				break
			}
			time.Sleep(attemptPause)
		}
		if err = s.try(epoch, ch); err == nil {
			return nil
		}
	}
	return fmt.Errorf("replace the rules of %v: %w", s.tables, err)
}

func (s *stack) try(epoch uint32, ch change) error {
	have, err := s.tables.read()
	if err != nil {
		return err
	}
	if took := s.settle(&have, &ch); took && s.epoch == epoch {
		return nil // the attempt before did it after all
	}
	ch.forAll()
	next := s.next(epoch, ch)
	if err := s.renew(&next, ch); err != nil {
		return err
	}
	s.attempted = &next.state
	rules := render(&next, have.hooking(s.names.base(), ch.onTop),
		have.hookingFrom(prerouting, s.names.arrival(), next.watchesArrivals()), have.hookingFrom(forwarding, s.names.forward(), true))
	if err := s.tables.commit(rules, s.names.base()); err != nil {
		return err
	}
	s.counted.add(have.counters(s.names))
	s.commit(next.state)
	return nil
}

// settle finds out which rules are in force, and whether it is those of an
// attempt that seemed to fail. When they are neither these nor the last ones
// known, somebody emptied the table or restored an old copy: nothing that the
// kernel remembers can be relied on then, and the sets that the rules name are
// the ones in use.
func (s *stack) settle(have *saved, ch *change) (took bool) {
	o := s.observe(have)
	switch {
	case o.installed && s.attempted != nil && o.state == *s.attempted:
		s.commit(o.state)
		return true
	case !o.installed || o.state != s.state:
		ch.revokes, ch.adds = true, true
		s.allow, s.deny = o.allow, o.deny
	}
	return false
}

// commit takes note of the state in force. Twice in the cycle of generations
// the marks of all others are cleared: when a generation comes into use again,
// no connection is left that carried it the last time round.
func (s *stack) commit(now state) {
	if now.generation != s.generation && now.generation%(s.conn.Numbers()/2) == 0 {
		s.stale = true
	}
	s.state, s.attempted, s.retired = now, nil, true
}

// next describes the rules after a change.
func (s *stack) next(epoch uint32, ch change) chain {
	next := s.chain
	next.epoch, next.answers = epoch, s.wantAnswers
	if ch.revokes {
		next.generation = s.conn.next(s.generation)
	}
	if ch.flipAllow && s.allowTimeout != 0 {
		next.allow = s.allow.other()
	}
	if ch.flipDeny && s.denyTimeout != 0 {
		next.deny = s.deny.other()
	}
	return next
}

// renew prepares the sets that the rules are going to use instead of others.
func (s *stack) renew(next *chain, ch change) error {
	if ch.flipAllow && s.allowTimeout != 0 {
		if err := s.sets.renew(s.allowSpec(next.allow)); err != nil {
			return err
		}
	}
	if ch.flipDeny && s.denyTimeout != 0 {
		return s.sets.renew(s.denySpec(next.deny))
	}
	return nil
}

// finish cleans up after a switch, once no packet is on its way through the rules
// before it.
func (s *stack) finish(wanted *policed) error {
	if err := s.emptyRetired(); err != nil {
		return err
	}
	if err := s.clearStale(); err != nil {
		return err
	}
	return s.release(wanted)
}

// emptyRetired empties the sets that the rules do not use, and no packet does.
func (s *stack) emptyRetired() error {
	if !s.retired {
		return nil
	}
	idle := s.chain
	idle.allow, idle.deny = s.allow.other(), s.deny.other()
	if err := s.renew(&idle, change{flipAllow: true, flipDeny: true}); err != nil {
		return err
	}
	s.retired = false
	return nil
}

// clearStale clears the marks of all generations but the current one, when that
// is due. Those of connections that were cut stay: their number means nothing, and
// without them replies would pass. Review is what frees a connection.
func (s *stack) clearStale() error {
	if !s.stale {
		return nil
	}
	if err := s.connmarks().clear(&s.generation, policy.Allow); err != nil {
		return err
	}
	s.stale = false
	return nil
}

func (s *stack) connmarks() connmarks { return connmarks{s.family, s.conn} }

// allSets describes the sets of the family: two of addresses, one of
// bridges, and up to four of keys.
func (s *stack) allSets() []setSpec {
	specs := []setSpec{
		s.addrSpec(s.names.egress(s.family)),
		s.addrSpec(s.names.ingress(s.family)),
		s.bridgesSpec(s.names.bridges(s.family)),
	}
	if s.antiSpoof {
		specs = append(specs, s.podLinksSpec())
	}
	for _, side := range [...]side{sideA, sideB} {
		if s.allowTimeout != 0 {
			specs = append(specs, s.allowSpec(side))
		}
		if s.denyTimeout != 0 {
			specs = append(specs, s.denySpec(side))
		}
	}
	return specs
}

func (s *stack) addrSpec(name string) setSpec {
	return setSpec{name: name, typename: addrType, family: s.family, maxElem: maxAddrs}
}

func (s *stack) allowSpec(side side) setSpec {
	return s.keySpec(s.names.allowSet(s.family, side), false)
}

// denySpec counts packets, so that one can see what is still being tried.
func (s *stack) denySpec(side side) setSpec {
	return s.keySpec(s.names.denySet(s.family, side), true)
}

// keySpec describes a set for verdicts. Its own timeout does not matter: the
// rules give one with each entry.
func (s *stack) keySpec(name string, counters bool) setSpec {
	return setSpec{
		name: name, typename: keyType, family: s.family, timeout: time.Second, counters: counters,
		maxElem: s.maxElem, hashSize: buckets(s.maxElem),
	}
}

// buckets is the size of a set of keys that takes so many: a power of two.
func buckets(keys uint32) uint32 { return 1 << bits.Len32(max(keys/keysPerBucket, 64)-1) }
