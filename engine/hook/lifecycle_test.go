package hook

import (
	"net/netip"
	"strings"
	"testing"
)

var (
	pod4  = netip.MustParseAddr("10.1.0.2")
	other = netip.MustParseAddr("10.1.0.9")
	pod6  = netip.MustParseAddr("fd01::2")
	both  = Policed{Egress: []netip.Addr{pod4, pod6}, Ingress: []netip.Addr{pod4, pod6}}
)

// foreign are rules and sets of others, next to ours.
const foreign = `
ipset create kube-foreign hash:ip
for t in iptables-BACKEND ip6tables-BACKEND; do
  $t -t mangle -N KUBE-FOREIGN
  $t -t mangle -A KUBE-FOREIGN -m comment --comment 'say "NETVERDICT" -j NETVERDICT' -j MARK --set-xmark 0x4000/0x4000
  $t -t mangle -A POSTROUTING -m comment --comment "not ours" -j KUBE-FOREIGN
  $t -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
  $t -t nat -A POSTROUTING -o eth9 -j MASQUERADE
done`

func TestLifecycleLeavesNothingBehind(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		ns := newNamespace(t)
		ns.run(t, strings.ReplaceAll(foreign, "BACKEND", b.String()))
		before := ns.rules(t, b)
		cfg := testConfig(b)
		h := ns.open(t, cfg)
		if got := ns.rules(t, b); got != before {
			t.Fatalf("Open changed the rules:\n%s", got)
		}
		if left := ns.leftovers(t, cfg); len(left) != 0 {
			t.Fatalf("Open left %q", left)
		}

		steps := []struct {
			name string
			do   func() error
		}{
			{"Install", func() error { return h.Install(both) }},
			{"Prepare", func() error { return h.Prepare(both) }},
			{"Switch", func() error { return h.Switch(true, false) }},
			{"Finish", h.Finish},
			{"Switch again", func() error { return h.Switch(false, true) }},
			{"Finish again", h.Finish},
		}
		for _, step := range steps {
			if err := step.do(); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			if repaired, err := h.Verify(); repaired || err != nil {
				t.Fatalf("Verify after %s: repaired %v, %v\n%s", step.name, repaired, err, ns.rules(t, b))
			}
		}
		if left := ns.leftovers(t, cfg); len(left) != 2*(9+7) {
			t.Errorf("Leftovers lists %d chains and sets, want 32: %q", len(left), left)
		}
		for range 2 {
			if err := h.Remove(); err != nil {
				t.Fatalf("Remove: %v", err)
			}
		}
		if got := ns.rules(t, b); got != before {
			t.Errorf("after Remove the rules are\n%s\nbefore they were\n%s", got, before)
		}
		if got := strings.TrimSpace(ns.run(t, "ipset list -n")); got != "kube-foreign" {
			t.Errorf("after Remove there are the sets %q", got)
		}
	})
}

func TestSwitchReplacesWhatItMust(t *testing.T) {
	for _, tc := range []struct {
		name          string
		revokes, adds bool
		generation    uint32
		allow, deny   side
		epoch         uint32
	}{
		{"neither", false, false, 1, sideB, sideB, 1},
		{"revokes", true, false, 2, sideA, sideB, 2},
		{"adds", false, true, 1, sideB, sideA, 2},
		{"both", true, true, 2, sideA, sideA, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ns := newNamespace(t)
			h := ns.installed(t, testConfig(NFT), both)
			if err := h.Switch(tc.revokes, tc.adds); err != nil {
				t.Fatal(err)
			}
			want := state{epoch: tc.epoch, generation: tc.generation, allow: tc.allow, deny: tc.deny}
			for _, s := range h.stacks {
				have := ns.saved(t, s)
				if o := s.observe(&have); o != (observed{want, true, true, 71, true}) {
					t.Errorf("%v: the kernel has %+v, want %+v", s.tables, o, want)
				}
			}
			if h.Epoch() != tc.epoch {
				t.Errorf("Epoch() = %d, want %d", h.Epoch(), tc.epoch)
			}
		})
	}
}

func (n *namespace) saved(t testing.TB, s *stack) (have saved) {
	t.Helper()
	n.in(t, func() (err error) {
		have, err = s.tables.read()
		return err
	})
	return have
}

func TestRetiredSetsAreEmptiedAndReusedEmpty(t *testing.T) {
	ns := newNamespace(t)
	h := ns.installed(t, testConfig(NFT), both)
	const allowed = "ipset add netverdict4-allow-b 10.0.0.1,tcp:80,10.0.0.2 timeout 600"
	ns.run(t, allowed+"; ipset add netverdict4-deny-b 10.0.0.1,tcp:81,10.0.0.2 timeout 600")
	if err := h.Switch(true, false); err != nil {
		t.Fatal(err)
	}
	if got := ns.entries(t, "netverdict4-allow-b"); got == "" {
		t.Error("the retired allow set is empty before Finish: packets on their way still use it")
	}
	if err := h.Finish(); err != nil {
		t.Fatal(err)
	}
	if got := ns.entries(t, "netverdict4-allow-b"); got != "" {
		t.Errorf("after Finish the retired allow set has %q", got)
	}
	if got := ns.entries(t, "netverdict4-deny-b"); got == "" {
		t.Error("a revoking switch emptied the deny set in use")
	}
	ns.run(t, allowed) // a straggler
	if err := h.Switch(true, true); err != nil {
		t.Fatal(err)
	}
	if got := ns.entries(t, "netverdict4-allow-b"); got != "" {
		t.Errorf("the rules use a set again that has %q", got)
	}
}

