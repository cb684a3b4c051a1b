package flow

import (
	"slices"
	"testing"

	"github.com/netverdict/netverdict/policy"
)

func TestDemand(t *testing.T) {
	var d Demand
	expect := func(when string, denied, allowed bool) {
		t.Helper()
		if d.Keep(policy.Deny) != denied || d.Keep(policy.Audit) != denied || d.Keep(policy.Allow) != allowed {
			t.Errorf("%s: denied flows %t, audited %t, allowed %t", when, d.Keep(policy.Deny), d.Keep(policy.Audit), d.Keep(policy.Allow))
		}
	}
	var told []bool
	d.OnAllowed(func(wanted bool) { told = append(told, wanted) })
	expect("at the start", false, false)
	d.Want(None)
	expect("with a sink that wants none", false, false)
	denied := d.Want(Denied)
	expect("with a sink for denied ones", true, false)
	first, second := d.Want(All), d.Want(All)
	expect("with two for all", true, true)
	denied()
	first()
	first() // again
	expect("with one for all", true, true)
	second()
	expect("at the end", false, false)
	if !slices.Equal(told, []bool{false, true, false}) {
		t.Errorf("told %v", told)
	}
}
