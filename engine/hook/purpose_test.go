package hook

import (
	"slices"
	"testing"
)

// TestPurposesAreAll: whoever goes through Purposes misses no rule.
func TestPurposesAreAll(t *testing.T) {
	ns := newNamespace(t)
	h := ns.open(t, testConfig(NFT))
	for _, s := range h.stacks {
		for _, r := range append(s.rules(), s.jump(), s.forwardJump()) {
			if !slices.Contains(Purposes, r.purpose) {
				t.Errorf("purpose %q of %v is not listed", r.purpose, r)
			}
		}
	}
}
