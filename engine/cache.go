package engine

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// flowKey is the 5-tuple with the source port masked out: no field of any
// policy reads the source port, so one entry serves every connection of a
// client to a service. It is comparable, without pointers, 40 bytes.
type flowKey struct {
	srcHi, srcLo uint64
	dstHi, dstLo uint64
	// rest is destination port | protocol<<16 | family<<24; the family keeps an
	// IPv4-mapped IPv6 address apart from the IPv4 address.
	rest uint64
}

func keyOf(p *packet.Packet) flowKey {
	k := flowKey{rest: uint64(p.DstPort) | uint64(p.Protocol)<<16}
	if p.Src.Is4() {
		k.rest |= 4 << 24
	}
	k.srcHi, k.srcLo = halves(p.Src)
	k.dstHi, k.dstLo = halves(p.Dst)
	return k
}

func halves(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// hash spreads a key over the doorkeeper. It need not be strong, as a collision
// admits one entry early, but keys that differ a little, as those of a scan do,
// must not collide: what varies in the same bits is kept in different places.
func (k *flowKey) hash() uint64 {
	a, b := bits.Mul64(k.srcLo^bits.RotateLeft64(k.srcHi, 32)^0x9e3779b97f4a7c15, k.dstLo^k.rest<<32^0xd1b54a32d192ed03)
	return a ^ b ^ k.dstHi
}

// cached is a decision and the serial of the tree that made it. A decision of
// another tree is stale: it is made again and replaced.
type cached struct {
	decision policy.Decision
	serial   uint64
}

// doorSlots is how many recently missed keys the doorkeeper remembers; 32 KiB.
const doorSlots = 4096

// cache holds the decisions of one worker, which alone uses it. A key is
// admitted when it is missed a second time: a port scan or a flood of one-time
// flows neither throws out what is used nor allocates.
type cache struct {
	lru  *simplelru.LRU[flowKey, cached]
	door [doorSlots]uint64
}

// newCache returns nil for size 0: every packet is decided by the tree.
func newCache(size int) (*cache, error) {
	if size == 0 {
		return nil, nil
	}
	lru, err := simplelru.NewLRU[flowKey, cached](size, nil)
	if err != nil {
		return nil, err
	}
	return &cache{lru: lru}, nil
}

// get returns the decision of the tree with this serial, if it is known.
func (c *cache) get(k flowKey, serial uint64) (policy.Decision, bool) {
	e, ok := c.lru.Get(k)
	if !ok || e.serial != serial {
		return policy.Decision{}, false
	}
	return e.decision, true
}

// put remembers a decision that get did not find.
func (c *cache) put(k flowKey, serial uint64, d policy.Decision) {
	h := k.hash()
	slot := &c.door[h%doorSlots]
	if *slot != h && !c.lru.Contains(k) {
		*slot = h
		return
	}
	c.lru.Add(k, cached{d, serial})
}
