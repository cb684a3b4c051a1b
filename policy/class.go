package policy

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"
)

// Classes are the heart of the tree. Two addresses are of one class when no
// peer of any compiled policy tells them apart: the pods behind them are in the
// same groups' peers, the addresses in the same blocks, the named ports equal.
// A rule then matches a class or not, and a decision needs no labels any more.
//
// Classes are numbered so that neighbours behave alike: those of one compilation
// by namespace, later ones as they come. A number keeps its meaning for the rows
// that know it: when a new peer selects all of a class, the class stays what it
// is; when it selects a part, that part becomes a class of its own.
// pageSize classes share a page of a row.
const (
	pageSize  = 32 // at most 64, the bits of a mask
	wholePage = 1<<pageSize - 1
)

// pageMask says which classes of one page are meant; bit i is class page*pageSize+i.
type pageMask struct {
	page uint32
	mask uint64
}

// class is the compiler's: trees know its number and hash.
type class struct {
	id    uint32
	key   string
	peers []*peer // that contain it, by id
	ports *portSet
	atoms []*atom // none: it is kept for when its like comes again
	was   []*peer // peers in the last tree, if this update changed them
}

// atom is the addresses that are of one class whatever the policies are: of one
// group in one region, or (group nil) of nobody in one region.
type atom struct {
	group  *group
	region *region
	class  *class
	at     int       // in class.atoms
	ends   [2]uint32 // endpoints: of remote and of local pods; or of nobody and of nodes
	held   []*holding

	changed bool // its class is to be found anew
	dropped bool // it has no addresses, and no class any more
}

const noEnd = ^uint32(0)

// portSet is a list of named ports that pods have, sorted.
type portSet struct {
	ports    []ContainerPort
	id       uint32 // 0: none
	pages    []pageMask
	notEmpty bool
}

// classes numbers them.
type classes struct {
	all     []*class // by number; nil: dead for good
	byKey   map[string]*class
	hashes  []uint64 // by number, for Compare
	owned   bool     // no published tree has hashes
	present int      // with atoms

	ports   []*portSet // by id
	portsBy map[string]*portSet
}

func newClasses() *classes {
	c := &classes{byKey: map[string]*class{}, portsBy: map[string]*portSet{}, owned: true}
	c.portSet(nil)
	return c
}

// portSet interns named ports, which must be sorted.
func (c *classes) portSet(ports []ContainerPort) *portSet {
	key := string(portsKey(nil, ports))
	s := c.portsBy[key]
	if s == nil {
		s = &portSet{ports: ports, id: uint32(len(c.ports)), notEmpty: len(ports) > 0}
		c.ports = append(c.ports, s)
		c.portsBy[key] = s
	}
	return s
}

func portsKey(b []byte, ports []ContainerPort) []byte {
	for _, p := range ports {
		b = append(append(b, p.Name...), 0, byte(p.Protocol), byte(p.Port>>8), byte(p.Port))
	}
	return b
}

// peers of an atom are those that contain its addresses, by id.
func (a *atom) peers() []*peer {
	blocks := a.region.blocks
	if a.group == nil || len(a.group.selected) == 0 {
		return blocks
	}
	if len(blocks) == 0 {
		return a.group.selected
	}
	all := slices.Concat(a.group.selected, blocks)
	slices.SortFunc(all, comparePeers)
	return all
}

func (c *classes) portsOf(a *atom) *portSet {
	if a.group == nil {
		return c.ports[0]
	}
	return a.group.ports
}

func classKey(b []byte, peers []*peer, ports *portSet) []byte {
	return binary.LittleEndian.AppendUint32(peersKey(b, peers), ports.id)
}

// add makes a new class and enters it into the peers that contain it.
func (c *classes) add(key string, peers []*peer, ports *portSet) *class {
	cl := &class{id: uint32(len(c.all)), key: key, peers: slices.Clone(peers), ports: ports}
	c.all = append(c.all, cl)
	c.byKey[key] = cl
	c.hashes = append(c.hashes, classHash(peers, ports))
	for _, p := range peers {
		p.pages = setBit(p.pages, cl.id)
	}
	if ports.notEmpty {
		ports.pages = setBit(ports.pages, cl.id)
	}
	return cl
}

