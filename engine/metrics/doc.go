// Package metrics shows what an agent does to Prometheus.
//
//	engine.Stats, queue.Stats, hook.Counters, flow.Stats ─┐
//	what the agent knows of its source and its state ─────┼─▶ collector, when asked ─▶ /metrics
//	changes: compiled, applied, how late ─▶ histograms ───┘
//
// Nothing is counted twice: the collector reads the counters that the parts keep
// anyway. Only durations of changes, which no part keeps, are observed here.
//
// Every metric is defined once, in definitions.go; deploy/metrics.md is made from
// that.
package metrics

//go:generate go test -run TestTableIsCurrent -update .
