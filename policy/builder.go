package policy

import "net/netip"

// Scope is what a tree depends on besides the cluster's objects: who is asking.
type Scope struct {
	Local         func(*Pod) bool // as Snapshot.Local; it must answer alike for a pod that does not change
	LocalPodCIDRs []netip.Prefix  // as Snapshot.LocalPodCIDRs
	UnknownPod    Verdict         // as Snapshot.UnknownPod
	Limits        Limits          // of expansion; zero: DefaultLimits
}

// Builder makes trees from objects that change. The tree is a function of the
// objects as they are, not of how they came to be: Compile of the same objects
// decides, explains and counts alike. A Builder belongs to one goroutine; the trees
// it makes never change and may be asked by any number of them.
//
// Building costs what has changed, not what there is: trees share the rest.
type Builder struct {
	scope    Scope
	pending  Delta
	compiler *compiler
	last     *Tree
	strain   func(*compiler) // of tests
	trial    func(ok bool)   // of tests: a compilation from scratch ended
}

// NewBuilder makes a builder that knows no object.
func NewBuilder(s Scope) *Builder { return &Builder{scope: s, compiler: newCompiler(s)} }

// SetScope replaces the scope; the next Build compiles everything.
func (b *Builder) SetScope(s Scope) {
	b.scope = s
	b.restart()
}

// Apply enters what became of objects. Objects must not be changed afterwards.
func (b *Builder) Apply(d *Delta) { b.pending.Add(d) }

// Build makes the tree of the present objects: the last one again, if nothing has
// changed. On an error, which names the policies that are at fault, what was
// applied stays applied and waits for the policies to be corrected or to go.
//
// Policies that expand beyond the scope's Limits are no error: see there. While there
// are some, each Build compiles from scratch, to find out which they are.
func (b *Builder) Build() (*Tree, error) {
	ch, err := b.compiler.read(&b.pending)
	if err != nil {
		return nil, err
	}
	first := b.compiler.regions.world == nil
	if b.last != nil && !first && ch.empty() {
		b.pending = Delta{}
		return b.last, nil
	}
	if first || len(b.compiler.refused) > 0 {
		return b.publish(step{})
	}
	u, ok := b.compiler.try(ch)
	if !ok {
		return b.publish(step{})
	}
	b.pending = Delta{}
	tree := b.compiler.tree()
	tree.step = u.stepFrom(b.last, tree)
	u.finish()
	if b.compiler.stale() { // compiling from scratch changes no decision
		return b.publish(tree.step)
	}
	b.last = tree
	return tree, nil
}

// publish compiles the present objects from scratch.
func (b *Builder) publish(s step) (*Tree, error) {
	if err := b.scratch(); err != nil {
		return nil, err
	}
	b.last = b.compiler.tree()
	b.last.step = s
	b.compiler.base = b.compiler.grown()
	return b.last, nil
}

// scratch compiles, leaving out more and more of the policies that expand too much.
func (b *Builder) scratch() error {
	refused, off := refusals{}, false
	for {
		b.restart()
		b.compiler.refused, b.compiler.meter.off = refused, off
		ch, err := b.compiler.read(&b.pending)
		if err != nil {
			return err
		}
		u, ok := b.compiler.try(ch)
		if b.trial != nil {
			b.trial(ok)
		}
		if ok {
			b.pending = Delta{}
			u.finish()
			return nil
		}
		off = !refused.shed(b.compiler.meter, ch.policies)
	}
}

// restart begins with a new compiler and makes all objects pending.
func (b *Builder) restart() {
	all := b.compiler.objects()
	all.Add(&b.pending)
	b.pending, b.compiler = *all, newCompiler(b.scope)
	if b.strain != nil {
		b.strain(b.compiler)
	}
}
