package policy

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// edited is what became of one object; old or now is nil, but not both.
type edited[T any] struct{ old, now *T }

// changes are a Delta without what is the same as before, and with its policies
// parsed.
type changes struct {
	pods       []edited[Pod]
	namespaces []edited[Namespace]
	nodes      []edited[Node]
	policies   []edited[parsedPolicy]
}

func (ch *changes) empty() bool {
	return len(ch.pods)+len(ch.namespaces)+len(ch.nodes)+len(ch.policies) == 0
}

// read finds out what a delta changes. It fails on policies that do not parse, and
// changes nothing.
func (c *compiler) read(d *Delta) (*changes, error) {
	ch := &changes{
		pods:       compare(c.pods, d.Pods, d.All, samePod),
		namespaces: compare(c.namespaces, d.Namespaces, d.All, sameNamespace),
		nodes:      compare(c.nodes, d.Nodes, d.All, sameNode),
	}
	objects := map[NamespacedName]*networkingv1.NetworkPolicy{}
	if d.All {
		objects = c.objects().Policies
	}
	for name := range d.Policies {
		if p := c.policies[name]; p != nil {
			objects[name] = p.object
		}
	}
	list := compare(objects, d.Policies, d.All, samePolicy)
	slices.SortFunc(list, func(a, b edited[networkingv1.NetworkPolicy]) int { return policyName(a).Compare(policyName(b)) })
	var errs []error
	for _, e := range list {
		var parsed *parsedPolicy
		if e.now != nil {
			var err error
			if parsed, err = parsePolicy(e.now); err != nil {
				errs = append(errs, err)
				continue
			}
			if why := c.refused[policyName(e)]; why != "" {
				parsed.leaveOut(why)
			}
		}
		ch.policies = append(ch.policies, edited[parsedPolicy]{c.policies[policyName(e)], parsed})
	}
	return ch, errors.Join(errs...)
}

func policyName(e edited[networkingv1.NetworkPolicy]) NamespacedName {
	p := cmp.Or(e.now, e.old)
	return NamespacedName{p.Namespace, p.Name}
}

// compare lists what differs; all says that objects which are not listed are gone.
func compare[K comparable, T any](before map[K]*T, delta map[K]*T, all bool, same func(a, b *T) bool) (list []edited[T]) {
	for k, now := range delta {
		old := before[k]
		if old == now || old != nil && now != nil && same(old, now) {
			continue
		}
		list = append(list, edited[T]{old, now})
	}
	if all {
		for k, old := range before {
			if delta[k] == nil {
				list = append(list, edited[T]{old, nil})
			}
		}
	}
	return list
}

func samePod(a, b *Pod) bool {
	return a.NodeName == b.NodeName && a.HostNetwork == b.HostNetwork && a.Phase == b.Phase && a.Workload == b.Workload &&
		a.Created.Equal(b.Created) && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.HostAddrs, b.HostAddrs) &&
		slices.Equal(a.Ports, b.Ports) && maps.Equal(a.Labels, b.Labels)
}

func sameNamespace(a, b *Namespace) bool {
	return a.manner() == b.manner() && maps.Equal(a.Labels, b.Labels)
}

func sameNode(a, b *Node) bool {
	return slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.PodCIDRs, b.PodCIDRs)
}

func samePolicy(a, b *networkingv1.NetworkPolicy) bool { return reflect.DeepEqual(&a.Spec, &b.Spec) }

