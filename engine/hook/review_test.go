package hook

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/policy"
)

// A review sees each connection as its first packet would be judged, leaves out
// the node's own, and writes nothing but our bits.
func TestReview(t *testing.T) {
	ns := newNamespace(t)
	h := ns.installed(t, testConfig(NFT), both)
	conn := h.stacks[0].conn
	const others = 0x4321
	ns.run(t, "ip address add 10.1.0.1/32 dev lo; ip address add fd01::1/128 dev lo nodad")
	insert := func(args string, mark uint32) {
		t.Helper()
		ns.run(t, fmt.Sprintf("conntrack -I -t 600 -m %d %s 2>&1", mark, args))
	}
	const (
		plain   = "-p udp -s 10.1.0.2 -d 10.2.0.2 --sport 5 --dport 53"
		service = "-p tcp --state ESTABLISHED -s 10.1.0.2 -d 10.96.0.1 --sport 6 --dport 80 --reply-src 10.2.0.3 --reply-dst 192.0.2.1 --reply-port-src 8080 --reply-port-dst 60000"
		six     = "-p udp -s fd01::2 -d fd02::2 --sport 7 --dport 53"
		cut     = "-p udp -s 10.3.0.2 -d 10.1.0.2 --sport 8 --dport 99"
		ping    = "-p icmp -s 10.1.0.2 -d 10.2.0.2 --icmp-type 8 --icmp-code 0 --icmp-id 9"
	)
	insert(plain, others)
	insert(service, conn.Verdict(others, policy.Allow, 3))
	insert(six, others)
	insert(cut, conn.Verdict(others, policy.Deny, 7))
	insert(ping, 0)
	insert("-p udp -s 10.1.0.1 -d 10.1.0.2 --sport 10 --dport 53", 0) // from the node
	insert("-p udp -s fd01::2 -d fd01::1 --sport 11 --dport 53", 0)   // to the node

	a := netip.MustParseAddr
	want := []Flow{
		{a("10.1.0.2"), a("10.2.0.2"), policy.UDP, 53, false},
		{a("10.1.0.2"), a("10.2.0.3"), policy.TCP, 8080, false}, // after DNAT, before SNAT
		{a("fd01::2"), a("fd02::2"), policy.UDP, 53, false},
		{a("10.3.0.2"), a("10.1.0.2"), policy.UDP, 99, true},
		{a("10.1.0.2"), a("10.2.0.2"), policy.ICMP, 0, false},
	}
	for _, tc := range []struct {
		name  string
		scope Scope
		want  []Flow
	}{
		{"all", Scope{}, want},
		{"those that were cut", Scope{Denied: true}, want[3:4]},
		{"of one address", Scope{Addrs: []netip.Addr{a("10.2.0.3")}}, want[1:2]},
		{"of the source", Scope{Addrs: []netip.Addr{a("fd01::2"), a("10.3.0.2")}}, want[2:4]},
		{"of nobody", Scope{Addrs: []netip.Addr{a("10.9.9.9")}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := ns.review(t, h, tc.scope, Leave)
			if diff := cmp.Diff(sorted(tc.want), sorted(got), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("flows (-want +got):\n%s", diff)
			}
		})
	}

	ns.review(t, h, Scope{}, Cut)
	for _, f := range ns.review(t, h, Scope{}, Free) {
		if !f.Cut {
			t.Errorf("%+v is not cut", f)
		}
	}
	if out := ns.run(t, "conntrack -L 2>/dev/null"); strings.Count(out, fmt.Sprintf("mark=%d ", others)) != 4 || strings.Count(out, "mark=0 ") != 3 {
		t.Errorf("marks of others have changed:\n%s", out)
	}
}

