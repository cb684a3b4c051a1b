package kube

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Bounds of what is read, in bytes. The largest real input is a dump of all pods
// of a big cluster: 10,000 pods take about 60 MB of YAML and half of that of JSON.
const (
	maxFileSize  = 64 << 20
	maxTotalSize = 512 << 20
)

var extensions = []string{".yaml", ".yml", ".json"}

// file is a manifest as it was read.
type file struct {
	path string
	data []byte
}

// reading is one look at the whole source.
type reading struct {
	files    []file
	problems LoadError
	report   Report // notices about files
}

// digest identifies what was read, names and problems included: equal digests
// make equal snapshots.
func (r *reading) digest() [sha256.Size]byte {
	h := sha256.New()
	part := func(b []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	for _, f := range r.files {
		part([]byte(f.path))
		part(f.data)
	}
	part([]byte(r.problems.Error()))
	return [sha256.Size]byte(h.Sum(nil))
}

// source is a manifest path with its options.
type source struct {
	path      string
	recursive bool
	regular   bool // refuse pipes and devices, which cannot be read twice
}

// read reads all files of the source, in lexical order.
func (s source) read() *reading {
	r := &reading{}
	s.readInto(r)
	return r
}

func (s source) readInto(r *reading) {
	info, err := os.Stat(s.path)
	switch {
	case err != nil:
		r.fail(s.path, err)
	case info.IsDir():
		paths := s.manifests(r)
		if len(paths) == 0 && len(r.problems.Problems) == 0 {
			r.fail(s.path, errors.New(s.emptyText()))
		}
		r.readAll(paths, true)
	case s.regular && !info.Mode().IsRegular():
		r.fail(s.path, errors.New("not a regular file, so it cannot be watched"))
	default:
		r.readAll([]string{s.path}, false)
	}
}

func (s source) emptyText() string {
	if s.recursive {
		return "no manifest (*.yaml, *.yml or *.json) in this directory or below it"
	}
	return "no manifest (*.yaml, *.yml or *.json) in this directory; its subdirectories are not read"
}

func (r *reading) fail(path string, err error) {
	r.problems.add(Place{File: path}, "", reason(err))
}

// reason drops the path from an error that the place already names.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Op + ": " + pe.Err.Error()
	}
	return err.Error()
}

// manifests lists the files to read.
func (s source) manifests(r *reading) []string {
	var paths []string
	for _, dir := range s.dirs(r) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			r.fail(dir, err)
			continue
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if r.wanted(path, e) {
				paths = append(paths, path)
			}
		}
	}
	slices.Sort(paths)
	return paths
}

// wanted leaves out what is no manifest. Hidden files are mostly what editors
// leave behind (Emacs' .#x.yaml is a link to nowhere), so they are only noted.
func (r *reading) wanted(path string, e fs.DirEntry) bool {
	if !slices.Contains(extensions, filepath.Ext(path)) || e.IsDir() {
		return false
	}
	if strings.HasPrefix(e.Name(), ".") {
		r.report.notice(Place{File: path}, Skipped, "", "hidden files are not read")
		return false
	}
	info, err := os.Stat(path) // follows links
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) || e.Type()&fs.ModeSymlink != 0 {
			r.fail(path, err)
		}
		return false // removed since it was listed
	}
	if info.IsDir() {
		return false
	}
	if !info.Mode().IsRegular() {
		r.fail(path, errors.New("not a regular file"))
		return false
	}
	return true
}

// dirs lists the directories to read: the source itself, and when it is recursive
// all below it that are not hidden. Links to directories are not followed, which
// keeps out loops and the second copy that a ConfigMap mount has in its ..data.
func (s source) dirs(r *reading) []string {
	if !s.recursive {
		return []string{s.path}
	}
	var dirs []string
	err := filepath.WalkDir(s.path+string(filepath.Separator), func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil && errors.Is(err, fs.ErrNotExist) && len(dirs) > 0:
			return nil // removed during the walk
		case err != nil:
			r.fail(path, err)
			return nil
		case !e.IsDir():
			return nil
		case len(dirs) > 0 && strings.HasPrefix(e.Name(), "."):
			return fs.SkipDir
		}
		dirs = append(dirs, filepath.Clean(path))
		return nil
	})
	if err != nil {
		r.fail(s.path, err)
	}
	return dirs
}

// readAll reads the files. Those that were listed may have been removed since.
func (r *reading) readAll(paths []string, listed bool) {
	total := 0
	for _, path := range paths {
		data, err := readFile(path)
		if listed && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			r.fail(path, err)
			continue
		}
		if total += len(data); total > maxTotalSize {
			r.fail(path, fmt.Errorf("the manifests have more than %d MiB together", maxTotalSize>>20))
			return
		}
		r.files = append(r.files, file{path, data})
	}
}

// readStdin reads manifests that are piped in.
func (r *reading) readStdin(in io.Reader) {
	const name = "standard input"
	data, err := readBounded(in)
	switch {
	case err != nil:
		r.fail(name, err)
	case len(data) == 0:
		r.fail(name, errors.New("it is empty; want manifests, as kubectl get -o yaml prints them"))
	default:
		r.files = append(r.files, file{name, data})
	}
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	if info, err := f.Stat(); err == nil && info.Size() > maxFileSize {
		return nil, errTooBig
	}
	// The size says nothing about pipes, or files that are being written.
	return readBounded(f)
}

var errTooBig = fmt.Errorf("more than %d MiB; split it, or use JSON, which takes half as much", maxFileSize>>20)

func readBounded(in io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(in, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = errTooBig
	}
	return data, err
}