// update carries one change of the objects through the indexes:
//
//	namespaces ─┐
//	nodes ──────┼─▶ claims ─▶ touched addresses ─▶ groups ──┐ which of them have local pods
//	pods ───────┘                 ▲                         ▼
//	policies ─▶ vocabulary ───────┘          targets ─▶ live policies ─▶ used peers
//	                                                                      │      │
//	                        atoms (group × region) ◀─ regions ◀─ blocks ──┘      │
//	                             │                                               │
//	                             └──────▶ classes ◀──────── selected groups ─────┘
//	                                         │
//	                    programs ─▶ rows ◀───┘ ─▶ endpoints ─▶ addresses
//
// Every stage works on what the stages before it have changed, so an update costs
// what it changes; from nothing, it is a whole compilation.
type update struct {
	*compiler
	touched []touch
	seen    map[netip.Addr]struct{}
	placed  []placing
	moved   []*holding // into another atom without being touched

	regrouped []*group // whose addresses changed
	newGroups []*group
	rejudged  []*group
	counted   []*parsedPolicy // whose local changed
	relisted  []*peer         // whose listed went down
	reused    []*peer         // whose users changed
	born      []*peer
	dead      []*peer
	renamed   []string // namespaces with other labels
	roots     []netip.Prefix
	recut     []netip.Prefix

	atoms      []*atom // to be classified
	emptied    []*atom
	refresh    []*atom // whose endpoints are to be set
	newClasses []*class
	changedIDs []*class
	forgotten  map[uint32]*class // ended by this update
	fresh      []*program
	released   []*program
	rowMoves   []rowMove
	atomMoves  []atomMove
	compacted  bool
}

// touch is an address that may have changed hands, and who held it.
type touch struct {
	addr netip.Addr
	was  *holding
}

type placing struct {
	holding *holding
	group   *group
}

// rowMove says that a group is judged by another row than in the last tree.
type rowMove struct {
	group     *group
	direction Direction
	old, now  uint32
}

// atomMove says that an atom was of another class, or its class of other peers.
type atomMove struct {
	atom *atom
	old  uint32
}

func (c *compiler) update(ch *changes) *update {
	u := &update{compiler: c, seen: map[netip.Addr]struct{}{}, forgotten: map[uint32]*class{}}
	u.begin()
	u.takeNamespaces(ch.namespaces)
	u.takeNodes(ch.nodes)
	u.takePods(ch.pods)
	u.retire(ch.policies)
	u.learn(ch.policies)
	u.place()
	u.admit(ch.policies)
	u.settlePeers()
	u.cut()
	u.settleAtoms()
	u.classify()
	u.judge()
	u.fillRows()
	u.enter()
	return u
}

// begin makes the world on the first update: the addresses in no block and of no pod.
func (u *update) begin() {
	if u.regions.world != nil {
		return
	}
	world := &region{prefixes: 1}
	u.regions.world, u.regions.byKey[""] = world, world
	u.regions.byEnd[u.outside(world)] = world
	for _, p := range u.scope.LocalPodCIDRs {
		u.regions.edge(p.Masked()).local = true
		u.roots = append(u.roots, p.Masked())
	}
}

// outside makes the atom of a region's addresses that nobody holds.
func (u *update) outside(r *region) uint32 {
	r.outside = &atom{region: r, ends: [2]uint32{u.endpoints.add(), noEnd}}
	u.change(r.outside)
	return r.outside.ends[0]
}

func (u *update) touch(a netip.Addr) {
	if _, known := u.seen[a]; !known {
		u.seen[a] = struct{}{}
		u.touched = append(u.touched, touch{a, u.addrs.holder(a)})
	}
}

func (u *update) takeNamespaces(list []edited[Namespace]) {
	for _, e := range list {
		var set [2]labels.Set
		for i, n := range [...]*Namespace{e.old, e.now} {
			if n == nil {
				continue
			}
			set[i] = maps.Clone(n.Labels)
			if set[i] == nil {
				set[i] = labels.Set{}
			}
			set[i][corev1.LabelMetadataName] = n.Name
		}
		name := cmp.Or(e.old, e.now).Name
		if e.now == nil {
			delete(u.namespaces, name)
			u.labels.remove(name)
		} else {
			u.namespaces[name] = e.now
			u.labels.set(name, set[1])
		}
		u.renamed = append(u.renamed, name)
		u.denies(name, e.old.manner().denial, e.now.manner().denial)
		if e.old.manner() != e.now.manner() {
			for _, g := range u.groups.byNamespace[name] {
				u.rejudge(g)
			}
		}
	}
}

