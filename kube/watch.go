package kube

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/netverdict/netverdict/policy"
)

const (
	defaultQuiet = 75 * time.Millisecond
	defaultPoll  = 10 * time.Second
	// retryPoll is the longest poll while a directory that should be watched is
	// missing: nothing else tells when it is back.
	retryPoll = time.Second
	// burstFactor bounds the wait for the end of a burst, in quiet times.
	burstFactor = 10
	// emptiedFor is how long a file that had content must stay empty to be believed.
	// A writer that truncates before it writes makes every policy vanish for a
	// moment, which would allow everything.
	emptiedFor = time.Second
)

// Watch loads the manifests at path and keeps loading them as they change, until
// ctx ends; then it returns nil. It calls onSnapshot first with the initial state
// and then whenever the content has changed, and onError when the manifests
// cannot be used (a *LoadError, once for each distinct error) or cannot be
// watched. After an error the last snapshot stays the valid one; the next load
// without error reaches onSnapshot even if the content is that of the last
// snapshot, so a call to onSnapshot always means that the error is over.
//
// Both functions are called from the goroutine of Watch, never at the same time;
// no change is lost while they run. A missing path is an error like any other,
// and watching goes on.
//
//	fsnotify events ─▶ wait until quiet ─┐
//	poll: has anything's stat changed? ──┴▶ read ─▶ digest changed? ─▶ parse ─▶ onSnapshot | onError
func Watch(ctx context.Context, path string, opts Options, onSnapshot func(*policy.Snapshot, *Report), onError func(error)) error {
	if onSnapshot == nil || onError == nil {
		return errors.New("watch " + path + ": both callbacks are needed")
	}
	w := newWatcher(path, opts, onSnapshot, onError)
	defer w.close()
	w.reload(time.Now())
	w.nextPoll = time.Now().Add(w.pollInterval())
	for ctx.Err() == nil {
		w.wait(ctx)
	}
	return nil
}

// watcher is the state of Watch, owned by its goroutine.
type watcher struct {
	src         source
	quiet, poll time.Duration
	onSnapshot  func(*policy.Snapshot, *Report)
	onError     func(error)

	notify *fsnotify.Watcher      // nil if the kernel gave none: then only polling
	dirs   map[string]fs.FileInfo // watched directories, as they were when added

	due   time.Time // when to reload; zero: nothing pending
	burst time.Time // first event of the pending burst

	stats     []stat            // at the last reload
	digest    [sha256.Size]byte // of the last reading that was processed
	loaded    bool              // digest is valid
	sizes     map[string]int    // bytes of each file in that reading
	emptiedAt time.Time         // since when a file is empty that had content
	reported  string            // last load error given to onError, "" after a success

	nextPoll  time.Time
	single    bool   // the path is a file, or missing: its directory is watched
	unwatched string // last error of watching given to onError
}

func newWatcher(path string, opts Options, onSnapshot func(*policy.Snapshot, *Report), onError func(error)) *watcher {
	w := &watcher{
		src:        source{path: filepath.Clean(path), recursive: opts.Recursive, regular: true},
		quiet:      opts.Quiet,
		poll:       opts.Poll,
		onSnapshot: onSnapshot,
		onError:    onError,
		dirs:       map[string]fs.FileInfo{},
	}
	if w.quiet <= 0 {
		w.quiet = defaultQuiet
	}
	if w.poll <= 0 {
		w.poll = defaultPoll
	}
	newNotify := opts.newNotify
	if newNotify == nil {
		newNotify = fsnotify.NewWatcher
	}
	notify, err := newNotify()
	if err != nil {
		w.poll = min(w.poll, retryPoll)
		onError(fmt.Errorf("watch %s: %w; looking every %v instead (raise fs.inotify.max_user_instances)", path, err, w.poll))
		return w
	}
	w.notify = notify
	return w
}

func (w *watcher) close() {
	if w.notify != nil {
		_ = w.notify.Close() // nothing is lost with it
	}
}

// wait waits for one thing to happen and deals with it.
func (w *watcher) wait(ctx context.Context) {
	var events chan fsnotify.Event
	var errs chan error
	if w.notify != nil {
		events, errs = w.notify.Events, w.notify.Errors
	}
	poll := time.NewTimer(time.Until(w.nextPoll))
	defer poll.Stop()
	var due <-chan time.Time
	if !w.due.IsZero() {
		timer := time.NewTimer(time.Until(w.due))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-ctx.Done():
	case ev, ok := <-events:
		if !ok { // cannot happen before close, but would spin
			w.notify = nil
			return
		}
		w.event(ev, time.Now())
	case <-errs: // the queue overflowed: events are lost, so look
		w.schedule(time.Now())
	case <-due:
		w.reload(time.Now())
	case <-poll.C:
		if w.rewatch(); !sameStats(w.stats, w.src.stat()) {
			w.reload(time.Now())
		}
		w.nextPoll = time.Now().Add(w.pollInterval())
	}
}

func (w *watcher) pollInterval() time.Duration {
	if len(w.dirs) == 0 {
		return min(w.poll, retryPoll)
	}
	return w.poll
}

