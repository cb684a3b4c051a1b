package policy

// Strain makes a builder do all the time what it otherwise does in big clusters or
// after many changes: rows with so many pages to a bit, compaction of rows, and
// compilation from scratch when anything at all may be garbage.
func (b *Builder) Strain(shift uint32, compact, rebuild bool) {
	b.strain = func(c *compiler) {
		c.rows.shift = shift
		if compact {
			c.rows.floor = 0
		}
		if rebuild {
			c.floor = 0
		}
	}
	b.strain(b.compiler)
}

// Spent is how much of its limits the last compilation of a builder has used.
func (b *Builder) Spent() Limits {
	m := b.compiler.meter
	l := Limits{Comparisons: m.comparisons, Members: m.members, Answers: m.answers, Steps: m.step}
	for _, s := range m.namespaces {
		l.NamespaceAnswers, l.NamespaceSteps = max(l.NamespaceAnswers, s.answers), max(l.NamespaceSteps, s.steps)
	}
	return l
}

// OnTrial has f called with what every compilation spent, also of those that were
// given up.
func (b *Builder) OnTrial(f func(spent Limits, ok bool)) {
	b.trial = func(ok bool) { f(b.Spent(), ok) }
}
