//go:build linux

package kubelet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"
)

// logFile is a container's log: a line has the time, the stream and the text, as
// in the CRI's log format.
type logFile struct {
	mu sync.Mutex
	f  *os.File
}

// openLog begins a log; the one of the run before becomes previous.
func openLog(path, previous string) (*logFile, error) {
	if err := os.Rename(path, previous); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.Create(path)
	return &logFile{f: f}, err
}

// Close closes the file.
func (l *logFile) Close() { _ = l.f.Close() } // a log that cannot be written is not worth a pod

func (l *logFile) write(stream string, line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.f, "%s %s F %s\n", time.Now().UTC().Format(time.RFC3339Nano), stream, line)
}

// logStream splits what a process writes into lines.
type logStream struct {
	log  *logFile
	name string
	rest []byte
}

func (l *logFile) stream(name string) *logStream { return &logStream{log: l, name: name} }

// Write implements io.Writer.
func (s *logStream) Write(data []byte) (int, error) {
	s.rest = append(s.rest, data...)
	for {
		line, rest, found := bytes.Cut(s.rest, []byte("\n"))
		if !found {
			return len(data), nil
		}
		s.log.write(s.name, line)
		s.rest = rest
	}
}

// flush writes a last line that has no end.
func (s *logStream) flush() {
	if len(s.rest) > 0 {
		s.log.write(s.name, s.rest)
	}
}

// logOptions are those of the kubelet's API that this node knows.
type logOptions struct {
	previous, follow, timestamps bool
	tail                         int // lines; negative: all
	limit                        int // bytes; 0: all
	since                        time.Time
}

// copyLog writes a container's log to w. ended tells a follower that no more comes.
func copyLog(ctx context.Context, w io.Writer, path string, o logOptions, ended func() bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	lines := strings.SplitAfter(string(text), "\n")
	lines = lines[:len(lines)-1] // after the last line end: nothing, or half a line that follow will see
	if o.tail >= 0 && len(lines) > o.tail {
		lines = lines[len(lines)-o.tail:]
	}
	if o.limit > 0 {
		w = &limitWriter{w, o.limit}
	}
	for _, line := range lines {
		if err := o.print(w, line); err != nil {
			return err
		}
	}
	if !o.follow {
		return nil
	}
	if _, err := f.Seek(int64(strings.LastIndex(string(text), "\n")+1), io.SeekStart); err != nil {
		return err
	}
	return o.tailf(ctx, w, bufio.NewReader(f), ended)
}

// tailf prints lines as they come.
func (o *logOptions) tailf(ctx context.Context, w io.Writer, r *bufio.Reader, ended func() bool) error {
	var line string
	for ctx.Err() == nil {
		last := ended()
		part, err := r.ReadString('\n')
		line += part
		switch {
		case err == nil:
			if err := o.print(w, line); err != nil {
				return err
			}
			line = ""
		case last:
			return nil
		default:
			time.Sleep(100 * time.Millisecond)
		}
	}
	return nil
}

func (o *logOptions) print(w io.Writer, line string) error {
	stamp, rest, _ := strings.Cut(line, " ")
	at, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		return fmt.Errorf("read a log: %w", err)
	}
	if at.Before(o.since) {
		return nil
	}
	text := rest[strings.Index(rest, " F ")+3:]
	if o.timestamps {
		text = stamp + " " + text
	}
	_, err = io.WriteString(w, text)
	return err
}

// limitWriter passes a number of bytes on.
type limitWriter struct {
	w    io.Writer
	left int
}

func (l *limitWriter) Write(data []byte) (int, error) {
	n := min(l.left, len(data))
	if n == 0 {
		return len(data), nil
	}
	l.left -= n
	if _, err := l.w.Write(data[:n]); err != nil {
		return 0, err
	}
	return len(data), nil
}