// denies takes note of how a namespace denies. Published trees share the map.
func (u *update) denies(namespace string, was, is Denial) {
	if was == is {
		return
	}
	u.denials = maps.Clone(u.denials)
	if is == DenialUnset {
		delete(u.denials, namespace)
		return
	}
	if u.denials == nil {
		u.denials = map[string]Denial{}
	}
	u.denials[namespace] = is
}

// namespaceLabels are those of an object, or what every namespace has (KEP-2161).
func namespaceLabels(known map[string]labels.Set, name string) labels.Set {
	if set, ok := known[name]; ok {
		return set
	}
	return labels.Set{corev1.LabelMetadataName: name}
}

func (u *update) takeNodes(list []edited[Node]) {
	for _, e := range list {
		if e.now != nil {
			u.nodes[e.now.Name] = e.now
			for _, a := range e.now.Addrs {
				u.claimNode(a, e.now.Name, 1)
			}
		}
		if e.old != nil {
			for _, a := range e.old.Addrs {
				u.claimNode(a, e.old.Name, -1)
			}
			if e.now == nil {
				delete(u.nodes, e.old.Name)
			}
		}
	}
	if len(list) > 0 {
		u.ranges = newPodRanges(u.scope.LocalPodCIDRs, u.nodes)
	}
}

func (u *update) claimNode(a netip.Addr, name string, n int) {
	c := u.claims.nodes[a]
	if c == nil {
		c = &nodeClaims{}
		u.claims.nodes[a] = c
	}
	if !c.add(name, n) {
		return
	}
	u.touch(a)
	if len(c.names) == 0 {
		delete(u.claims.nodes, a)
		u.nodeNames.remove(a)
		return
	}
	u.nodeNames.set(a, c.names)
}

func (u *update) takePods(list []edited[Pod]) {
	for _, e := range list {
		if e.now != nil {
			nodeAddrs(e.now, func(a netip.Addr, node string) { u.claimNode(a, node, 1) })
			u.pods[e.now.NamespacedName] = e.now
		} else {
			delete(u.pods, e.old.NamespacedName)
		}
		nodeAddrs(e.old, func(a netip.Addr, node string) { u.claimNode(a, node, -1) })
		eachOnce(podAddrs(e.old), func(a netip.Addr) {
			u.touch(a)
			u.hold(a, u.claims.unclaim(a, e.old, u.holderPod(a)))
		})
		eachOnce(podAddrs(e.now), func(a netip.Addr) {
			u.touch(a)
			u.hold(a, u.claims.claim(a, e.now, u.holderPod(a)))
		})
	}
}

// eachOnce skips what nobody can hold, and repetitions.
func eachOnce(addrs []netip.Addr, visit func(netip.Addr)) {
	for i, a := range addrs {
		if !a.IsUnspecified() && !slices.Contains(addrs[:i], a) {
			visit(a)
		}
	}
}

func (u *update) holderPod(a netip.Addr) *Pod {
	if h := u.addrs.holder(a); h != nil {
		return h.pod
	}
	return nil
}

// hold gives an address to a pod or to nobody; its endpoint follows in enter.
func (u *update) hold(a netip.Addr, p *Pod) {
	switch h := u.addrs.holder(a); {
	case p == nil && h != nil:
		u.addrs.put(a, 0, nil)
		u.held--
	case p != nil && h == nil:
		u.addrs.put(a, 0, &holding{addr: a, pod: p})
		u.held++
	case p != nil && h.pod != p:
		u.addrs.put(a, 0, &holding{addr: a, pod: p})
	}
}

