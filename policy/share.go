package policy

import (
	"hash/maphash"
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// shared is a small map that trees keep: it is copied before the first change
// after a tree was made.
type shared[K comparable, V any] struct {
	m     map[K]V
	owned bool
}

func (s *shared[K, V]) own() {
	if !s.owned {
		if s.m = maps.Clone(s.m); s.m == nil {
			s.m = map[K]V{}
		}
		s.owned = true
	}
}

func (s *shared[K, V]) set(k K, v V) {
	s.own()
	s.m[k] = v
}

func (s *shared[K, V]) remove(k K) {
	s.own()
	delete(s.m, k)
}

func (s *shared[K, V]) published() map[K]V {
	s.owned = false
	return s.m
}

// endpointTable numbers endpoints.
type endpointTable struct {
	all   []endpoint
	owned bool     // no tree has all of all; what was appended since may be changed
	from  uint32   // endpoints from here on are in no tree
	free  []uint32 // numbers that nothing leads to
}

// add returns the number of an endpoint whose content is set later. Numbers are
// used again when that copies nothing, or when too many are free.
func (t *endpointTable) add() uint32 {
	if n := len(t.free); n > 0 && (t.owned || 2*n > len(t.all)) {
		at := t.free[n-1]
		t.free = t.free[:n-1]
		return at
	}
	t.all = append(t.all, endpoint{})
	return uint32(len(t.all) - 1)
}

func (t *endpointTable) set(at uint32, e endpoint) {
	if t.all[at] == e {
		return
	}
	if !t.owned && at < t.from {
		t.all, t.owned = slices.Clone(t.all), true
	}
	t.all[at] = e
}

func (t *endpointTable) remove(at uint32) {
	if at != noEnd {
		t.free = append(t.free, at)
	}
}

func (t *endpointTable) published() []endpoint {
	t.owned, t.from = false, uint32(len(t.all))
	return t.all
}

// addrSet is a set of addresses that trees keep: a copy of its headers is a copy
// of the set.
type addrSet [setShards]struct {
	list  []netip.Addr // in no order
	owned bool
}

const setShards = 256

func (s *addrSet) shard(a netip.Addr) int {
	return int(maphash.Comparable(fingerprintSeed, a) % setShards)
}

func (s *addrSet) add(a netip.Addr) {
	sh := &s[s.shard(a)]
	if !sh.owned {
		sh.list, sh.owned = slices.Clone(sh.list), true
	}
	sh.list = append(sh.list, a)
}

func (s *addrSet) remove(a netip.Addr) {
	sh := &s[s.shard(a)]
	i := slices.Index(sh.list, a)
	if i < 0 {
		return
	}
	if !sh.owned {
		sh.list, sh.owned = slices.Clone(sh.list), true
	}
	last := len(sh.list) - 1
	sh.list[i] = sh.list[last]
	sh.list = sh.list[:last]
}

// put makes an address one of the set or not.
func (s *addrSet) put(a netip.Addr, in bool) {
	switch known := slices.Contains(s[s.shard(a)].list, a); {
	case in && !known:
		s.add(a)
	case !in && known:
		s.remove(a)
	}
}

func (s *addrSet) published() {
	for i := range s {
		s[i].owned = false
	}
}

func (s *addrSet) all() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for i := range s {
			for _, a := range s[i].list {
				if !yield(a) {
					return
				}
			}
		}
	}
}
