package policy

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
)

// endpoint is what an address is to the tree. Addresses of pods that no policy
// tells apart share one.
type endpoint struct {
	class uint32    // as a peer of the other end
	row   [2]uint32 // by Direction: what judges it; below firstRow a fixed outcome
}

// addrTable is a hash table from held address to the number of its endpoint,
// made for one cache miss per look-up: open addressing, linear probing, slots as
// small as they can be. It is cut into shards so that a pod that comes or goes
// copies one shard: a published table is a copy of the shards' headers. The
// unspecified addresses 0.0.0.0 and :: mark free slots; they are nobody's.
type addrTable struct {
	v4 [shardCount]shard4
	v6 [shardCount]shard6
}

const (
	shardBits  = 8
	shardCount = 1 << shardBits
	minSlots   = 4
)

// shard4 has a power of two of slots, at least half of them free.
type shard4 struct {
	slots   []slot4
	holders []*holding // beside slots; nil for a node's address
	used    int
	owned   bool // no published table has these slots
}

type slot4 struct {
	addr uint32 // big-endian value of the address
	ep   uint32
}

type shard6 struct {
	slots   []slot6
	holders []*holding
	used    int
	owned   bool
}

type slot6 struct {
	hi, lo uint64 // big-endian halves of the address
	ep     uint32
}

func hash4(a uint32) uint64 {
	return bits.ReverseBytes64(uint64(a) * 0x9e3779b97f4a7c15)
}

func hash6(hi, lo uint64) uint64 {
	h, l := bits.Mul64(hi^0x9e3779b97f4a7c15, lo^0xd1b54a32d192ed03)
	return h ^ l
}

func key4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func key6(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

func addr4(k uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], k)
	return netip.AddrFrom4(b)
}

func addr6(hi, lo uint64) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return netip.AddrFrom16(b)
}

// endpoint returns the number of the endpoint of an address.
func (t *addrTable) endpoint(a netip.Addr) (ep uint32, ok bool) {
	if a.Is4() {
		k := key4(a)
		h := hash4(k)
		return t.v4[h%shardCount].endpoint(k, h>>shardBits)
	}
	hi, lo := key6(a)
	sh := &t.v6[hash6(hi, lo)%shardCount]
	i, ok := sh.find(hi, lo)
	if !ok {
		return 0, false
	}
	return sh.slots[i].ep, true
}

// holder says who holds an address, or nil.
func (t *addrTable) holder(a netip.Addr) *holding {
	if a.Is4() {
		k := key4(a)
		sh := &t.v4[hash4(k)%shardCount]
		if i, ok := sh.find(k); ok {
			return sh.holders[i]
		}
		return nil
	}
	hi, lo := key6(a)
	sh := &t.v6[hash6(hi, lo)%shardCount]
	if i, ok := sh.find(hi, lo); ok {
		return sh.holders[i]
	}
	return nil
}

// put enters an address, or changes its entry.
func (t *addrTable) put(a netip.Addr, ep uint32, h *holding) {
	if a.IsUnspecified() {
		return
	}
	if a.Is4() {
		k := key4(a)
		t.v4[hash4(k)%shardCount].put(k, ep, h)
		return
	}
	hi, lo := key6(a)
	t.v6[hash6(hi, lo)%shardCount].put(hi, lo, ep, h)
}

// remove takes an address out, if it is there.
func (t *addrTable) remove(a netip.Addr) {
	if a.Is4() {
		k := key4(a)
		t.v4[hash4(k)%shardCount].remove(k)
		return
	}
	hi, lo := key6(a)
	t.v6[hash6(hi, lo)%shardCount].remove(hi, lo)
}

// published makes every shard shared: the next change of each copies it.
func (t *addrTable) published() {
	for i := range t.v4 {
		t.v4[i].owned = false
	}
	for i := range t.v6 {
		t.v6[i].owned = false
	}
}

// all lists every address with its endpoint's number and its holder, in no order.
func (t *addrTable) all() iter.Seq2[netip.Addr, *holding] {
	return func(yield func(netip.Addr, *holding) bool) {
		for i := range t.v4 {
			for j, sl := range t.v4[i].slots {
				if sl.addr != 0 && !yield(addr4(sl.addr), t.v4[i].holders[j]) {
					return
				}
			}
		}
		for i := range t.v6 {
			for j, sl := range t.v6[i].slots {
				if sl.hi|sl.lo != 0 && !yield(addr6(sl.hi, sl.lo), t.v6[i].holders[j]) {
					return
				}
			}
		}
	}
}

// within calls visit with the holders of the addresses in a prefix.
func (t *addrTable) within(p netip.Prefix, visit func(*holding)) {
	if p.Addr().Is4() {
		low, mask := key4(p.Addr()), ^uint32(0)<<(32-p.Bits())
		for i := range t.v4 {
			for j, sl := range t.v4[i].slots {
				if sl.addr&mask == low && sl.addr != 0 && t.v4[i].holders[j] != nil {
					visit(t.v4[i].holders[j])
				}
			}
		}
		return
	}
	for i := range t.v6 {
		for j, sl := range t.v6[i].slots {
			if sl.hi|sl.lo != 0 && t.v6[i].holders[j] != nil && p.Contains(addr6(sl.hi, sl.lo)) {
				visit(t.v6[i].holders[j])
			}
		}
	}
}