func (w *watcher) event(ev fsnotify.Event, now time.Time) {
	_, watched := w.dirs[ev.Name]
	if watched && (ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename)) {
		w.unwatch(ev.Name)
	}
	if w.concerns(ev.Name) {
		w.schedule(now)
	}
}

// concerns is about files that share their directory with a single watched file.
// Names with two dots are the links by which ConfigMap mounts are swapped.
func (w *watcher) concerns(name string) bool {
	base := filepath.Base(name)
	return !w.single || base == filepath.Base(w.src.path) || strings.HasPrefix(base, "..")
}

// schedule puts the reload off until the burst is over, but not for ever.
func (w *watcher) schedule(now time.Time) {
	if w.due.IsZero() {
		w.burst = now
	}
	w.due = now.Add(w.quiet)
	if latest := w.burst.Add(burstFactor * w.quiet); w.due.After(latest) {
		w.due = latest
	}
}

// reload reads everything and hands it on if it differs from the last time.
// Watches come before reading: a change in between is then read, reported, or both.
func (w *watcher) reload(now time.Time) {
	w.due = time.Time{}
	w.rewatch()
	w.stats = w.src.stat()
	in := w.src.read()
	if w.hold(in, now) {
		return
	}
	digest := in.digest()
	if w.loaded && digest == w.digest {
		return
	}
	w.digest, w.loaded, w.sizes = digest, true, map[string]int{}
	for _, f := range in.files {
		w.sizes[f.path] = len(f.data)
	}
	snapshot, report, err := parse(in)
	if err != nil {
		w.fail(err)
		return
	}
	w.reported = ""
	w.onSnapshot(snapshot, report)
}

// hold reports whether to look again before believing that a file is empty.
func (w *watcher) hold(in *reading, now time.Time) bool {
	if !w.emptied(in) {
		w.emptiedAt = time.Time{}
		return false
	}
	if w.emptiedAt.IsZero() {
		w.emptiedAt = now
	}
	until := w.emptiedAt.Add(emptiedFor)
	if !now.Before(until) {
		w.emptiedAt = time.Time{}
		return false
	}
	w.due, w.burst = until, now
	return true
}

func (w *watcher) emptied(in *reading) bool {
	for _, f := range in.files {
		if len(f.data) == 0 && w.sizes[f.path] > 0 {
			return true
		}
	}
	return false
}

func (w *watcher) fail(err error) {
	if text := err.Error(); text != w.reported {
		w.reported = text
		w.onError(err)
	}
}

// rewatch makes the watched directories those that exist now. It compares what
// the paths lead to, as a path may come to mean another directory (a swapped link).
func (w *watcher) rewatch() {
	if w.notify == nil {
		return
	}
	want, single := w.src.watchDirs()
	w.single = single
	for dir := range w.dirs {
		if _, ok := want[dir]; !ok {
			w.unwatch(dir)
		}
	}
	for dir, info := range want {
		old, watched := w.dirs[dir]
		if watched && os.SameFile(old, info) {
			continue
		}
		if watched {
			w.unwatch(dir)
		}
		if err := w.notify.Add(dir); err != nil {
			w.blind(dir, err)
			continue
		}
		w.dirs[dir] = info
	}
}

// blind reports, once for each distinct error, that the kernel does not watch a
// directory. Polling has to do then.
func (w *watcher) blind(dir string, err error) {
	if errors.Is(err, fs.ErrNotExist) {
		return // removed just now; loading reports it if it matters
	}
	w.poll = min(w.poll, retryPoll)
	err = fmt.Errorf("watch %s: %w; looking every %v instead (is fs.inotify.max_user_watches too low?)", dir, err, w.poll)
	if text := err.Error(); text != w.unwatched {
		w.unwatched = text
		w.onError(err)
	}
}

func (w *watcher) unwatch(dir string) {
	_ = w.notify.Remove(dir) // fails if the directory is gone, and the watch with it
	delete(w.dirs, dir)
}

// watchDirs lists the directories whose events concern the source: for a single
// file the one it is in, because editors replace files by renaming.
func (s source) watchDirs() (dirs map[string]fs.FileInfo, single bool) {
	dirs = map[string]fs.FileInfo{}
	info, err := os.Stat(s.path)
	if err != nil || !info.IsDir() {
		dir := filepath.Dir(s.path)
		if info, err := os.Stat(dir); err == nil {
			dirs[dir] = info
		}
		return dirs, true
	}
	for _, dir := range s.dirs(&reading{}) {
		if info, err := os.Stat(dir); err == nil {
			dirs[dir] = info
		}
	}
	return dirs, false
}

// stat is what polling compares of a file.
type stat struct {
	path string
	info fs.FileInfo // nil: not there
}

func (s source) stat() []stat {
	info, err := os.Stat(s.path)
	if err != nil {
		return []stat{{path: s.path}}
	}
	stats := []stat{{s.path, info}}
	if !info.IsDir() {
		return stats
	}
	for _, path := range s.manifests(&reading{}) {
		info, err := os.Stat(path)
		if err != nil {
			info = nil
		}
		stats = append(stats, stat{path, info})
	}
	return stats
}

func sameStats(a, b []stat) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].path != b[i].path || !sameInfo(a[i].info, b[i].info) {
			return false
		}
	}
	return true
}

func sameInfo(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode()
}
