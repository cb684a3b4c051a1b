package policy

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// endpoint is what an address is to the tree. Addresses of pods of one class
// and profile share one.
type endpoint struct {
	class uint32    // as a peer of the other end
	row   [2]uint32 // by Direction: what judges it; below firstRow a fixed outcome
}

// addrTable is a hash table from held address to the number of its endpoint,
// made for one cache miss per look-up: open addressing, linear probing, slots as
// small as they can be. It is cut into shards so that a pod that comes or goes
// copies one shard. The unspecified addresses 0.0.0.0 and :: mark free slots;
// they are nobody's.
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
	slots []slot4
	pods  []*Pod // beside slots; nil for a node's address
	used  int
}

type slot4 struct {
	addr uint32 // big-endian value of the address
	ep   uint32
}

type shard6 struct {
	slots []slot6
	pods  []*Pod
	used  int
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

// pod returns the pod that holds an address, or nil.
func (t *addrTable) pod(a netip.Addr) *Pod {
	if a.Is4() {
		k := key4(a)
		sh := &t.v4[hash4(k)%shardCount]
		if i, ok := sh.find(k); ok {
			return sh.pods[i]
		}
		return nil
	}
	hi, lo := key6(a)
	sh := &t.v6[hash6(hi, lo)%shardCount]
	if i, ok := sh.find(hi, lo); ok {
		return sh.pods[i]
	}
	return nil
}

// insert adds an address that is not there yet.
func (t *addrTable) insert(a netip.Addr, ep uint32, p *Pod) {
	if a.IsUnspecified() {
		return
	}
	if a.Is4() {
		k := key4(a)
		t.v4[hash4(k)%shardCount].insert(k, ep, p)
		return
	}
	hi, lo := key6(a)
	t.v6[hash6(hi, lo)%shardCount].insert(hi, lo, ep, p)
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
		case k:
			return slots[i].ep, true
		case 0:
			return 0, false
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

func (s *shard4) insert(k, ep uint32, p *Pod) {
	if full(s.used, len(s.slots)) {
		old := *s
		n := max(minSlots, 2*len(old.slots))
		*s = shard4{slots: make([]slot4, n), pods: make([]*Pod, n)}
		for i, sl := range old.slots {
			if sl.addr != 0 {
				s.insert(sl.addr, sl.ep, old.pods[i])
			}
		}
	}
	at, _ := s.find(k)
	s.slots[at], s.pods[at] = slot4{k, ep}, p
	s.used++
}

func (s *shard6) insert(hi, lo uint64, ep uint32, p *Pod) {
	if full(s.used, len(s.slots)) {
		old := *s
		n := max(minSlots, 2*len(old.slots))
		*s = shard6{slots: make([]slot6, n), pods: make([]*Pod, n)}
		for i, sl := range old.slots {
			if sl.hi|sl.lo != 0 {
				s.insert(sl.hi, sl.lo, sl.ep, old.pods[i])
			}
		}
	}
	at, _ := s.find(hi, lo)
	s.slots[at], s.pods[at] = slot6{hi, lo, ep}, p
	s.used++
}

// full keeps half of the slots free: most probes then end where they begin, which
// a CPU predicts well, and that is worth more here than a smaller table.
func full(used, slots int) bool { return 2*(used+1) > slots }
