package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/netverdict/netverdict/engine/hook"
)

// rulesEvery is how often the rules are read at most: it takes two commands and keeps
// changes of policy waiting meanwhile, so nobody may have it done at will.
const rulesEvery = 5 * time.Second

// ruleReader reads the counters of the rules, and remembers them for a while.
type ruleReader struct {
	rules Rules

	mu       sync.Mutex
	read     time.Time
	counters hook.Counters
	failed   uint64
}

func (r *ruleReader) collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.read.IsZero() || time.Since(r.read) >= rulesEvery {
		r.refresh()
	}
	send(ch, ruleReadFailures, r.failed)
	for purpose, n := range r.counters {
		send(ch, rulePackets, n.Packets, string(purpose))
		send(ch, ruleBytes, n.Bytes, string(purpose))
	}
	for family, n := range r.rules.Generations() {
		send(ch, generation, n, family)
	}
}

func (r *ruleReader) refresh() {
	var err error
	if r.counters, err = r.rules.Counters(); err != nil {
		r.failed++
		r.counters = nil
	}
	r.read = time.Now()
}