func TestPolicedAddresses(t *testing.T) {
	ns := newNamespace(t)
	h := ns.installed(t, testConfig(NFT), Policed{Egress: []netip.Addr{pod4}, Ingress: []netip.Addr{pod6}})
	expect := func(when string, want map[string]string) {
		t.Helper()
		for set, entries := range want {
			if got := ns.entries(t, set); got != entries {
				t.Errorf("%s: %s has %q, want %q", when, set, got, entries)
			}
		}
	}
	expect("Install", map[string]string{
		"netverdict4-egress": "10.1.0.2", "netverdict4-ingress": "", "netverdict6-egress": "", "netverdict6-ingress": "fd01::2"})
	mapped := netip.AddrFrom16(other.As16())
	if err := h.Prepare(Policed{Egress: []netip.Addr{mapped}}); err != nil {
		t.Fatal(err)
	}
	expect("Prepare", map[string]string{
		"netverdict4-egress": "10.1.0.2\n10.1.0.9", "netverdict6-ingress": "fd01::2"})
	if err := h.Finish(); err != nil {
		t.Fatal(err)
	}
	expect("Finish", map[string]string{
		"netverdict4-egress": "10.1.0.9", "netverdict4-ingress": "", "netverdict6-egress": "", "netverdict6-ingress": ""})
}

// A process that is killed leaves everything as it is; the next one goes on
// from there.
func TestInstallAdopts(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		ns := newNamespace(t)
		cfg := testConfig(b)
		first := ns.installed(t, cfg, both)
		if err := first.Switch(true, false); err != nil {
			t.Fatal(err)
		}
		ns.run(t, "ipset add netverdict4-allow-a 10.0.0.1,tcp:80,10.0.0.2; ipset add netverdict4-deny-b 10.0.0.1,tcp:81,10.0.0.2")
		before := first.stacks[0].state

		cfg.MaxElem = 2048 // the next process may be configured differently
		second := ns.installed(t, cfg, Policed{Egress: []netip.Addr{other}})
		after := second.stacks[0].state
		if after.generation != before.generation+1 {
			t.Errorf("generation %d after %d: live flows would not be judged again", after.generation, before.generation)
		}
		if after.allow == before.allow || after.deny == before.deny {
			t.Errorf("sets %c and %c are still in use: they know verdicts of the process before", after.allow, after.deny)
		}
		for set, want := range map[string]string{
			"netverdict4-egress": "10.1.0.9", "netverdict4-ingress": "", "netverdict6-egress": "",
			"netverdict4-allow-a": "", "netverdict4-allow-b": "", "netverdict4-deny-a": "", "netverdict4-deny-b": "",
		} {
			if got := ns.entries(t, set); got != want {
				t.Errorf("%s has %q, want %q", set, got, want)
			}
		}
		if got := ns.run(t, "ipset list -t netverdict4-allow-a; ipset list -t netverdict4-allow-b"); strings.Count(got, "maxelem 2048") != 2 {
			t.Errorf("the sets keep the size of the process before:\n%s", got)
		}
		if repaired, err := second.Verify(); repaired || err != nil {
			t.Errorf("Verify: repaired %v, %v", repaired, err)
		}
		if err := second.Remove(); err != nil {
			t.Fatal(err)
		}
		if left := ns.leftovers(t, cfg); len(left) != 0 {
			t.Errorf("Remove left %q", left)
		}
	})
}

func TestInstallRemovesRulesOfOtherBackendAndFamily(t *testing.T) {
	ns := newNamespace(t)
	ns.installed(t, testConfig(Legacy), both)
	cfg := testConfig(NFT)
	cfg.IPv6 = false
	h := ns.installed(t, cfg, both)
	for _, left := range ns.leftovers(t, cfg) {
		if strings.Contains(left, "legacy") || strings.Contains(left, "ip6tables") {
			t.Errorf("%s is still there", left)
		}
	}
	if err := h.Remove(); err != nil {
		t.Fatal(err)
	}
	if left := ns.leftovers(t, cfg); len(left) != 0 {
		t.Errorf("Remove left %q", left)
	}
}

