package flow

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/netverdict/netverdict/engine/packet"
)

// MaxLineLen bounds a line that is read, in bytes: an isolatedBy list of
// thousands of policies fits, a file that is no flow log does not fill memory.
const MaxLineLen = 4 << 20

// ParseLine reads one line as AppendJSON renders it. Fields it does not know
// are skipped, so that a log of a newer version can be read.
func ParseLine(b []byte) (Line, error) {
	var l Line
	if err := json.Unmarshal(b, &l); err != nil {
		return Line{}, err
	}
	for _, t := range []*time.Time{&l.Time, &l.First, &l.Last} {
		if *t = t.UTC(); t.Year() < 0 || t.Year() > 9999 {
			return Line{}, fmt.Errorf("no usable time %v: not a flow log line", *t)
		}
	}
	switch {
	case l.Time.IsZero():
		return Line{}, errors.New("no usable time: not a flow log line")
	case l.Lost > 0:
		return Line{Time: l.Time, Node: l.Node, Lost: l.Lost}, nil
	case l.Withheld > 0:
		return Line{Time: l.Time, Node: l.Node, Withheld: l.Withheld, Lines: l.Lines}, nil
	}
	if l.Malformed == packet.OK {
		return Line{}, fmt.Errorf("malformed: %q is the state of a good packet", l.Malformed)
	}
	return l, nil
}

// ReadJSON reads a flow log. A line that cannot be parsed yields an error with
// its number, and reading goes on with the next; empty lines are skipped. A
// read error, or a line of more than 4 MiB, is yielded last.
func ReadJSON(r io.Reader) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		s := bufio.NewScanner(r)
		s.Buffer(nil, MaxLineLen)
		n := 0
		for s.Scan() {
			n++
			if len(bytes.TrimSpace(s.Bytes())) == 0 {
				continue
			}
			l, err := ParseLine(s.Bytes())
			if err != nil {
				err = fmt.Errorf("flow log line %d: %w", n, err)
			}
			if !yield(l, err) {
				return
			}
		}
		if err := s.Err(); err != nil {
			yield(Line{}, fmt.Errorf("flow log line %d: %w", n+1, err))
		}
	}
}