func (n *namespace) review(t testing.TB, h *Hook, s Scope, fate Fate) (flows []Flow) {
	t.Helper()
	r, err := h.Review(s, func(f *Flow) Fate {
		flows = append(flows, *f)
		return fate
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Seen != len(flows) || fate == Cut && r.Cut != r.Seen || fate == Free && r.Freed != r.Seen {
		t.Errorf("%+v for %d flows", r, len(flows))
	}
	return flows
}

func sorted(flows []Flow) []Flow {
	flows = slices.Clone(flows)
	slices.SortFunc(flows, func(a, b Flow) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return flows
}

// Forget removes the keys of an address, at either end, in the sets in use, and
// those of nobody else; SwitchFor leaves generation and sets as they are.
func TestForgetOneAddress(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		ns := newNamespace(t)
		h := ns.installed(t, testConfig(b), both)
		before, epoch := h.stacks[0].state, h.Epoch()
		ns.run(t, `for set in allow-b deny-b; do
			for key in 10.1.0.2,tcp:80,10.2.0.1 10.2.0.1,udp:53,10.1.0.2 10.1.0.22,tcp:80,10.2.0.1; do ipset add netverdict4-$set $key timeout 600; done
			for key in fd01::2,tcp:80,fd02::1 fd01::22,tcp:80,fd02::1; do ipset add netverdict6-$set $key timeout 600; done
		done`)
		addrs := []netip.Addr{pod4, pod6}
		if err := h.SwitchFor(addrs); err != nil {
			t.Fatal(err)
		}
		if err := h.Forget(addrs); err != nil {
			t.Fatal(err)
		}
		for set, want := range map[string]string{
			"netverdict4-allow-b": "10.1.0.22,tcp:80,10.2.0.1", "netverdict4-deny-b": "10.1.0.22,tcp:80,10.2.0.1",
			"netverdict6-allow-b": "fd01::22,tcp:80,fd02::1", "netverdict6-deny-b": "fd01::22,tcp:80,fd02::1",
		} {
			if got := ns.entries(t, set); got != want {
				t.Errorf("%s has %q, want %q", set, got, want)
			}
		}
		after := h.stacks[0].state
		if after.generation != before.generation || after.allow != before.allow || after.deny != before.deny || h.Epoch() == epoch {
			t.Errorf("%+v, epoch %d, after %+v, epoch %d: want only another epoch", after, h.Epoch(), before, epoch)
		}
		if repaired, err := h.Verify(); repaired || err != nil {
			t.Errorf("Verify: %v, %v", repaired, err)
		}
	})
}

// A set with too many keys to look through is exchanged; the generation stays.
func TestSwitchForExchangesBigSets(t *testing.T) {
	ns := newNamespace(t)
	cfg := testConfig(NFT)
	cfg.MaxElem = 1 << 16
	h := ns.installed(t, cfg, both)
	before := h.stacks[0].state
	ns.run(t, `ipset add netverdict4-allow-b 10.1.0.2,tcp:1-17000,10.2.0.1; ipset add netverdict4-deny-b 10.1.0.2,tcp:1-9,10.2.0.1`)
	if err := h.SwitchFor([]netip.Addr{pod4}); err != nil {
		t.Fatal(err)
	}
	after := h.stacks[0].state
	if after.generation != before.generation || after.allow == before.allow || after.deny != before.deny {
		t.Errorf("%+v after %+v: want another allow set", after, before)
	}
	if err := h.Finish(); err != nil {
		t.Fatal(err)
	}
	for _, set := range []string{"netverdict4-allow-a", "netverdict4-allow-b"} {
		if got := ns.entries(t, set); got != "" {
			t.Errorf("%s is not empty", set)
		}
	}
}

// BenchmarkReview walks a connection table of 100,000 entries, whole and for one
// address.
func BenchmarkReview(b *testing.B) {
	ns := newNamespace(b)
	h := ns.installed(b, testConfig(NFT), both)
	const flows = 100_000
	ns.run(b, "sysctl -qw net.netfilter.nf_conntrack_max=262144 2>/dev/null || true")
	ns.fill(b, flows)
	for name, s := range map[string]Scope{
		"all":         {},
		"one-address": {Addrs: []netip.Addr{netip.MustParseAddr("10.200.0.1")}},
		"denied":      {Denied: true},
	} {
		b.Run(fmt.Sprintf("%s/%d-connections", name, flows), func(b *testing.B) {
			for b.Loop() {
				r, err := h.Review(s, func(*Flow) Fate { return Leave })
				if err != nil {
					b.Fatal(err)
				}
				if name == "all" && r.Seen < flows || name != "all" && r.Seen > 2 {
					b.Fatalf("%s: saw %d connections", name, r.Seen)
				}
			}
		})
	}
}

// fill puts connections between distinct addresses into the table.
func (n *namespace) fill(b *testing.B, count int) {
	b.Helper()
	n.in(b, func() error {
		conn, err := dialNfnetlink()
		if err != nil {
			return err
		}
		defer conn.close()
		for i := range count {
			src := netip.AddrFrom4([4]byte{10, byte(128 + i>>16), byte(i >> 8), byte(i)})
			if err := conn.execute(ctNew, nlmCreate, ipv4.af(), udpConnection(src, netip.MustParseAddr("192.0.2.1")), nil); err != nil {
				return err
			}
		}
		return nil
	})
}

const nlmCreate = 0x4 | 0x400 | 0x200 // NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL

func udpConnection(src, dst netip.Addr) attributes {
	tuple := func(src, dst netip.Addr) attributes {
		ip := attributes{}.with(ctaIPv4Src, src.AsSlice()).with(ctaIPv4Dst, dst.AsSlice())
		proto := attributes{}.with(ctaProtoNum, []byte{17}).with(ctaProtoSrcPort, []byte{0, 9}).with(3, []byte{0, 9})
		return attributes{}.with(ctaTupleIP|1<<15, ip).with(ctaTupleProto|1<<15, proto)
	}
	return attributes{}.with(ctaTupleOrig|1<<15, tuple(src, dst)).with(ctaTupleReply|1<<15, tuple(dst, src)).
		with(7, be32(3600)) // CTA_TIMEOUT
}
