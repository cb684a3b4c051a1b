package engine

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// TestNoAllocs: judging a packet allocates nothing, whatever its protocol,
// verdict and family, in the cache or not, recorded or not.
func TestNoAllocs(t *testing.T) {
	// Not parallel: AllocsPerRun counts what the whole process allocates.
	for _, log := range []flow.Filter{flow.None, flow.All} {
		r := newRig(t, func(c *Config) { c.Log, c.CacheSize = log, 1024 })
		w := r.judging(sceneTree(t, allow("web", "db")))
		for _, c := range allocCases(t) {
			t.Run(fmt.Sprintf("log-%v/%s/hit", log, c.name), func(t *testing.T) {
				p := &queue.Packet{Payload: c.payload}
				hits := handleTwice(w, p)
				noAllocs(t, func() { c.check(t, r, w.Handle(p)) })
				if !c.uncached && w.counters.hits.Load() == hits {
					t.Error("no hit: this did not measure what it says")
				}
			})
			if c.uncached {
				continue // it never asks the cache, so it cannot miss
			}
			t.Run(fmt.Sprintf("log-%v/%s/miss", log, c.name), func(t *testing.T) {
				p := &queue.Packet{Payload: c.payload}
				misses := w.counters.misses.Load()
				n := uint32(0)
				noAllocs(t, func() {
					n++
					c.vary(p.Payload, n)
					w.Handle(p)
				})
				if w.counters.misses.Load()-misses != uint64(n) {
					t.Errorf("%d misses of %d: this did not measure what it says", w.counters.misses.Load()-misses, n)
				}
			})
		}
	}
}

// handleTwice gets a flow past the doorkeeper.
func handleTwice(w *worker, p *queue.Packet) (hits uint64) {
	w.Handle(p)
	w.Handle(p)
	return w.counters.hits.Load()
}

func noAllocs(t *testing.T, f func()) {
	t.Helper()
	if n := testing.AllocsPerRun(300, f); n != 0 {
		t.Errorf("%v allocations per packet, want 0", n)
	}
}

type allocCase struct {
	name     string
	payload  []byte
	want     policy.Verdict
	uncached bool
}

func (c *allocCase) check(t *testing.T, r *rig, a queue.Answer) {
	want := r.verdict(c.want, epoch)
	if c.uncached {
		want = queue.Answer{}
	}
	if a != want {
		t.Errorf("%+v, want %v", a, c.want)
	}
}

// vary makes the packet one of another source, which no tree and no cache knows.
func (c *allocCase) vary(payload []byte, n uint32) {
	if payload[0]>>4 == 4 {
		binary.BigEndian.PutUint32(payload[12:], 0xc0000000+n)
		return
	}
	binary.BigEndian.PutUint32(payload[20:], 0xc0000000+n)
}

func allocCases(t *testing.T) []allocCase {
	cases := []allocCase{{name: "malformed", payload: truncated(t), uncached: true}}
	add := func(name string, src, dst netip.Addr, protocol policy.Protocol, port uint16, v policy.Verdict) {
		cases = append(cases, allocCase{name: name, payload: packetOf(t, src, dst, protocol, port), want: v})
	}
	for _, family := range []struct {
		name    string
		web, db netip.Addr
		icmp    policy.Protocol
	}{{"v4", web4, db4, policy.ICMP}, {"v6", web6, db6, policy.ICMPv6}} {
		for protocol, port := range map[policy.Protocol]uint16{policy.TCP: tcpPort, policy.UDP: udpPort, policy.SCTP: sctpPort} {
			add(fmt.Sprintf("%s/%v/allow", family.name, protocol), family.web, family.db, protocol, port, policy.Allow)
			add(fmt.Sprintf("%s/%v/deny", family.name, protocol), family.web, family.db, protocol, port+1, policy.Deny)
		}
		add(family.name+"/ICMP/deny", family.web, family.db, family.icmp, 0, policy.Deny)
		add(family.name+"/ICMP/allow", family.db, family.web, family.icmp, 0, policy.Allow)
		add(family.name+"/GRE/deny", family.web, family.db, 47, 0, policy.Deny)
	}
	return cases
}
