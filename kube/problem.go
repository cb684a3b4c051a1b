package kube

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxProblems bounds the problems of one load. Reading stops there, which also
// bounds the time that hostile input costs.
const maxProblems = 100

// maxText bounds, in bytes, what a problem quotes of its input.
const maxText = 2 << 10

// Place is where in the manifests something is.
type Place struct {
	File     string // the path given to Load, joined with the file's name in it
	Document int    // counted from 1 within the file; 0: the file as a whole
	Line     int    // counted from 1: where the document starts
	Item     string // position within a List, such as "items[3]"; else empty
}

// String reads "policies.yaml: document 3 (line 41): items[3]".
func (p Place) String() string {
	s := p.File
	if p.Document > 0 {
		s += fmt.Sprintf(": document %d (line %d)", p.Document, p.Line)
	}
	if p.Item != "" {
		s += ": " + p.Item
	}
	return printable(s)
}

// Problem is one thing that must be fixed before the manifests can be used.
type Problem struct {
	Place
	Object string // kind and name, "NetworkPolicy shop/api"; empty where there is no object
	Text   string // what is wrong; starts with the path of the field if it is in one
}

func (p Problem) String() string {
	if p.Object == "" {
		return p.Place.String() + ": " + p.Text
	}
	return p.Place.String() + ": " + p.Object + ": " + p.Text
}

// LoadError is the error of Load: every problem found, in the order of the files.
type LoadError struct {
	Problems []Problem
	// Stopped says that reading ended at the bound, so there may be more problems.
	Stopped bool
}

// Error has one line per problem.
func (e *LoadError) Error() string {
	lines := make([]string, 0, len(e.Problems)+1)
	for _, p := range e.Problems {
		lines = append(lines, p.String())
	}
	if e.Stopped {
		lines = append(lines, fmt.Sprintf("stopped after %d problems; there may be more", len(e.Problems)))
	}
	return strings.Join(lines, "\n")
}

// add appends a problem unless the bound is reached.
func (e *LoadError) add(at Place, object, text string) {
	if len(e.Problems) >= maxProblems {
		e.Stopped = true
		return
	}
	e.Problems = append(e.Problems, Problem{Place: at, Object: printable(object), Text: printable(text)})
}

func (e *LoadError) full() bool { return len(e.Problems) >= maxProblems }

// orNil avoids the non-nil error interface around a nil pointer.
func (e *LoadError) orNil() error {
	if len(e.Problems) == 0 {
		return nil
	}
	return e
}

// printable makes text from manifests safe for a terminal and a log line:
// control and other invisible characters are escaped, and it is cut at maxText.
func printable(s string) string {
	cut := len(s) > maxText
	if cut {
		s = s[:maxText]
	}
	clean := func(r rune) bool { return unicode.IsPrint(r) && r != utf8.RuneError }
	var b strings.Builder
	for i, r := range s {
		if clean(r) {
			b.WriteRune(r)
			continue
		}
		_, size := utf8.DecodeRuneInString(s[i:])
		quoted := strconv.QuoteToASCII(s[i : i+size])
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	if cut {
		b.WriteString("…")
	}
	return b.String()
}
