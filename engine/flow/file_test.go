package flow

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netverdict/netverdict/policy"
)

// TestFileRotation writes 5 MiB of flows into files of 1 MiB, 2 of them kept:
// no line is cut, none of those kept is missing, and only root can read them.
func TestFileRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "flows.jsonl")
	f, err := OpenFile(path, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	j := NewJSONLines(f, All, func(err error) { t.Error(err) })
	records := verdicts(make([]policy.Verdict, 256)...)
	for n := uint64(0); n < 30_000; n += 256 {
		for i := range records {
			records[i].Revision = n + uint64(i) + 1
		}
		j.Flows(records)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the oldest files to be removed", func() bool {
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		return len(files) == 3
	})
	next := uint64(0)
	files, _ := filepath.Glob(filepath.Join(dir, "*")) // those with a time in their name sort first, oldest first
	for _, name := range files {
		next = readRevisions(t, name, next)
	}
	if next != j.Written()+1 {
		t.Errorf("the last flow in the files is %d, %d were written", next-1, j.Written())
	}
}

// readRevisions checks that a file continues with revision next (0: any), and
// returns the one after its last.
func readRevisions(t *testing.T, name string, next uint64) uint64 {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || info.Mode() != 0o600 || info.Size() > 1<<20 {
		t.Errorf("%s: mode %v, %d bytes, %v", name, info.Mode(), info.Size(), err)
	}
	for l, err := range ReadJSON(file) {
		if err != nil || next != 0 && l.Revision != next {
			t.Fatalf("%s: revision %d, want %d, %v", name, l.Revision, next, err)
		}
		next = l.Revision + 1
	}
	return next
}

func TestOpenFile(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		path          string
		size, backups int
		want          string
	}{
		{filepath.Join(dir, "missing", "flows"), 1, 1, "make the directory " + filepath.Join(dir, "missing")},
		{dir, 1, 1, "is a directory"},
		{"/dev/null", 1, 1, "no regular file"},
		{filepath.Join(dir, "flows"), 0, 1, "a size of 0 MiB"},
		{filepath.Join(dir, "flows"), 1, 0, "0 backups"},
	} {
		if _, err := OpenFile(c.path, c.size, c.backups); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %d MiB, %d backups: %v, want %q", c.path, c.size, c.backups, err, c.want)
		}
	}
	path := filepath.Join(dir, "flows") // appends to what is there
	for i := range 2 {
		f, err := OpenFile(path, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		NewJSONLines(f, All, nil).Flows(verdicts(0))
		f.Close()
		if b, _ := os.ReadFile(path); strings.Count(string(b), "\n") != i+1 {
			t.Errorf("after opening it %d times: %s", i+1, fmt.Sprintf("%q", b))
		}
	}
}
