//go:build linux

package reject

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// limit bounds answers by two rates, of all sources together and of each: a pod that
// is denied a lot must leave answers for others. Sources share slots by their hash.
//
// Each rate is a clock that a packet puts forward by one interval and that may be
// ahead of the time by one second of packets (GCRA, ITU-T I.371), so it needs one
// word, no lock and no timer.
type limit struct {
	all     rate
	source  rate
	total   atomic.Int64
	sources [sourceSlots]atomic.Int64
}

const sourceSlots = 256

// sourceShare is the part of the whole rate that one source may use up.
const sourceShare = 8

// rate is in nanoseconds for each packet, and of packets at once.
type rate struct{ interval, burst int64 }

func newRate(perSecond uint32) rate {
	n := int64(max(perSecond, 1))
	return rate{int64(time.Second) / n, int64(time.Second)}
}

func newLimit(perSecond uint32) *limit {
	return &limit{all: newRate(perSecond), source: newRate(perSecond / sourceShare)}
}

// take reports whether there may be one more answer to a source; now is in
// nanoseconds.
func (l *limit) take(source netip.Addr, now int64) bool {
	return l.source.take(&l.sources[slot(source)], now) && l.all.take(&l.total, now)
}

func (r rate) take(clock *atomic.Int64, now int64) bool {
	for {
		was := clock.Load()
		next := max(was, now) + r.interval
		if next-now > r.burst {
			return false
		}
		if clock.CompareAndSwap(was, next) {
			return true
		}
	}
}

func slot(a netip.Addr) uint8 {
	b := a.As16()
	var h uint32 = 2166136261 // FNV-1a
	for _, x := range b {
		h = (h ^ uint32(x)) * 16777619
	}
	return uint8(h ^ h>>8 ^ h>>16 ^ h>>24)
}
