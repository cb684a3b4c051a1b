package policy

import (
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Compile turns a snapshot into a tree. It fails on policies that the API would
// have refused, naming policy and field; all of them are reported. The result
// depends on the objects only, not on their order.
func Compile(s *Snapshot) (*Tree, error) {
	b := NewBuilder(Scope{Local: s.Local, LocalPodCIDRs: s.LocalPodCIDRs, UnknownPod: s.UnknownPod})
	b.Apply(DeltaOf(s))
	return b.Build()
}

// Check reports what would keep a policy from being compiled, naming the field.
func Check(np *networkingv1.NetworkPolicy) error {
	_, err := parsePolicy(np)
	return err
}

// compiler is the indexes that trees are made from. An update changes them by what
// changed of the objects; what trees share with them is only added to, or copied
// before it is changed.
type compiler struct {
	scope Scope

	refused refusals // policies whose rules are left out

	pods       map[NamespacedName]*Pod
	namespaces map[string]*Namespace
	nodes      map[string]*Node
	policies   map[NamespacedName]*parsedPolicy

	labels    shared[string, labels.Set]   // of the namespaces that have an object
	nodeNames shared[netip.Addr, []string] // addresses that are node traffic → names of their nodes, sorted
	claims    *claims

	words      vocabulary
	keyer      groupKeyer
	meter      *meter
	groups     *groups
	byTarget   map[string][]*parsedPolicy // by namespace, in no order
	peers      map[string]*peer           // by key
	index      *peerIndex                 // of the used ones, except for blocks
	regions    *regions
	classes    *classes
	programs   map[string]*program
	anyNamed   map[*program]struct{}
	rows       *rowWriter
	byRow      []*program // row-firstRow → program
	byRowOwned bool
	outcomes   *outcomeTable
	ranges     podRanges

	addrs     addrTable
	locals    addrSet // held by local pods
	known     addrSet // in LocalPodCIDRs, and held
	endpoints endpointTable
	held      int               // addresses that pods hold
	live      []*parsedPolicy   // by name
	liveOwned bool              // no published tree has live
	audits    int               // programs whose denials are only reported
	denials   map[string]Denial // of namespaces that say it

	nextPeer, nextPolicy, stamp uint32
	base, floor                 int // of stale
}

func newCompiler(s Scope) *compiler {
	m := newMeter(s.Limits)
	c := &compiler{
		scope:      s,
		meter:      m,
		refused:    refusals{},
		pods:       map[NamespacedName]*Pod{},
		namespaces: map[string]*Namespace{},
		nodes:      map[string]*Node{},
		policies:   map[NamespacedName]*parsedPolicy{},
		claims:     newClaims(),
		words:      newVocabulary(),
		groups:     newGroups(m),
		byTarget:   map[string][]*parsedPolicy{},
		peers:      map[string]*peer{},
		index:      newPeerIndex(m),
		regions:    newRegions(m),
		classes:    newClasses(),
		programs:   map[string]*program{},
		anyNamed:   map[*program]struct{}{},
		rows:       newRowWriter(),
		outcomes:   newOutcomeTable(s.UnknownPod),
		ranges:     newPodRanges(s.LocalPodCIDRs, nil),
		floor:      garbageFloor,
	}
	c.keyer.words = c.words
	if c.scope.Local == nil {
		c.scope.Local = func(*Pod) bool { return true }
	}
	return c
}

// objects lists all there are.
func (c *compiler) objects() *Delta {
	d := &Delta{All: true, Namespaces: c.namespaces, Pods: c.pods, Nodes: c.nodes, Policies: map[NamespacedName]*networkingv1.NetworkPolicy{}}
	for name, p := range c.policies {
		d.Policies[name] = p.object
	}
	return d
}

// tree makes what there is now a tree. From here on everything in it is shared.
func (c *compiler) tree() *Tree {
	t := &Tree{
		addrs:      c.addrs,
		endpoints:  c.endpoints.published(),
		rows:       c.rows.published(),
		outcomes:   c.outcomes.all,
		regions:    c.regions.table,
		nodes:      c.nodeNames.published(),
		ranges:     c.ranges,
		policies:   c.live,
		known:      c.known,
		namespaces: c.labels.published(),
		programs:   c.byRow,
		classes:    c.classes.hashes,
		locals:     c.locals,
		conflicts:  c.claims.conflicts(),
		audits:     c.audits > 0,
		denials:    c.denials,
		self:       new(lineage),
	}
	t.stats = Stats{
		Policies:  len(c.live),
		Addresses: c.held + len(t.nodes),
		Classes:   c.classes.present,
		Programs:  len(c.programs),
	}
	c.addrs.published()
	c.locals.published()
	c.known.published()
	c.regions.owned, c.classes.owned, c.byRowOwned, c.liveOwned = false, false, false, false
	return t
}

// grown is how much there is of the tables that nothing is ever taken out of.
func (c *compiler) grown() int {
	return len(c.classes.all) + len(c.rows.ports.spans) + len(c.outcomes.all) + len(c.classes.ports)
}

// garbageFloor is how much of that is not worth looking at.
const garbageFloor = 1 << 14

// stale reports whether so much of the tables may be garbage that compiling from
// scratch is due: what was given up is not counted, so growth since the first update
// (base) stands for it.
func (c *compiler) stale() bool { return c.grown() > 2*c.base+c.floor }
