package engine

import (
	"net/netip"
	"testing"
	"unsafe"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// TestFlowKey: what one decision may answer for.
func TestFlowKey(t *testing.T) {
	t.Parallel()
	if size := unsafe.Sizeof(flowKey{}); size != 40 {
		t.Errorf("a key has %d bytes, want 40", size)
	}
	base := packet.Packet{Src: web4, Dst: db4, Protocol: policy.TCP, SrcPort: srcPort, DstPort: tcpPort}
	with := func(change func(*packet.Packet)) packet.Packet {
		p := base
		change(&p)
		return p
	}
	same := []packet.Packet{
		with(func(p *packet.Packet) { p.SrcPort++ }),
		with(func(p *packet.Packet) { p.TCPFlags, p.Length = 16, 1500 }),
	}
	for _, p := range same {
		if keyOf(&p) != keyOf(&base) {
			t.Errorf("%+v has another key", p)
		}
	}
	mapped := func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
	others := []packet.Packet{
		base,
		with(func(p *packet.Packet) { p.Src, p.Dst = p.Dst, p.Src }),
		with(func(p *packet.Packet) { p.Src = ops4 }),
		with(func(p *packet.Packet) { p.Dst = ops4 }),
		with(func(p *packet.Packet) { p.Protocol = policy.UDP }),
		with(func(p *packet.Packet) { p.DstPort++ }),
		with(func(p *packet.Packet) { p.Src, p.Dst = mapped(p.Src), mapped(p.Dst) }),
		with(func(p *packet.Packet) { p.Src, p.Dst = web6, db6 }),
	}
	seen := map[flowKey]int{}
	for i, p := range others {
		if first, taken := seen[keyOf(&p)]; taken {
			t.Errorf("%+v has the key of %+v", p, others[first])
		}
		seen[keyOf(&p)] = i
	}
}

// keyNumber is a key that differs from others in the source address.
func keyNumber(n uint32) flowKey {
	p := packet.Packet{Src: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Dst: db4, Protocol: policy.TCP, DstPort: tcpPort}
	return keyOf(&p)
}

func newTestCache(t *testing.T, size int) *cache {
	t.Helper()
	c, err := newCache(size)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestDoorkeeper: a key enters when it is missed a second time.
func TestDoorkeeper(t *testing.T) {
	t.Parallel()
	c := newTestCache(t, 8)
	k, d := keyNumber(1), policy.Decision{Verdict: policy.Allow}
	for look, want := range []bool{false, false, true, true} {
		got, hit := c.get(k, 1)
		if hit != want || hit && got != d {
			t.Fatalf("look %d: hit %t with %v, want %t", look, hit, got, want)
		}
		if !hit {
			c.put(k, 1, d)
		}
	}
}

// TestStaleDecisions are no hits; they are replaced at once.
func TestStaleDecisions(t *testing.T) {
	t.Parallel()
	c := newTestCache(t, 8)
	k := keyNumber(1)
	c.put(k, 1, policy.Decision{Verdict: policy.Allow})
	c.put(k, 1, policy.Decision{Verdict: policy.Allow})
	if _, hit := c.get(k, 1); !hit {
		t.Fatal("not admitted")
	}
	for _, serial := range []uint64{0, 2} {
		if _, hit := c.get(k, serial); hit {
			t.Errorf("a decision of tree 1 is a hit for tree %d", serial)
		}
	}
	c.put(k, 2, policy.Decision{Verdict: policy.Deny})
	if d, hit := c.get(k, 2); !hit || d.Verdict != policy.Deny {
		t.Errorf("after tree 2 decided: hit %t, %v", hit, d.Verdict)
	}
	if _, hit := c.get(k, 1); hit {
		t.Error("the decision of tree 1 is still there")
	}
}

// TestScanLeavesTheCacheAlone: keys that come once throw nothing out, and those
// that come again never make it larger than it may be.
func TestScanLeavesTheCacheAlone(t *testing.T) {
	t.Parallel()
	const size = 16
	c := newTestCache(t, size)
	for n := range uint32(size) {
		c.put(keyNumber(n), 1, policy.Decision{})
		c.put(keyNumber(n), 1, policy.Decision{})
	}
	for n := range uint32(100_000) {
		c.put(keyNumber(1000+n), 1, policy.Decision{})
	}
	for n := range uint32(size) {
		if _, hit := c.get(keyNumber(n), 1); !hit {
			t.Errorf("key %d was thrown out by a scan", n)
		}
	}
	for n := range uint32(100) {
		c.put(keyNumber(n), 1, policy.Decision{})
		c.put(keyNumber(n), 1, policy.Decision{})
	}
	if n := c.lru.Len(); n != size {
		t.Errorf("%d entries, want %d", n, size)
	}
}

// TestScanOfPortsFromManySources: the doorkeeper tells neighbouring sources and
// neighbouring ports apart, in both families.
func TestScanOfPortsFromManySources(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]packet.Packet{"v4": {Src: web4, Dst: db4}, "v6": {Src: web6, Dst: db6}} {
		c := newTestCache(t, 4096)
		from, first := p.Src, p.Dst
		for range 64 {
			from = from.Next()
			to := first
			for range 8 {
				to = to.Next()
				for port := range uint16(64) {
					p.Src, p.Dst, p.DstPort, p.Protocol = from, to, 1024+port, policy.TCP
					c.put(keyOf(&p), 1, policy.Decision{})
				}
			}
		}
		if n := c.lru.Len(); n != 0 {
			t.Errorf("%s: %d keys were admitted at first sight", name, n)
		}
	}
}

// TestCacheFollowsTheTree: connections that differ in the source port share an
// entry, and a new tree is asked again.
func TestCacheFollowsTheTree(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	w := r.judging(sceneTree(t))
	judge := func(from uint16) queue.Answer {
		return w.Handle(&queue.Packet{Payload: packetFrom(t, web4, db4, policy.TCP, from, tcpPort)})
	}
	check := func(when string, want policy.Verdict, hits, misses uint64) {
		t.Helper()
		if a := judge(srcPort); a != r.verdict(want, epoch) {
			t.Errorf("%s: %s, want %v", when, describe(r.marks, a), want)
		}
		if s := r.engine.Stats(); s.CacheHits != hits || s.CacheMisses != misses {
			t.Errorf("%s: %d hits and %d misses, want %d and %d", when, s.CacheHits, s.CacheMisses, hits, misses)
		}
	}
	judge(1)
	judge(2)
	check("third connection", policy.Allow, 1, 2)
	r.judging(sceneTree(t, isolate("db")))
	check("new tree", policy.Deny, 1, 3)
	check("new tree, again", policy.Deny, 2, 3)
	cached := 0
	for _, rec := range r.records() {
		if rec.Cached {
			cached++
		}
	}
	if cached != 2 {
		t.Errorf("%d records say cached, want 2", cached)
	}
}

// TestNoCache: size 0 asks the tree every time.
func TestNoCache(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.CacheSize = 0 })
	w := r.judging(sceneTree(t, isolate("db")))
	for range 3 {
		a := w.Handle(&queue.Packet{Payload: packetOf(t, web4, db4, policy.TCP, tcpPort)})
		if a != r.verdict(policy.Deny, epoch) {
			t.Errorf("%s, want deny", describe(r.marks, a))
		}
	}
	if s := r.engine.Stats(); s.CacheHits+s.CacheMisses != 0 || s.Decided(policy.Deny) != 3 {
		t.Errorf("stats %+v", s)
	}
}
