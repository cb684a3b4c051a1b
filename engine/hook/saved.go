package hook

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/netverdict/netverdict/policy"
)

// saved is a table as iptables-save -c printed it.
type saved struct {
	chains []string
	rules  []savedRule
}

// savedRule is one line of iptables-save.
type savedRule struct {
	chain string
	spec  string   // what follows the chain, as printed
	args  []string // spec, split and unquoted
	Count
}

// Count is what a rule has matched.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"` // from the layer 3 header on
}

// errIncompatible: iptables-nft-save exits with 0, but prints no rule of a table
// that has one which iptables cannot express.
var errIncompatible = errors.New("another program has put rules into it that iptables cannot read")

// parseSaved reads the output of iptables-save -c for one table.
func parseSaved(r io.Reader) (saved, error) {
	var s saved
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "# Table ") && strings.Contains(line, " is incompatible"):
			return saved{}, errIncompatible
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			s.chains = append(s.chains, name)
		case strings.HasPrefix(line, "["), strings.HasPrefix(line, "-A "):
			rule, err := parseRule(line)
			if err != nil {
				return saved{}, err
			}
			s.rules = append(s.rules, rule)
		}
	}
	return s, lines.Err()
}

// parseRule reads "[packets:bytes] -A CHAIN spec"; the counters may be missing.
func parseRule(line string) (r savedRule, err error) {
	rest := line
	if counts, after, ok := strings.Cut(line, "] -A "); ok && line[0] == '[' {
		if _, err := fmt.Sscanf(counts, "[%d:%d", &r.Packets, &r.Bytes); err != nil {
			return r, fmt.Errorf("counters of rule %q: %w", line, err)
		}
		rest = "-A " + after
	}
	rest, ok := strings.CutPrefix(rest, "-A ")
	if !ok {
		return r, fmt.Errorf("rule %q: want -A after the counters", line)
	}
	r.chain, r.spec, _ = strings.Cut(rest, " ")
	r.args = splitArgs(r.spec)
	return r, nil
}

// splitArgs splits a rule at spaces outside of quotes. iptables-save puts text
// with special characters in double quotes and writes \ before a quote or a
// backslash (xtables_save_string in libxtables).
func splitArgs(spec string) (args []string) {
	var arg strings.Builder
	var quoted, escaped, some bool
	for _, r := range spec {
		switch {
		case escaped:
			arg.WriteRune(r)
			escaped = false
		case r == '\\':
			escaped = true
		case r == '"':
			quoted, some = !quoted, true
		case r == ' ' && !quoted:
			if some || arg.Len() > 0 {
				args = append(args, arg.String())
			}
			arg.Reset()
			some = false
		default:
			arg.WriteRune(r)
		}
	}
	if some || arg.Len() > 0 {
		args = append(args, arg.String())
	}
	return args
}

// option returns the word after an option, or "".
func (r *savedRule) option(name string) string { return option(r.args, name) }

// purpose is what our comment says, or what is evident of a rule without comment.
// Of foreign rules in foreign chains it means nothing.
func (r *savedRule) purpose() Purpose {
	comment := r.option("--comment")
	if comment == "" {
		return evident(r.chain, r.args)
	}
	p, ours := strings.CutPrefix(comment, commentPrefix)
	if !ours {
		return ""
	}
	return Purpose(p)
}

// jumps lists the rules of POSTROUTING that lead to a chain, and whether the
// first rule is one.
func (s *saved) jumps(chain string) (specs []string, first bool) {
	return s.jumpsFrom(postrouting, chain)
}

func (s *saved) jumpsFrom(from, chain string) (specs []string, first bool) {
	index := 0
	for _, r := range s.rules {
		if r.chain != from {
			continue
		}
		if r.option("-j") == chain || r.option("-g") == chain {
			specs = append(specs, r.spec)
			first = first || index == 0
		}
		index++
	}
	return specs, first
}

// hooking says how to get exactly one jump, in front if onTop. Otherwise one
// that is there stays where it is: another program may insist on being first
// too, and neither would ever have peace.
func (s *saved) hooking(chain string, onTop bool) hooking {
	specs, first := s.jumps(chain)
	if len(specs) == 1 && (first || !onTop) {
		return hooking{}
	}
	return hooking{remove: specs, insert: true}
}

// hookingFrom says how to get exactly one jump from another chain than POSTROUTING,
// or none.
func (s *saved) hookingFrom(from, chain string, wanted bool) hooking {
	specs, _ := s.jumpsFrom(from, chain)
	if wanted && len(specs) == 1 {
		return hooking{}
	}
	return hooking{remove: specs, insert: wanted}
}

// ours lists the rules of our chains.
func (s *saved) ours(n names) (rules []savedRule) {
	for _, r := range s.rules {
		if slices.Contains(n.chains(), r.chain) {
			rules = append(rules, r)
		}
	}
	return rules
}

// leftovers lists our chains that exist, the probe's included.
func (s *saved) leftovers(n names) (chains []string) {
	for _, name := range append(n.chains(), n.probe()) {
		if slices.Contains(s.chains, name) {
			chains = append(chains, name)
		}
	}
	return chains
}

// observed is what the rules of the kernel say about the state they are in.
type observed struct {
	state
	// installed: our chain has rules; allow and deny name the sets that they use
	// and must not be emptied. A set that no rule uses counts as side a.
	installed bool
	// marked: the marks in the rules are written in our bits, so epoch and
	// generation are known.
	marked bool
	// queue is the first queue that packets are sent to, if queued.
	queue  uint16
	queued bool
}

// observe reads the state from the rules, whichever process installed them.
func (c *chain) observe(s *saved) observed {
	o := observed{state: state{allow: sideA, deny: sideA}}
	var epochKnown, generationKnown bool
	for _, r := range s.ours(c.names) {
		o.installed = true
		switch r.purpose() {
		case PurposeEstablished:
			o.generation, generationKnown = c.conn.read(r.option("--mark"), policy.Allow)
		case PurposeAllowed:
			o.epoch, epochKnown = c.packet.read(r.option("--mark"), policy.Allow)
		case PurposeQueue:
			o.queue, o.queued = queueIn(&r)
		case PurposeAnswer:
			o.answers = true
		case PurposeAllowSet:
			if r.option("--match-set") == c.names.allowSet(c.family, sideB) {
				o.allow = sideB
			}
		case PurposeDenySet:
			if r.option("--match-set") == c.names.denySet(c.family, sideB) {
				o.deny = sideB
			}
		}
	}
	o.marked = epochKnown && generationKnown
	return o
}

// complete reports whether the kernel has all rules of the description, in
// their order, no others between them, and the jump. Rules are compared by
// chain and purpose; what a switch changes in them is for observe to tell.
func (c *chain) complete(s *saved) bool {
	if specs, _ := s.jumps(c.names.base()); len(specs) != 1 {
		return false
	}
	if specs, _ := s.jumpsFrom(prerouting, c.names.arrival()); (len(specs) == 1) != c.watchesArrivals() || len(specs) > 1 {
		return false
	}
	if specs, _ := s.jumpsFrom(forwarding, c.names.forward()); len(specs) != 1 {
		return false
	}
	want := map[string][]Purpose{}
	for _, r := range c.rules() {
		want[r.chain] = append(want[r.chain], r.purpose)
	}
	have := map[string][]Purpose{}
	for _, r := range s.ours(c.names) {
		have[r.chain] = append(have[r.chain], r.purpose())
	}
	for _, name := range c.names.chains() {
		if !slices.Equal(have[name], want[name]) {
			return false
		}
	}
	return true
}
