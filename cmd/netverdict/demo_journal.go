package main

import (
	"bufio"
	"io"
	"slices"
	"sync"
)

// journal is a list that grows while others wait for what comes next. The zero
// journal is empty.
type journal[T any] struct {
	mu      sync.Mutex
	entries []T
	grown   chan struct{} // closed when the list grows; nil if nobody waits
}

func (j *journal[T]) add(entry T) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, entry)
	if j.grown != nil {
		close(j.grown)
		j.grown = nil
	}
}

func (j *journal[T]) length() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.entries)
}

// since returns the entries from index n on, and a channel that is closed when
// there are more.
func (j *journal[T]) since(n int) (entries []T, more <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.grown == nil {
		j.grown = make(chan struct{})
	}
	return slices.Clone(j.entries[n:]), j.grown
}

// readLines adds the lines of r, to its end.
func readLines(r io.Reader, to *journal[string]) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		to.add(s.Text())
	}
	_, _ = io.Copy(io.Discard, r) // after a line too long: the writer must not block
}
