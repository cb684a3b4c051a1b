package main

import (
	"fmt"
	"math"
	"sync/atomic"

	"github.com/spf13/pflag"

	"github.com/netverdict/netverdict/kube"
	"github.com/netverdict/netverdict/policy"
)

// limitOptions are the flags about policies that expand too much.
type limitOptions struct {
	factor float64
}

func (o *limitOptions) addFlags(f *pflag.FlagSet) {
	f.Float64Var(&o.factor, "policy-limits", 1, "`factor` on how much policies may expand to when they are compiled; what is beyond isolates its pods and allows nothing (netverdict status names it)")
}

func (o *limitOptions) validate() error {
	if !(o.factor > 0) || math.IsInf(o.factor, 0) {
		return fmt.Errorf("--policy-limits %v: want a factor above 0, such as 2", o.factor)
	}
	return nil
}

// limitLog remembers which policies over a limit were logged.
type limitLog struct {
	newest atomic.Pointer[kube.Report] // knows the files of policies
	logged map[string]bool             // owned by build
}

// logOverLimit logs the policies that are over a limit now and were not in the last
// tree.
func (a *agent) logOverLimit(t *policy.Tree) {
	now := map[string]bool{}
	for _, o := range t.OverLimit() {
		text := overLimitText(o, a.limits.newest.Load())
		now[text] = true
		if !a.limits.logged[text] {
			a.log.Error("a policy is over a limit", "policy", text)
		}
	}
	a.limits.logged = now
}

// overLimitText names the file too, if the policy is from one.
func overLimitText(o policy.OverLimit, r *kube.Report) string {
	if r != nil {
		if at, ok := r.PolicyAt(o.Policy.NamespacedName); ok {
			return at.String() + ": " + o.String()
		}
	}
	return o.String()
}
