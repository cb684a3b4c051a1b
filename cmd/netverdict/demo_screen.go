package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/term"
)

// screenColumns is how wide the demo prints at most.
const screenColumns = 100

// colour is an SGR parameter (ECMA-48 8.3.117).
type colour string

const (
	plain  colour = ""
	bold   colour = "1"
	dim    colour = "2"
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
	alarm  colour = "1;97;41" // bold white on red
)

// screen prints whole lines, from several goroutines, none wider than
// screenColumns.
type screen struct {
	coloured bool

	mu  sync.Mutex
	w   io.Writer
	err error // the first of w; nothing is printed after it
}

// newScreen uses colours on a terminal, unless NO_COLOR is set (no-color.org).
func newScreen(w io.Writer) *screen {
	f, isFile := w.(*os.File)
	terminal := isFile && term.IsTerminal(int(f.Fd()))
	return &screen{w: w, coloured: terminal && os.Getenv("NO_COLOR") == ""}
}

// span is a piece of a line in one colour.
type span struct {
	text   string
	colour colour
}

// line prints spans as one line; a line too wide goes on below, indented more.
func (s *screen) line(indent int, spans ...span) { s.hanging(indent, indent+4, spans...) }

// hanging is line with the indent of the rows after the first.
func (s *screen) hanging(indent, hang int, spans ...span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, row := range wrap(spans, indent, hang) {
		if s.err == nil {
			_, s.err = fmt.Fprintln(s.w, s.render(row))
		}
	}
}

// failure returns why printing failed, if it did.
func (s *screen) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		return nil
	}
	return fmt.Errorf("print: %w", s.err)
}

func (s *screen) text(indent int, format string, args ...any) {
	s.line(indent, span{fmt.Sprintf(format, args...), plain})
}

func (s *screen) blank() { s.line(0) }

func (s *screen) render(row []span) string {
	var b strings.Builder
	for _, p := range row {
		if s.coloured && p.colour != plain && p.text != "" {
			fmt.Fprintf(&b, "\x1b[%sm%s\x1b[0m", p.colour, p.text)
		} else {
			b.WriteString(p.text)
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// wrap indents spans and breaks them into rows that fit, at spaces where that
// is possible.
func wrap(spans []span, indent, hang int) [][]span {
	w := wrapper{hang: hang}
	w.put(blanks(indent), plain)
	for _, s := range spans {
		for _, word := range strings.SplitAfter(s.text, " ") {
			w.add(word, s.colour)
		}
	}
	return append(w.rows, w.row)
}

type wrapper struct {
	rows [][]span
	row  []span
	used int // columns of row
	hang int // indent of rows after the first
}

func (w *wrapper) add(word string, c colour) {
	for !w.fits(word) {
		if w.used > w.hang {
			w.rows = append(w.rows, w.row)
			w.row, w.used = nil, 0
			w.put(blanks(w.hang), plain)
			continue
		}
		runes := []rune(word) // too wide for any row
		room := screenColumns - w.used
		w.put(string(runes[:room]), c)
		word = string(runes[room:])
	}
	w.put(word, c)
}

// put appends to the row; neighbours of one colour become one span.
func (w *wrapper) put(text string, c colour) {
	w.used += utf8.RuneCountInString(text)
	if last := len(w.row) - 1; last >= 0 && w.row[last].colour == c {
		w.row[last].text += text
		return
	}
	w.row = append(w.row, span{text, c})
}

// fits lets the space after a word hang over the edge, where nobody sees it.
func (w *wrapper) fits(word string) bool {
	return w.used+utf8.RuneCountInString(strings.TrimRight(word, " ")) <= screenColumns
}

func blanks(n int) string { return strings.Repeat(" ", n) }

// pad fills text with spaces up to a width in columns.
func pad(text string, width int) string {
	return text + blanks(max(0, width-utf8.RuneCountInString(text)))
}

// widest returns the columns of the widest text.
func widest(texts ...string) (n int) {
	for _, t := range texts {
		n = max(n, utf8.RuneCountInString(t))
	}
	return n
}