// rename gives a class other peers; its number stays.
func (c *classes) rename(cl *class, key string, peers []*peer) {
	if c.byKey[cl.key] == cl {
		delete(c.byKey, cl.key)
	}
	if cl.was == nil {
		cl.was = cl.peers
		if cl.was == nil {
			cl.was = []*peer{}
		}
	}
	lost, gained := difference(cl.peers, peers)
	for _, p := range lost {
		p.pages = clearBit(p.pages, cl.id)
	}
	for _, p := range gained {
		p.pages = setBit(p.pages, cl.id)
	}
	cl.key, cl.peers = key, slices.Clone(peers)
	c.byKey[key] = cl
	if !c.owned {
		c.hashes, c.owned = slices.Clone(c.hashes), true
	}
	c.hashes[cl.id] = classHash(peers, cl.ports)
}

// forget ends a class that has no atoms: its number is never used again.
func (c *classes) forget(cl *class) {
	for _, p := range cl.peers {
		p.pages = clearBit(p.pages, cl.id)
	}
	cl.ports.pages = clearBit(cl.ports.pages, cl.id)
	if c.byKey[cl.key] == cl {
		delete(c.byKey, cl.key)
	}
	c.all[cl.id] = nil
}

// join makes an atom one of a class, or of none (nil).
func (c *classes) join(a *atom, cl *class) {
	if old := a.class; old != nil {
		last := len(old.atoms) - 1
		old.atoms[a.at] = old.atoms[last]
		old.atoms[a.at].at = a.at
		old.atoms[last] = nil
		old.atoms = old.atoms[:last]
		if last == 0 {
			c.present--
		}
	}
	if a.class = cl; cl == nil {
		return
	}
	if len(cl.atoms) == 0 {
		c.present++
	}
	a.at = len(cl.atoms)
	cl.atoms = append(cl.atoms, a)
}

// classHash says which peers contain a class and which named ports it has: equal
// hashes mean that equal rules see two classes alike.
func classHash(peers []*peer, ports *portSet) uint64 {
	sum := maphash.Bytes(fingerprintSeed, portsKey(nil, ports.ports))
	for _, p := range peers {
		sum += p.hash
	}
	return sum
}

// difference of two lists of peers by id.
func difference(old, now []*peer) (lost, gained []*peer) {
	for len(old) > 0 || len(now) > 0 {
		switch {
		case len(now) == 0 || len(old) > 0 && old[0].id < now[0].id:
			lost, old = append(lost, old[0]), old[1:]
		case len(old) == 0 || now[0].id < old[0].id:
			gained, now = append(gained, now[0]), now[1:]
		default:
			old, now = old[1:], now[1:]
		}
	}
	return lost, gained
}

func comparePages(m pageMask, page uint32) int { return cmp.Compare(m.page, page) }

func setBit(pages []pageMask, class uint32) []pageMask {
	page, bit := class/pageSize, uint64(1)<<(class%pageSize)
	at, known := len(pages), false
	switch n := len(pages); {
	case n > 0 && pages[n-1].page == page: // the usual case: the newest class
		at, known = n-1, true
	case n > 0 && pages[n-1].page > page:
		at, known = slices.BinarySearchFunc(pages, page, comparePages)
	}
	if known {
		pages[at].mask |= bit
		return pages
	}
	return slices.Insert(pages, at, pageMask{page, bit})
}

func clearBit(pages []pageMask, class uint32) []pageMask {
	at, known := slices.BinarySearchFunc(pages, class/pageSize, comparePages)
	if !known {
		return pages
	}
	if pages[at].mask &^= uint64(1) << (class % pageSize); pages[at].mask == 0 {
		return slices.Delete(pages, at, at+1)
	}
	return pages
}
