package policy

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
)

// Classes are the heart of the tree. Two addresses are of one class when no
// peer of any compiled policy tells them apart: the pods behind them are in the
// same groups' peers, the addresses in the same blocks, the named ports equal.
// A rule then matches a class or not, and a decision needs no labels any more.
//
// Classes are numbered so that neighbours behave alike: one class per region
// for addresses that no pod holds, then, from a page boundary on, the pods'
// classes by namespace. pageSize classes share a page of a row.
const (
	pageSize   = 32 // at most 64, the bits of a mask
	blockPages = 64 // pages that one block of a row spans
	wholePage  = 1<<pageSize - 1
)

// pageMask says which classes of one page are meant; bit i is class page*pageSize+i.
type pageMask struct {
	page uint32
	mask uint64
}

type classes struct {
	count   uint32
	regions *regions
	// ports[c] is the named-port signature of class c: 0 for no named ports, else
	// an index into signatures and its pages.
	ports     []uint32
	sigs      [][]ContainerPort
	sigPages  [][]pageMask
	holdings  []holding // sorted by group, then address
	ofHolding []uint32  // class of each holding
	groupOf   []uint32  // group of each holding
}

// newClasses assigns every held address its class and fills peers[].pages.
func newClasses(g *groups, selected [][]uint32, r *regions, peers []peer, held []holding, groupOf []uint32) *classes {
	c := &classes{regions: r, sigs: [][]ContainerPort{nil}}
	c.sort(held, groupOf)
	for region := range r.blocks {
		c.add(peers, nil, r.blocks[region], 0)
	}
	c.padToPage()
	sigs := groupSignatures(g, selected)
	portSigs := c.internPorts(g)
	type kind struct{ sig, region uint32 }
	known := map[kind]uint32{}
	for i, h := range c.holdings {
		k := kind{sigs[c.groupOf[i]], r.of(h.addr)}
		class, ok := known[k]
		if !ok {
			class = c.add(peers, selected[c.groupOf[i]], r.blocks[k.region], portSigs[c.groupOf[i]])
			known[k] = class
		}
		c.ofHolding = append(c.ofHolding, class)
	}
	c.padToPage()
	c.collectSigPages()
	return c
}

// sort orders the holdings by group and address, so that class numbers depend
// on the objects only.
func (c *classes) sort(held []holding, groupOf []uint32) {
	order := make([]int, len(held))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(groupOf[a], groupOf[b]), held[a].addr.Compare(held[b].addr))
	})
	c.holdings = make([]holding, len(held))
	c.groupOf = make([]uint32, len(held))
	for i, from := range order {
		c.holdings[i], c.groupOf[i] = held[from], groupOf[from]
	}
}

// add makes the next class and enters it into the peers that contain it.
func (c *classes) add(peers []peer, byLabels, byAddress []uint32, portSig uint32) uint32 {
	id := c.count
	c.count++
	c.ports = append(c.ports, portSig)
	for _, list := range [...][]uint32{byLabels, byAddress} {
		for _, p := range list {
			peers[p].pages = addClass(peers[p].pages, id)
		}
	}
	return id
}

// addClass sets the bit of a class that is greater than all before.
func addClass(pages []pageMask, class uint32) []pageMask {
	page, bit := class/pageSize, uint64(1)<<(class%pageSize)
	if n := len(pages); n > 0 && pages[n-1].page == page {
		pages[n-1].mask |= bit
		return pages
	}
	return append(pages, pageMask{page, bit})
}

func (c *classes) padToPage() {
	for c.count%pageSize != 0 {
		c.count++
		c.ports = append(c.ports, 0)
	}
}

// groupSignatures numbers the groups so that groups selected by the same peers
// and with the same named ports have one number.
func groupSignatures(g *groups, selected [][]uint32) []uint32 {
	known := map[string]uint32{}
	out := make([]uint32, len(g.all))
	var key []byte
	for id := range g.all {
		key = portsKey(idsKey(key[:0], selected[id]), g.all[id].ports)
		sig, ok := known[string(key)]
		if !ok {
			sig = uint32(len(known))
			known[string(key)] = sig
		}
		out[id] = sig
	}
	return out
}

// portsKey appends the ports after a separator that no peer number equals.
func portsKey(b []byte, ports []ContainerPort) []byte {
	b = binary.LittleEndian.AppendUint32(b, localRange)
	for _, p := range ports {
		b = append(append(b, p.Name...), 0, byte(p.Protocol), byte(p.Port>>8), byte(p.Port))
	}
	return b
}

func (c *classes) internPorts(g *groups) []uint32 {
	known := map[string]uint32{string(portsKey(nil, nil)): 0}
	out := make([]uint32, len(g.all))
	for id := range g.all {
		key := string(portsKey(nil, g.all[id].ports))
		sig, ok := known[key]
		if !ok {
			sig = uint32(len(c.sigs))
			known[key] = sig
			c.sigs = append(c.sigs, g.all[id].ports)
		}
		out[id] = sig
	}
	return out
}

func (c *classes) collectSigPages() {
	c.sigPages = make([][]pageMask, len(c.sigs))
	for class, sig := range c.ports {
		if sig != 0 {
			c.sigPages[sig] = addClass(c.sigPages[sig], uint32(class))
		}
	}
}

// pages is the number of pages of a row.
func (c *classes) pages() uint32 { return c.count / pageSize }

// contains reports whether a peer contains a class.
func (p *peer) contains(class uint32) bool {
	i, ok := slices.BinarySearchFunc(p.pages, class/pageSize, func(m pageMask, page uint32) int { return cmp.Compare(m.page, page) })
	return ok && p.pages[i].mask>>(class%pageSize)&1 == 1
}

// selectGroups lists, for every group, the used peers that select it by labels,
// ascending.
func selectGroups(g *groups, peers []peer, used []bool) [][]uint32 {
	selected := make([][]uint32, len(g.all))
	for id := range peers {
		if !used[id] || peers[id].block != nil {
			continue
		}
		for _, gr := range peers[id].groups(g) {
			selected[gr] = append(selected[gr], uint32(id))
		}
	}
	return selected
}

func (p *peer) groups(g *groups) []uint32 {
	if p.namespaces != nil {
		return g.inNamespaces(p.namespaces, p.pods)
	}
	return g.inNamespace(p.namespace, p.pods)
}

// holdingsOf lists who holds what, in no order: newClasses makes one.
func holdingsOf(held map[netip.Addr]*Pod) []holding {
	list := make([]holding, 0, len(held))
	for a, p := range held {
		list = append(list, holding{a, p})
	}
	return list
}
