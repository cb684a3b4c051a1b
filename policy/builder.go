package policy

import "net/netip"

// Scope is what a tree depends on besides the cluster's objects: who is asking.
type Scope struct {
	Local         func(*Pod) bool // as Snapshot.Local; it must answer alike for a pod that does not change
	LocalPodCIDRs []netip.Prefix  // as Snapshot.LocalPodCIDRs
	UnknownPod    Verdict         // as Snapshot.UnknownPod
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
func (b *Builder) Build() (*Tree, error) {
	ch, err := b.compiler.read(&b.pending)
	if err != nil {
		return nil, err
	}
	b.pending = Delta{}
	if b.last != nil && b.compiler.regions.world != nil && ch.empty() {
		return b.last, nil
	}
	first := b.compiler.regions.world == nil
	u := b.compiler.update(ch)
	tree := b.compiler.tree()
	switch {
	case first:
		b.compiler.base = b.compiler.grown()
	case b.last != nil:
		tree.step = u.stepFrom(b.last, tree)
	}
	u.finish()
	if b.compiler.stale() {
		if tree, err = b.rebuild(tree.step); err != nil {
			return nil, err
		}
	}
	b.last = tree
	return tree, nil
}

// rebuild compiles the present objects from scratch. It changes no decision, so the
// step from the last tree stays what it was.
func (b *Builder) rebuild(s step) (*Tree, error) {
	b.restart()
	ch, err := b.compiler.read(&b.pending)
	if err != nil {
		return nil, err
	}
	b.pending = Delta{}
	b.compiler.update(ch).finish()
	tree := b.compiler.tree()
	tree.step = s
	b.compiler.base = b.compiler.grown()
	return tree, nil
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
