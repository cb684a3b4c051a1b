package policy_test

import (
	"net/netip"
	"testing"

	"github.com/netverdict/netverdict/policy"
)

// denying is deniedTwice with what the namespaces say about how they deny.
func denying(t *testing.T, src, dst policy.Denial) *policy.Tree {
	s := deniedTwice(false, false)
	s.Namespaces[0].Denial, s.Namespaces[1].Denial = src, dst
	return compile(t, s)
}

// TestDenial: the namespace of the end that settles the verdict says how it is
// denied; where both ends deny, that is the source's.
func TestDenial(t *testing.T) {
	t.Parallel()
	for _, src := range [...]policy.Denial{policy.DenialUnset, policy.DenialDrop, policy.DenialReject} {
		for _, dst := range [...]policy.Denial{policy.DenialUnset, policy.DenialDrop, policy.DenialReject} {
			tree := denying(t, src, dst)
			both := tree.Decide(auditSrc, auditDst, policy.TCP, 80)
			in := tree.Decide(netip.MustParseAddr("192.0.2.1"), auditDst, policy.TCP, 80)
			if both.Outcome().Denial != src || both.Ingress.Denial != dst || in.Outcome().Denial != dst {
				t.Errorf("source %v, destination %v: denied with %v (ingress %v), from outside with %v",
					src, dst, both.Outcome().Denial, both.Ingress.Denial, in.Outcome().Denial)
			}
			if got, want := tree.Rejects(), src == policy.DenialReject || dst == policy.DenialReject; got != want {
				t.Errorf("source %v, destination %v: rejects %t", src, dst, got)
			}
		}
	}
}

// TestCompareSeesDenial: another manner of denying changes no verdict, but what is
// remembered of denials.
func TestCompareSeesDenial(t *testing.T) {
	t.Parallel()
	unset := denying(t, policy.DenialUnset, policy.DenialUnset)
	drop := denying(t, policy.DenialDrop, policy.DenialUnset)
	reject := denying(t, policy.DenialReject, policy.DenialUnset)
	for _, c := range []struct {
		name          string
		before, after *policy.Tree
		want          policy.Change
	}{
		{"unset to unset", unset, denying(t, policy.DenialUnset, policy.DenialUnset), policy.Change{}},
		{"drop to reject", drop, reject, policy.Change{Denies: true}},
		{"reject to unset", reject, unset, policy.Change{Denies: true}},
		{"unset to drop", unset, drop, policy.Change{Denies: true}},
	} {
		if got := policy.Compare(c.before, c.after); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}
