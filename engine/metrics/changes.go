package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/netverdict/netverdict/policy"
)

// Changes observes what becomes of changes; its methods may be called by any
// goroutine.
type Changes struct {
	compile, apply, lag prometheus.Histogram
	effects             *prometheus.CounterVec
	failures            prometheus.Counter
}

// observed are the metrics that Changes describes and collects.
var observed = map[*definition]bool{compileTime: true, applyTime: true, enforcementLag: true, changes: true, changeFailures: true}

// Effects of changes.
const (
	effectNone    = "none"
	effectRevokes = "revokes"
	effectAdds    = "adds"
	effectBoth    = "both"
)

// NewChanges returns an observer that has seen nothing.
func NewChanges() *Changes {
	c := &Changes{
		compile: durations(compileTime), apply: durations(applyTime), lag: durations(enforcementLag),
		effects:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: changes.name, Help: changes.help}, changes.labels),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: changeFailures.name, Help: changeFailures.help}),
	}
	for _, effect := range []string{effectNone, effectRevokes, effectAdds, effectBoth} {
		c.effects.WithLabelValues(effect)
	}
	return c
}

// durations is a histogram from half a millisecond to half a minute, classic and
// native. The native one is bounded in its number of buckets.
func durations(d *definition) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: d.name, Help: d.help,
		Buckets:                        []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		NativeHistogramBucketFactor:    1.1,
		NativeHistogramMaxBucketNumber: 160,
	})
}

// Compiled notes that a snapshot was compiled.
func (c *Changes) Compiled(took time.Duration) { c.compile.Observe(took.Seconds()) }

// Applied notes that a tree was put in force, and what that changed.
func (c *Changes) Applied(took time.Duration, change policy.Change) {
	c.apply.Observe(took.Seconds())
	c.effects.WithLabelValues(effect(change)).Inc()
}

// Enforced notes that a change is in force, so long after it became known.
func (c *Changes) Enforced(lag time.Duration) { c.lag.Observe(lag.Seconds()) }

// Failed notes that a snapshot could not be compiled or applied.
func (c *Changes) Failed() { c.failures.Inc() }

func effect(c policy.Change) string {
	switch {
	case c.Revokes && c.Adds:
		return effectBoth
	case c.Revokes:
		return effectRevokes
	case c.Adds:
		return effectAdds
	}
	return effectNone
}

// register adds all of it to a registry.
func (c *Changes) register(r *prometheus.Registry) {
	r.MustRegister(c.compile, c.apply, c.lag, c.effects, c.failures)
}
