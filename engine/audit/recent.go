package audit

import (
	"net/netip"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/netverdict/netverdict/policy"
)

// recentSize is how many kinds of flows of each verdict are remembered, as many as
// the kernel's sets hold (ipset's default maxelem).
const recentSize = 65536

// kind is what a decision depends on.
type kind struct {
	src, dst netip.Addr
	protocol policy.Protocol
	port     uint16
}

// recent remembers what was decided lately, by verdict, and so does what the sets
// in the kernel do for the rules: a flow of the same kind is not reported again for
// a while.
type recent struct {
	lasts [2]time.Duration // by verdict; 0 remembers nothing
	until [2]*simplelru.LRU[kind, int64]
}

func newRecent(allow, deny time.Duration) (recent, error) {
	r := recent{lasts: [2]time.Duration{policy.Deny: deny, policy.Allow: allow}}
	for v := range r.until {
		lru, err := simplelru.NewLRU[kind, int64](recentSize, nil)
		if err != nil {
			return r, err
		}
		r.until[v] = lru
	}
	return r, nil
}

func (r *recent) has(k kind, v policy.Verdict, now int64) bool {
	until, ok := r.until[v].Get(k)
	return ok && now < until
}

func (r *recent) add(k kind, v policy.Verdict, now int64) {
	if r.lasts[v] > 0 {
		r.until[v].Add(k, now+int64(r.lasts[v]))
	}
}

func (r *recent) forget(v policy.Verdict) { r.until[v].Purge() }