// retire takes out policies that are gone or replaced.
func (u *update) retire(list []edited[parsedPolicy]) {
	for _, e := range list {
		p := e.old
		if p == nil {
			continue
		}
		delete(u.policies, p.ref.NamespacedName)
		dropFrom(u.byTarget, p.ref.Namespace, p)
		for _, g := range u.groups.byNamespace[p.ref.Namespace] {
			at := slices.Index(g.targeting, p)
			if at < 0 {
				continue
			}
			g.targeting = slices.Delete(slices.Clone(g.targeting), at, at+1)
			u.rejudge(g)
			if g.wasLocal {
				u.count(p, -1)
			}
		}
		p.eachPeer(func(q **peer, _ bool) {
			(*q).listed--
			u.relisted = append(u.relisted, *q)
		})
	}
}

// eachPeer calls visit for every peer that a policy lists, and whether it is in a
// direction that the policy isolates.
func (p *parsedPolicy) eachPeer(visit func(p **peer, isolated bool)) {
	for _, d := range Directions {
		for i := range p.rules[d] {
			for j := range p.rules[d][i].peers {
				visit(&p.rules[d][i].peers[j], p.isolates[d])
			}
		}
	}
}

func (u *update) count(p *parsedPolicy, n int) {
	p.local += n
	u.counted = append(u.counted, p)
}

func (u *update) rejudge(g *group) {
	if !g.rejudge {
		g.rejudge = true
		u.rejudged = append(u.rejudged, g)
	}
}

// learn keeps the vocabulary. Pods that have a word which was not there, or is
// there no more, may be of another group.
func (u *update) learn(list []edited[parsedPolicy]) {
	if len(list) == 0 {
		return
	}
	before := vocabulary{maps.Clone(u.words.labelKeys), maps.Clone(u.words.portNames)}
	for _, e := range list {
		if e.now != nil {
			u.words.add(e.now, 1)
		}
		if e.old != nil {
			u.words.add(e.old, -1)
		}
	}
	keys, names := symmetricDifference(before.labelKeys, u.words.labelKeys), symmetricDifference(before.portNames, u.words.portNames)
	if len(keys)+len(names) == 0 || u.held == 0 {
		return
	}
	for a, h := range u.addrs.all() {
		if h != nil && h.pod.mentions(keys, names) {
			u.touch(a)
		}
	}
}

func symmetricDifference(a, b map[string]int) []string {
	var diff []string
	for w := range a {
		if b[w] == 0 {
			diff = append(diff, w)
		}
	}
	for w := range b {
		if a[w] == 0 {
			diff = append(diff, w)
		}
	}
	return diff
}

// mentions reports whether a pod has one of the label keys or named ports.
func (p *Pod) mentions(keys, portNames []string) bool {
	for _, k := range keys {
		if _, ok := p.Labels[k]; ok {
			return true
		}
	}
	return len(portNames) > 0 && slices.ContainsFunc(p.Ports, func(c ContainerPort) bool { return slices.Contains(portNames, c.Name) })
}

// place brings the holders of touched addresses into their groups.
func (u *update) place() {
	for _, t := range u.touched {
		if t.was != nil && t.was.atom != nil {
			u.leave(t.was)
		}
	}
	var last *Pod
	var g *group
	for _, t := range u.touched {
		h := u.addrs.holder(t.addr)
		if h == nil {
			continue
		}
		if h.pod != last {
			last, g = h.pod, u.groupOf(h.pod)
		}
		u.join(h, g)
	}
	for _, g := range u.regrouped {
		u.settleGroup(g)
	}
}

func (u *update) leave(h *holding) {
	g := h.atom.group
	u.touchGroup(g)
	g.held--
	if h.local {
		g.local--
		u.locals.remove(h.addr)
	}
	u.takeFrom(h)
}

// takeFrom takes a holding out of its atom.
func (u *update) takeFrom(h *holding) {
	a := h.atom
	last := len(a.held) - 1
	a.held[h.at] = a.held[last]
	a.held[h.at].at = h.at
	a.held[last] = nil
	a.held = a.held[:last]
	h.atom = nil
	if last == 0 {
		u.emptied = append(u.emptied, a)
	}
}

