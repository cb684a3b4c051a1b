package flow

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// flushLen is the buffered text, in bytes, at which JSONLines writes before its
// batch is complete.
const flushLen = 64 << 10

// JSONLines is the Sink that writes the flow log: one JSON object per line, a
// batch per write.
//
// A failing writer stops nothing. The records it did not take are counted and
// announced by a lost line once it works again; the first failure is reported,
// the others are only counted. For a closed stdout to be an error at all, the
// process must ignore SIGPIPE (signal.Ignore): by default the Go runtime ends
// the process when a write to descriptor 1 or 2 finds nobody reading.
type JSONLines struct {
	w      io.Writer
	filter Filter
	report func(error)

	// Owned by the collector's goroutine.
	buf     []byte
	lines   []bufferedLine // of buf, in order
	lost    uint64         // to be announced by the next lost line
	midLine bool           // a failed write left the writer in the middle of a line

	written, failed atomic.Uint64
}

// bufferedLine is a line that waits to be written.
type bufferedLine struct {
	kind  lineKind
	end   int    // of the line with its line feed, in the buffer
	flows uint64 // that it tells of
}

type lineKind uint8

const (
	flowLine lineKind = iota
	lostLine
	withheldLine
)

var (
	_ Sink  = (*JSONLines)(nil)
	_ Stage = (*JSONLines)(nil)
)

// NewJSONLines returns a sink that writes what the filter keeps to w. report is
// called once, from the collector's goroutine, with the first write error; nil
// reports nothing.
func NewJSONLines(w io.Writer, filter Filter, report func(error)) *JSONLines {
	if report == nil {
		report = func(error) {}
	}
	return &JSONLines{w: w, filter: filter, report: report}
}

// Written returns how many flow lines were written; it may be called from any
// goroutine.
func (j *JSONLines) Written() uint64 { return j.written.Load() }

// Errors returns how many writes failed; it may be called from any goroutine.
func (j *JSONLines) Errors() uint64 { return j.failed.Load() }

// Flows writes the records that the filter keeps.
func (j *JSONLines) Flows(records []Record) {
	for i := range records {
		if j.filter.Keep(records[i].Decision.Reported()) {
			j.Flow(&records[i], nil)
		}
	}
	j.Flush()
}

// Flow writes one record, whatever the filter says: the stages before this one
// have asked theirs. It is in the log after Flush.
func (j *JSONLines) Flow(r *Record, folded *Folded) {
	line, flows := NewLine(r), uint64(1)
	if folded != nil {
		line.fold(folded)
		flows = folded.Count
	}
	j.append(&line, bufferedLine{kind: flowLine, flows: flows})
}

// Withheld writes a withheld line.
func (j *JSONLines) Withheld(flows, lines uint64, now time.Time) {
	j.append(&Line{Time: now, Withheld: flows, Lines: lines}, bufferedLine{kind: withheldLine, flows: flows})
}

// Lost writes a lost line. Losses are counted before the filter, because what
// was lost cannot be filtered; only None silences them.
func (j *JSONLines) Lost(n uint64, now time.Time) {
	if j.filter == None {
		return
	}
	j.lost += n
	j.begin(now)
	j.Flush()
}

func (j *JSONLines) append(line *Line, b bufferedLine) {
	j.begin(line.Time)
	j.render(line, b)
	if len(j.buf) >= flushLen {
		j.Flush()
	}
}

func (j *JSONLines) render(line *Line, b bufferedLine) {
	j.buf = append(line.AppendJSON(j.buf), '\n')
	b.end = len(j.buf)
	j.lines = append(j.lines, b)
}

// begin starts the buffer: with the end of a line that was cut, then with the
// losses to announce.
func (j *JSONLines) begin(now time.Time) {
	if len(j.buf) > 0 {
		return
	}
	if j.midLine {
		j.buf = append(j.buf, '\n')
	}
	if j.lost > 0 {
		j.render(&Line{Time: now, Lost: j.lost}, bufferedLine{kind: lostLine, flows: j.lost})
	}
}

// Flush writes the buffer and settles what became of its lines.
func (j *JSONLines) Flush() {
	if len(j.buf) == 0 {
		return
	}
	n, err := j.w.Write(j.buf)
	n = min(max(n, 0), len(j.buf))
	if err == nil && n < len(j.buf) {
		err = io.ErrShortWrite
	}
	j.settle(n)
	if n > 0 {
		j.midLine = j.buf[n-1] != '\n'
	}
	j.buf, j.lines = j.buf[:0], j.lines[:0]
	if err != nil {
		j.fail(err)
	}
}

// settle counts which lines of the buffer are in the log now that its first n
// bytes were written. A line that lacks only its line feed is: begin adds it.
// Flows that a cut line told of are lost, those that were withheld too.
func (j *JSONLines) settle(n int) {
	for _, l := range j.lines {
		whole := n >= l.end-1
		switch {
		case whole && l.kind == flowLine:
			j.written.Add(1)
		case whole && l.kind == lostLine:
			j.lost -= l.flows
		case !whole && l.kind != lostLine:
			j.lost += l.flows
		}
	}
}

func (j *JSONLines) fail(err error) {
	if j.failed.Add(1) == 1 {
		j.report(fmt.Errorf("write flow log: %w (flows go on being decided; those not written are counted and "+
			"announced when the log can be written again; if nobody reads it, use --flow-log=none)", err))
	}
}