func TestRemoveNamesSetInUse(t *testing.T) {
	ns := newNamespace(t)
	cfg := testConfig(NFT)
	h := ns.installed(t, cfg, both)
	ns.run(t, "iptables-nft -t filter -A FORWARD -m set --match-set netverdict4-egress src -j ACCEPT")
	err := h.Remove()
	if err == nil || !strings.Contains(err.Error(), "netverdict4-egress") || !strings.Contains(err.Error(), "a rule of somebody else uses it") {
		t.Errorf("Remove: %v", err)
	}
	if left := ns.leftovers(t, cfg); len(left) != 1 {
		t.Errorf("the set in use stopped the removal of the rest: %q", left)
	}
	ns.run(t, "iptables-nft -t filter -F FORWARD")
	if err := h.Remove(); err != nil {
		t.Error(err)
	}
}

func TestCallsOutOfOrderAreRefused(t *testing.T) {
	ns := newNamespace(t)
	h := ns.open(t, testConfig(NFT))
	if err := h.Prepare(both); err == nil {
		t.Error("Prepare before Install")
	}
	if err := h.Switch(true, true); err == nil {
		t.Error("Switch before Install")
	}
	if _, err := h.Verify(); err == nil {
		t.Error("Verify before Install")
	}
	if err := h.Remove(); err != nil {
		t.Errorf("Remove before Install: %v", err)
	}
}

// Pods that are not known are asked about; how a range comes and goes and its
// pods become known, step by step. Between Prepare and Finish nothing is missing
// that either list wants.
func TestUnknownAddressesAreAskedAbout(t *testing.T) {
	ns := newNamespace(t)
	h := ns.installed(t, testConfig(NFT), Policed{Egress: []netip.Addr{pod4}})
	range4, range6 := netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd01::/64")
	ranges := []netip.Prefix{range4, range6}
	for _, step := range []struct {
		name             string
		p                Policed
		prepared, finish string
	}{
		{"the ranges become known", Policed{Egress: []netip.Addr{pod4}, Ranges: ranges, Known: []netip.Addr{pod4, other}},
			"10.1.0.0/24 10.1.0.2 10.1.0.9 nomatch", "10.1.0.0/24 10.1.0.2 10.1.0.9 nomatch"},
		{"a pod is isolated, another no more", Policed{Egress: []netip.Addr{other}, Ranges: ranges, Known: []netip.Addr{pod4, other}},
			"10.1.0.0/24 10.1.0.2 10.1.0.9", "10.1.0.0/24 10.1.0.2 nomatch 10.1.0.9"},
		{"both leave", Policed{Ranges: ranges},
			"10.1.0.0/24 10.1.0.9", "10.1.0.0/24"},
		{"one comes", Policed{Ranges: ranges, Known: []netip.Addr{pod4}},
			"10.1.0.0/24", "10.1.0.0/24 10.1.0.2 nomatch"},
		{"the whole family", Policed{Ranges: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, Known: []netip.Addr{pod4}},
			"0.0.0.0/1 10.1.0.0/24 10.1.0.2 nomatch 128.0.0.0/1", "0.0.0.0/1 10.1.0.2 nomatch 128.0.0.0/1"},
		{"no ranges", Policed{Egress: []netip.Addr{pod4}}, "0.0.0.0/1 10.1.0.2 128.0.0.0/1", "10.1.0.2"},
	} {
		if err := h.Prepare(step.p); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := ns.members(t, "netverdict4-egress"); got != step.prepared {
			t.Errorf("%s: after Prepare the set has %q, want %q", step.name, got, step.prepared)
		}
		if err := h.Finish(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := ns.members(t, "netverdict4-egress"); got != step.finish {
			t.Errorf("%s: after Finish the set has %q, want %q", step.name, got, step.finish)
		}
		if repaired, err := h.Verify(); repaired || err != nil {
			t.Errorf("%s: Verify: repaired %v, %v", step.name, repaired, err)
		}
	}
	if err := h.Prepare(Policed{Ranges: ranges, Known: []netip.Addr{pod4, pod6}}); err != nil {
		t.Fatal(err)
	}
	if err := h.Finish(); err != nil {
		t.Fatal(err)
	}
	if got, want := ns.members(t, "netverdict6-ingress"), "fd01::/64 fd01::2 nomatch"; got != want {
		t.Errorf("the set of IPv6 has %q, want %q", got, want)
	}
	// An exception that somebody else has made is a leak, and is removed.
	ns.run(t, "ipset add netverdict4-ingress 10.1.0.77 nomatch")
	if repaired, err := h.Verify(); !repaired || err != nil {
		t.Errorf("Verify with a foreign exception: repaired %v, %v", repaired, err)
	}
	if got, want := ns.members(t, "netverdict4-ingress"), "10.1.0.0/24 10.1.0.2 nomatch"; got != want {
		t.Errorf("repaired to %q, want %q", got, want)
	}
}

// members is what ipset says is in a set, on one line.
func (n *namespace) members(t testing.TB, set string) string {
	t.Helper()
	lines := strings.Split(n.run(t, "ipset -o save save "+set+" | sed -n 's/^add [^ ]* //p' | sort"), "\n")
	return strings.TrimSpace(strings.Join(lines, " "))
}
