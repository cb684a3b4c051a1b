package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Limits bound what policies may expand to when they are compiled. Each counts work
// or memory and not time, so the same objects are treated alike by every machine.
// Zero fields mean DefaultLimits.
//
// Policies that would need more are left out: their rules, not their selectors. They
// isolate the pods that they select, and allow nothing (Tree.OverLimit). Which ones
// depends on the objects alone. If a namespace's own policies need too much, the
// longest of that namespace go; if all policies together do, the longest of the
// namespace whose policies are longest in all.
type Limits struct {
	// Comparisons of a selector's requirement with a group of like pods, and of a
	// block with another that contains it.
	Comparisons int
	// Members of peers: a group of pods that a peer selects, a range of addresses
	// that it contains. One needs 50 bytes.
	Members int
	// Answers of all programs, and Steps of working them out. One answer needs up
	// to 16 bytes.
	Answers, Steps int
	// NamespaceAnswers and NamespaceSteps are the same for the policies of one
	// namespace.
	NamespaceAnswers, NamespaceSteps int
}

// DefaultLimits are far from what clusters need: 10,000 pods on 100 nodes with 10,000
// policies stay below a twentieth of each (TestLimitsAreFarAway).
var DefaultLimits = Limits{
	Comparisons: 1 << 26, Members: 1 << 22,
	Answers: 1 << 24, Steps: 1 << 29,
	NamespaceAnswers: 1 << 22, NamespaceSteps: 1 << 26,
}

// Times multiplies all limits.
func (l Limits) Times(factor float64) Limits {
	l = l.orDefault()
	for _, n := range l.fields() {
		*n = int(min(float64(*n)*factor, 1<<40))
	}
	return l
}

func (l *Limits) fields() []*int {
	return []*int{&l.Comparisons, &l.Members, &l.Answers, &l.Steps, &l.NamespaceAnswers, &l.NamespaceSteps}
}

func (l Limits) orDefault() Limits {
	byDefault := DefaultLimits
	from := byDefault.fields()
	for i, n := range l.fields() {
		if *n == 0 {
			*n = *from[i]
		}
	}
	return l
}

// OverLimit is a policy whose rules are left out.
type OverLimit struct {
	Policy PolicyRef `json:"policy"`
	Limit  string    `json:"limit"` // which one, and how to stay below it
}

func (o OverLimit) String() string {
	return fmt.Sprintf("%s %s: %s", o.Policy.Kind, o.Policy, o.Limit)
}

// OverLimit lists the live policies whose rules are left out, by name.
func (t *Tree) OverLimit() []OverLimit {
	var list []OverLimit
	for _, p := range t.policies {
		if p.overLimit != "" {
			list = append(list, OverLimit{p.ref, p.overLimit})
		}
	}
	return list
}

// excess is which limit of the whole tree was reached; compiler.try recovers it.
type excess string

// meter counts what a compilation expands to.
type meter struct {
	limits                              Limits
	off                                 bool // nothing is left that could be left out
	comparisons, members, answers, step int
	namespaces                          map[string]*spending
	exceeded                            excess
}

// spending is what the policies of a namespace cost.
type spending struct {
	meter          *meter
	answers, steps int
	exceeded       excess
}

func newMeter(l Limits) *meter {
	return &meter{limits: l.orDefault(), namespaces: map[string]*spending{}}
}

func (m *meter) namespace(name string) *spending {
	s := m.namespaces[name]
	if s == nil {
		s = &spending{meter: m}
		m.namespaces[name] = s
	}
	return s
}

func (m *meter) compared(n int) {
	if m.comparisons += n; m.comparisons > m.limits.Comparisons {
		m.stop("comparisons of selectors and ipBlocks", m.limits.Comparisons)
	}
}

func (m *meter) joined(n int) {
	if m.members += n; m.members > m.limits.Members {
		m.stop("members of peers", m.limits.Members)
	}
}

// stop ends the compilation.
func (m *meter) stop(what string, limit int) {
	if !m.off {
		m.exceeded = tooMuch("all policies", what, limit)
		panic(m.exceeded)
	}
}

// answered counts answers; it returns false if the namespace may have no more.
func (s *spending) answered(n int) bool {
	if s.answers += n; !s.within(s.answers, s.meter.limits.NamespaceAnswers, "answers") {
		return false
	}
	if s.meter.answers += n; s.meter.answers > s.meter.limits.Answers {
		s.meter.stop("answers", s.meter.limits.Answers)
	}
	return true
}

