//go:build linux

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
)

// tailLines is how much of an output errors quote.
const tailLines = 15

// Output is a file that a process writes lines to.
type Output struct {
	path string

	mu    sync.Mutex
	lines []string // read so far
	at    int64    // where the next line begins
}

// Path is the file, which goes with the cluster.
func (o *Output) Path() string { return o.path }

// Lines are the lines from the n-th on that have been written to their end.
func (o *Output) Lines(from int) ([]string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.read(); err != nil {
		return nil, fmt.Errorf("read %s: %w", o.path, err)
	}
	return o.lines[min(from, len(o.lines)):len(o.lines):len(o.lines)], nil
}

func (o *Output) read() error {
	f, err := os.Open(o.path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() <= o.at {
		return err
	}
	grown := make([]byte, info.Size()-o.at)
	n, err := f.ReadAt(grown, o.at)
	if n < len(grown) {
		return err
	}
	grown = grown[:bytes.LastIndexByte(grown, '\n')+1]
	o.at += int64(len(grown))
	for line := range strings.Lines(string(grown)) {
		o.lines = append(o.lines, strings.TrimSuffix(line, "\n"))
	}
	return nil
}

// Await waits for a line, from the n-th on, that matches.
func (o *Output) Await(ctx context.Context, from int, pattern string) (string, error) {
	matches, err := regexp.Compile(pattern)
	if err != nil {
		return "", err
	}
	var found string
	err = poll(ctx, fmt.Sprintf("a line like %q", pattern), func() (bool, error) {
		lines, err := o.Lines(from)
		if err != nil {
			return false, err
		}
		for _, line := range lines {
			if matches.MatchString(line) {
				found = line
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return "", fmt.Errorf("%w; the end of %s:\n%s", err, o.path, o.tail())
	}
	return found, nil
}

// tail is the end of the output for an error message.
func (o *Output) tail() string {
	lines, err := o.Lines(0)
	if err != nil {
		return err.Error()
	}
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}
