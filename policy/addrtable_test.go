package policy

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// The table is compared with a map through 400,000 changes, among so many addresses
// that slots collide and gaps are closed, and published tables must not change.
func TestAddrTableIsAMap(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	var table addrTable
	model := map[netip.Addr]uint32{}
	for round := range 20 {
		published, then := table, maps.Clone(model)
		table.published()
		for range 20_000 {
			a := randomAddr(rng)
			// It fills for some rounds and empties for some, so that shards grow and shrink.
			if rng.IntN(100) < 30+round/5%2*45 {
				table.remove(a)
				delete(model, a)
				continue
			}
			ep := rng.Uint32()
			table.put(a, ep, &holding{addr: a})
			model[a] = ep
		}
		checkTable(t, &table, model)
		checkTable(t, &published, then)
		if t.Failed() {
			return
		}
	}
}

func randomAddr(rng *rand.Rand) netip.Addr {
	n := rng.Uint32N(30_000)
	if rng.IntN(2) == 0 {
		return addr4(0x0a000000 + n)
	}
	return addr6(0xfd<<56|uint64(n%7), uint64(n))
}

func checkTable(t *testing.T, table *addrTable, model map[netip.Addr]uint32) {
	t.Helper()
	entries := 0
	for a, h := range table.all() {
		entries++
		if want, known := model[a]; !known || h.addr != a {
			t.Errorf("%v is listed with %v, want %v (%t)", a, h, want, known)
		}
	}
	if entries != len(model) {
		t.Errorf("%d addresses are listed, want %d", entries, len(model))
	}
	for a, want := range model {
		if got, known := table.endpoint(a); !known || got != want {
			t.Fatalf("%v: endpoint %d (%t), want %d", a, got, known, want)
		}
		if h := table.holder(a); h == nil || h.addr != a {
			t.Fatalf("%v: held by %v", a, h)
		}
	}
	for _, a := range []netip.Addr{addr4(0x0b000000), addr6(1, 1), netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if _, known := table.endpoint(a); known {
			t.Errorf("%v is known", a)
		}
	}
	prefix, n := netip.MustParsePrefix("10.0.16.0/20"), 0
	table.within(prefix, func(h *holding) {
		if n++; !prefix.Contains(h.addr) {
			t.Errorf("%v is not in %v", h.addr, prefix)
		}
	})
	for a := range model {
		if prefix.Contains(a) {
			n--
		}
	}
	if n != 0 {
		t.Errorf("%+d addresses too many in %v", n, prefix)
	}
}