// endpoint is find for the packet path, from the slot that the hash names on.
func (s *shard4) endpoint(k uint32, from uint64) (ep uint32, ok bool) {
	slots := s.slots
	if len(slots) == 0 {
		return 0, false
	}
	mask := uint64(len(slots) - 1)
	for i := from & mask; ; i = (i + 1) & mask {
		switch slots[i].addr {
		case 0: // first: k may be 0.0.0.0, which nobody holds
			return 0, false
		case k:
			return slots[i].ep, true
		}
	}
}

// find returns the slot of a key, or the free slot where it would go.
func (s *shard4) find(k uint32) (at uint64, ok bool) {
	if len(s.slots) == 0 || k == 0 {
		return 0, false
	}
	mask := uint64(len(s.slots) - 1)
	at = hash4(k) >> shardBits & mask
	for s.slots[at].addr != k && s.slots[at].addr != 0 {
		at = (at + 1) & mask
	}
	return at, s.slots[at].addr == k
}

func (s *shard6) find(hi, lo uint64) (at uint64, ok bool) {
	if len(s.slots) == 0 || hi|lo == 0 {
		return 0, false
	}
	mask := uint64(len(s.slots) - 1)
	at = hash6(hi, lo) >> shardBits & mask
	for {
		sl := &s.slots[at]
		if sl.hi == hi && sl.lo == lo {
			return at, true
		}
		if sl.hi|sl.lo == 0 {
			return at, false
		}
		at = (at + 1) & mask
	}
}

func (s *shard4) own() {
	if !s.owned {
		s.slots, s.holders, s.owned = slices.Clone(s.slots), slices.Clone(s.holders), true
	}
}

func (s *shard6) own() {
	if !s.owned {
		s.slots, s.holders, s.owned = slices.Clone(s.slots), slices.Clone(s.holders), true
	}
}

func (s *shard4) put(k, ep uint32, h *holding) {
	at, known := s.find(k)
	if !known && full(s.used, len(s.slots)) {
		s.resize(max(minSlots, 2*len(s.slots)))
		at, _ = s.find(k)
	}
	s.own()
	s.slots[at], s.holders[at] = slot4{k, ep}, h
	if !known {
		s.used++
	}
}

func (s *shard6) put(hi, lo uint64, ep uint32, h *holding) {
	at, known := s.find(hi, lo)
	if !known && full(s.used, len(s.slots)) {
		s.resize(max(minSlots, 2*len(s.slots)))
		at, _ = s.find(hi, lo)
	}
	s.own()
	s.slots[at], s.holders[at] = slot6{hi, lo, ep}, h
	if !known {
		s.used++
	}
}

func (s *shard4) resize(n int) {
	old := *s
	*s = shard4{slots: make([]slot4, n), holders: make([]*holding, n), owned: true}
	for i, sl := range old.slots {
		if sl.addr != 0 {
			s.put(sl.addr, sl.ep, old.holders[i])
		}
	}
}

func (s *shard6) resize(n int) {
	old := *s
	*s = shard6{slots: make([]slot6, n), holders: make([]*holding, n), owned: true}
	for i, sl := range old.slots {
		if sl.hi|sl.lo != 0 {
			s.put(sl.hi, sl.lo, sl.ep, old.holders[i])
		}
	}
}

// remove closes the gap (Knuth, The Art of Computer Programming, 6.4 algorithm R),
// so that no look-up ever has to pass a deleted slot.
func (s *shard4) remove(k uint32) {
	gap, known := s.find(k)
	if !known {
		return
	}
	s.own()
	mask := uint64(len(s.slots) - 1)
	for i := (gap + 1) & mask; s.slots[i].addr != 0; i = (i + 1) & mask {
		home := hash4(s.slots[i].addr) >> shardBits & mask
		if (i-home)&mask >= (i-gap)&mask {
			s.slots[gap], s.holders[gap] = s.slots[i], s.holders[i]
			gap = i
		}
	}
	s.slots[gap], s.holders[gap] = slot4{}, nil
	s.used--
	if sparse(s.used, len(s.slots)) {
		s.resize(len(s.slots) / 2)
	}
}

func (s *shard6) remove(hi, lo uint64) {
	gap, known := s.find(hi, lo)
	if !known {
		return
	}
	s.own()
	mask := uint64(len(s.slots) - 1)
	for i := (gap + 1) & mask; s.slots[i].hi|s.slots[i].lo != 0; i = (i + 1) & mask {
		home := hash6(s.slots[i].hi, s.slots[i].lo) >> shardBits & mask
		if (i-home)&mask >= (i-gap)&mask {
			s.slots[gap], s.holders[gap] = s.slots[i], s.holders[i]
			gap = i
		}
	}
	s.slots[gap], s.holders[gap] = slot6{}, nil
	s.used--
	if sparse(s.used, len(s.slots)) {
		s.resize(len(s.slots) / 2)
	}
}

// full keeps half of the slots free: most probes then end where they begin, which
// a CPU predicts well, and that is worth more here than a smaller table.
func full(used, slots int) bool { return 2*(used+1) > slots }

// sparse is far from full, so that an address that comes and goes resizes nothing.
func sparse(used, slots int) bool { return slots > minSlots && 8*used < slots }
