package flow

import (
	"io"
	"time"
)

// Stage is a part of the flow log behind the first. Calls come from the
// collector's goroutine.
type Stage interface {
	// Flow gets one record, or with folded the newest of several. Both are the
	// caller's and change after the call.
	Flow(r *Record, folded *Folded)
	// Withheld says that flows, which would have been so many lines, are left out
	// because there were too many.
	Withheld(flows, lines uint64, now time.Time)
	// Lost says that n flows were lost before now.
	Lost(n uint64, now time.Time)
	// Flush ends a batch.
	Flush()
}

// LogConfig says what goes to the flow log, and how much at most.
type LogConfig struct {
	Filter Filter
	// FoldEvery is how often a line sums up repeated denials; 0 writes each.
	FoldEvery time.Duration
	// Rate and Burst bound the lines per second, for denied and for allowed flows
	// apart, so that many allowed ones cannot hide a denied one. Rate 0 bounds
	// nothing.
	Rate  float64
	Burst int
	// Report is called once, with the first write error.
	Report func(error)
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Log is the flow log: a Sink whose lines are folded, bounded and counted.
//
//	records ──▶ Fold ──▶ Limit ──▶ JSONLines ──▶ writer
type Log struct {
	*Fold
	limit *Limit
	lines *JSONLines
}

var (
	_ Sink   = (*Log)(nil)
	_ Ticker = (*Log)(nil)
)

// NewLog returns the flow log on w.
func NewLog(w io.Writer, cfg LogConfig) *Log {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	lines := NewJSONLines(w, cfg.Filter, cfg.Report)
	limit := NewLimit(lines, cfg.Rate, cfg.Burst, cfg.Now)
	return &Log{Fold: NewFold(limit, cfg.Filter, cfg.FoldEvery, cfg.Now), limit: limit, lines: lines}
}

// LogStats are running totals of a flow log, for metrics.
type LogStats struct {
	Lines    uint64 // flow lines written
	Folded   uint64 // flows that had no line of their own because they repeat one
	Withheld uint64 // flows left out because there were too many lines
	Lost     uint64 // flows the log was told of but never got
	Errors   uint64 // writes that failed
}

// Stats may be called at any time from any goroutine.
func (l *Log) Stats() LogStats {
	return LogStats{
		Lines:    l.lines.Written(),
		Folded:   l.folded.Load(),
		Withheld: l.limit.withheld.Load(),
		Lost:     l.limit.lost.Load(),
		Errors:   l.lines.Errors(),
	}
}
