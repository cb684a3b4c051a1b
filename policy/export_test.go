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