// took counts steps; it returns false if the namespace may make no more.
func (s *spending) took(n int) bool {
	if s.steps += n; !s.within(s.steps, s.meter.limits.NamespaceSteps, "steps") {
		return false
	}
	if s.meter.step += n; s.meter.step > s.meter.limits.Steps {
		s.meter.stop("steps", s.meter.limits.Steps)
	}
	return true
}

func (s *spending) within(n, limit int, what string) bool {
	if n > limit && !s.meter.off {
		s.exceeded = tooMuch("the policies of this namespace", what, limit)
	}
	return s.exceeded == ""
}

func tooMuch(who, what string, limit int) excess {
	return excess(fmt.Sprintf("%s would expand to more than %d %s on this node", who, limit, what))
}

// within reports whether no limit was reached.
func (m *meter) within() bool {
	if m.exceeded != "" {
		return false
	}
	for _, s := range m.namespaces {
		if s.exceeded != "" {
			return false
		}
	}
	return true
}

// try makes an update, unless a limit is reached: then the compiler is of no use
// any more, but for the meter and the policies that it knows.
func (c *compiler) try(ch *changes) (u *update, ok bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, limit := r.(excess); !limit {
				panic(r)
			}
			u, ok = nil, false
		}
	}()
	u = c.update(ch)
	return u, c.meter.within()
}

// refusals are why policies are over a limit.
type refusals map[NamespacedName]string

// shed adds the policies to leave out next: of each namespace that is over its own
// limit, or of the one with the longest policies, the longest until half of all that they
// list is gone. It returns false if there is nothing to leave out.
func (r refusals) shed(m *meter, all []edited[parsedPolicy]) bool {
	byNamespace := map[string][]*parsedPolicy{}
	total := map[string]int{}
	for _, e := range all {
		p := e.now // never nil: of what is gone, a new compiler has not heard
		if n := p.listed(); p.overLimit == "" && n > 0 && (p.local > 0 || m.comparisons > m.limits.Comparisons) {
			byNamespace[p.ref.Namespace] = append(byNamespace[p.ref.Namespace], p)
			total[p.ref.Namespace] += n
		}
	}
	over := map[string]excess{}
	if m.exceeded != "" {
		if name := heaviest(total); name != "" {
			over[name] = m.exceeded
		}
	} else {
		for name, s := range m.namespaces {
			if s.exceeded != "" && total[name] > 0 {
				over[name] = s.exceeded
			}
		}
	}
	for name, why := range over {
		list := byNamespace[name]
		slices.SortFunc(list, func(a, b *parsedPolicy) int { return cmp.Or(cmp.Compare(b.listed(), a.listed()), byName(a, b)) })
		for rest := total[name]; 2*rest > total[name]; list = list[1:] {
			r[list[0].ref.NamespacedName] = list[0].overLimitText(why)
			rest -= list[0].listed()
		}
	}
	return len(over) > 0
}

func heaviest(total map[string]int) (name string) {
	for n, weight := range total {
		if name == "" || weight > total[name] || weight == total[name] && n < name {
			name = n
		}
	}
	return name
}

// overLimitText names the field that lists most.
func (p *parsedPolicy) overLimitText(why excess) string {
	field, most := "", 0
	for _, d := range Directions {
		for i := range p.rules[d] {
			r := &p.rules[d][i]
			path := fmt.Sprintf("spec.%s[%d]", d, i)
			if n := r.peersListed(); n > most {
				field, most = path+"."+[...]string{Egress: "to", Ingress: "from"}[d], n
			}
			if n := len(r.ports); n > most {
				field, most = path+".ports", n
			}
		}
	}
	return fmt.Sprintf("%s, and this one lists %d items, most of them (%d) in %s: its rules are left out, so it allows nothing; list less, or raise the agent's --policy-limits",
		why, p.listed(), most, field)
}

// listed is how long a policy is: its rules, peers, requirements of selectors and
// their values, exceptions and ports.
func (p *parsedPolicy) listed() (n int) {
	for d := range p.rules {
		for i := range p.rules[d] {
			n += 1 + p.rules[d][i].peersListed() + len(p.rules[d][i].ports)
		}
	}
	return n
}

func (r *parsedRule) peersListed() (n int) {
	for _, q := range r.peers {
		n++
		if q.block != nil {
			n += len(q.block.except)
			continue
		}
		n += strings.Count(q.key, ",") + strings.Count(q.key, "=") // requirements and values
	}
	return n
}

// leaveOut makes a policy one that isolates and allows nothing.
func (p *parsedPolicy) leaveOut(why string) {
	p.overLimit, p.rules = why, [2][]parsedRule{}
}
