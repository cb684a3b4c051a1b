package hook

import (
	"strings"
	"testing"
)

// With one rule in it that iptables cannot express, iptables-nft-save shows none
// of a table: that must not be taken for a table that lost ours.
func TestTableThatIptablesCannotRead(t *testing.T) {
	ns := newNamespace(t)
	cfg := testConfig(NFT)
	h := ns.installed(t, cfg, both)
	ns.run(t, "nft add rule ip mangle POSTROUTING ct state new counter")
	jumps := func() int {
		return strings.Count(ns.run(t, "nft list chain ip mangle POSTROUTING"), "jump "+DefaultPrefix)
	}
	demand := func(when string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "nft -a list table ip mangle") {
			t.Errorf("%s: %v: want what to do about it", when, err)
		}
	}
	repaired, err := h.Verify()
	demand("Verify", err)
	demand("Switch", h.Switch(true, true))
	demand("Open", ns.do(func() error { _, err := Open(cfg); return err }))
	if got := jumps(); repaired || got != 1 {
		t.Errorf("repaired %v, %d jumps to our chain, want 1", repaired, got)
	}
	err = h.Remove()
	demand("Remove", err)
	if strings.Contains(err.Error(), "ipset") {
		t.Errorf("Remove waited for sets that rules still use: %v", err)
	}
	if out := ns.run(t, "nft list ruleset"); strings.Contains(out, h.names.probe()) {
		t.Errorf("Open left its probe:\n%s", out)
	}

	ns.run(t, "nft flush chain ip mangle POSTROUTING")
	if err := h.Remove(); err != nil {
		t.Errorf("Remove once the table can be read again: %v", err)
	}
	if left := ns.leftovers(t, cfg); len(left) != 0 {
		t.Errorf("Remove left %q", left)
	}
}
