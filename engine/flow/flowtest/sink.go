// Package flowtest has what tests of flow records share.
package flowtest

import (
	"slices"
	"sync"
	"time"

	"github.com/netverdict/netverdict/engine/flow"
)

// Sink is a flow.Sink that keeps every record. Its zero value is ready for use.
type Sink struct {
	mu      sync.Mutex
	records []flow.Record
}

// Flows implements flow.Sink.
func (s *Sink) Flows(records []flow.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = append(s.records, records...)
}

// Lost implements flow.Sink.
func (s *Sink) Lost(uint64, time.Time) {}

// Records returns what came so far, in the order in which it came.
func (s *Sink) Records() []flow.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.records)
}