func (u *update) join(h *holding, g *group) {
	u.touchGroup(g)
	g.held++
	if h.local = u.scope.Local(h.pod); h.local {
		g.local++
		u.locals.add(h.addr)
	}
	u.placed = append(u.placed, placing{h, g})
}

func (u *update) touchGroup(g *group) {
	if !g.touched {
		g.touched = true
		u.regrouped = append(u.regrouped, g)
	}
}

// groupOf finds or makes the group of a pod.
func (u *update) groupOf(p *Pod) *group {
	key := u.keyer.key(p)
	if g := u.groups.byKey[string(key)]; g != nil {
		return g
	}
	g := &group{
		key: string(key), namespace: p.Namespace,
		labels: u.words.knownLabels(p),
		ports:  u.classes.portSet(slices.Clone(u.keyer.ports)),
	}
	u.groups.add(g)
	for _, pol := range u.byTarget[p.Namespace] {
		if pol.target.Matches(g.labels) {
			g.targeting = append(g.targeting, pol)
		}
	}
	slices.SortFunc(g.targeting, byName)
	u.newGroups = append(u.newGroups, g)
	return g
}

func byName(a, b *parsedPolicy) int { return a.ref.Compare(b.ref.NamespacedName) }

// settleGroup follows up on a group whose addresses changed.
func (u *update) settleGroup(g *group) {
	g.touched = false
	if isLocal := g.local > 0; isLocal != g.wasLocal {
		g.wasLocal = isLocal
		n := -1
		if isLocal {
			n = 1
		}
		for _, p := range g.targeting {
			u.count(p, n)
		}
		u.rejudge(g)
	}
	if g.held == 0 {
		u.groups.remove(g)
	}
}

// admit enters new policies and finds out which are live now.
func (u *update) admit(list []edited[parsedPolicy]) {
	for _, e := range list {
		p := e.now
		if p == nil {
			continue
		}
		u.nextPolicy++
		p.id = u.nextPolicy
		u.policies[p.ref.NamespacedName] = p
		u.byTarget[p.ref.Namespace] = append(u.byTarget[p.ref.Namespace], p)
		p.eachPeer(func(q **peer, _ bool) { u.intern(q) })
		for _, g := range u.groups.inNamespace(p.ref.Namespace, p.target) {
			at, _ := slices.BinarySearchFunc(g.targeting, p, byName)
			g.targeting = slices.Insert(slices.Clone(g.targeting), at, p)
			u.rejudge(g)
			if g.wasLocal {
				u.count(p, 1)
			}
		}
	}
	for _, p := range u.counted {
		if live := p.local > 0; live != p.live {
			p.live = live
			u.use(p)
		}
	}
}

// intern makes equal peers one.
func (u *update) intern(q **peer) {
	known := u.peers[(*q).key]
	if known == nil {
		known = *q
		u.nextPeer++
		known.id = u.nextPeer
		known.programs = map[*program]struct{}{}
		u.peers[known.key] = known
	}
	known.listed++
	*q = known
}

// use counts a policy that became live, or is so no more, with its peers.
func (u *update) use(p *parsedPolicy) {
	n := -1
	if p.live {
		n = 1
	}
	u.setLive(p)
	p.eachPeer(func(q **peer, isolated bool) {
		if isolated {
			(*q).users += n
			u.reused = append(u.reused, *q)
		}
	})
}

// setLive keeps the list of live policies.
func (u *update) setLive(p *parsedPolicy) {
	if !u.liveOwned {
		u.live, u.liveOwned = slices.Clone(u.live), true
	}
	at, _ := slices.BinarySearchFunc(u.live, p, byName)
	if p.live {
		u.live = slices.Insert(u.live, at, p)
	} else {
		u.live = slices.Delete(u.live, at, at+1)
	}
}

// finish forgets what only the step to this tree needed.
func (u *update) finish() {
	for _, cl := range u.changedIDs {
		cl.was = nil
	}
}
