package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/netverdict/netverdict/policy"
)

// patience bounds the wait for something that must happen; silence is how long
// nothing must happen. Both are far from the times the watcher works with.
const (
	patience = time.Minute // on a machine that is slow and busy
	silence  = 400 * time.Millisecond
)

// events is a running watch; it delivers "pods=2" and "error: …".
type events struct {
	t    *testing.T
	ch   chan string
	stop func() error
}

// fast makes tests quick; polling is off unless a test wants it.
var fast = Options{Quiet: 20 * time.Millisecond, Poll: time.Hour}

func watch(t *testing.T, path string, opts Options) *events {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e := &events{t: t, ch: make(chan string, 100)}
	done := make(chan error, 1)
	go func() {
		done <- Watch(ctx, path, opts, func(s *policy.Snapshot, r *Report) {
			e.ch <- fmt.Sprintf("pods=%d", len(s.Pods))
		}, func(err error) { e.ch <- "error: " + err.Error() })
	}()
	e.stop = func() error {
		cancel()
		select {
		case err := <-done:
			done <- err
			return err
		case <-time.After(patience):
			return fmt.Errorf("Watch did not return")
		}
	}
	t.Cleanup(func() {
		if err := e.stop(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *events) want(prefix string) {
	e.t.Helper()
	if got := e.next(); !strings.HasPrefix(got, prefix) {
		e.t.Fatalf("got %q, want %q", got, prefix)
	}
}

func (e *events) next() string {
	e.t.Helper()
	select {
	case got := <-e.ch:
		return got
	case <-time.After(patience):
		e.t.Fatal("nothing happens")
		return ""
	}
}

func (e *events) wantNothing() {
	e.t.Helper()
	select {
	case got := <-e.ch:
		e.t.Fatalf("got %q, want nothing", got)
	case <-time.After(silence):
	}
}

func podNamed(name string) string {
	return "---\napiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\n"
}

// replace writes as editors do: a new file, renamed over the old one. A new file that
// is written in place may be read while it is still empty.
func replace(t *testing.T, path, content string) {
	t.Helper()
	tmp := filepath.Join(filepath.Dir(path), ".tmp~")
	write(t, tmp, content)
	rename(t, tmp, path)
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func TestWatchDirectory(t *testing.T) {
	inDir(t, map[string]string{"dir/a.yaml": podNamed("a")})
	e := watch(t, "dir", fast)
	e.want("pods=1")

	replace(t, "dir/b.yaml", podNamed("b"))
	e.want("pods=2")
	write(t, "dir/b.yaml", podNamed("b")+podNamed("c"))
	e.want("pods=3")
	replace(t, "dir/b.yaml", podNamed("b"))
	e.want("pods=2")
	remove(t, "dir/b.yaml")
	e.want("pods=1")

	write(t, "dir/notes.txt", "x")
	write(t, "dir/.a.yaml.swp", "x")
	write(t, "dir/a.yaml", podNamed("a"))
	if err := os.Chtimes("dir/a.yaml", time.Now(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	e.wantNothing()
}

func TestWatchBrokenEdit(t *testing.T) {
	inDir(t, map[string]string{"dir/a.yaml": podNamed("a")})
	e := watch(t, "dir", fast)
	e.want("pods=1")

	replace(t, "dir/a.yaml", "a: b: c")
	e.want("error: dir/a.yaml: document 1 (line 1): not valid YAML")
	replace(t, "dir/a.yaml", "a: b: d") // another content, the same error
	e.wantNothing()
	replace(t, "dir/a.yaml", "kind: Pod")
	e.want("error: dir/a.yaml: document 1 (line 1): Pod default/(no name): apiVersion: Required value")
	replace(t, "dir/a.yaml", podNamed("a")) // as before: the error is over
	e.want("pods=1")
	replace(t, "dir/a.yaml", "a: b: c") // the old error counts again
	e.want("error: dir/a.yaml: document 1 (line 1): not valid YAML")
	replace(t, "dir/a.yaml", podNamed("a")+podNamed("b"))
	e.want("pods=2")
	remove(t, "dir/a.yaml")
	e.want("error: dir: no manifest")
	replace(t, "dir/c.json", "{}{}")
	e.want("error: dir/c.json: document 1 (line 1): kind: Required value")
}

func TestWatchBurst(t *testing.T) {
	inDir(t, map[string]string{"dir/a.yaml": podNamed("a")})
	const quiet = 300 * time.Millisecond
	e := watch(t, "dir", Options{Quiet: quiet, Poll: time.Hour})
	e.want("pods=1")
	start := time.Now()
	for i := range 50 {
		write(t, fmt.Sprintf("dir/b%d.yaml", i), podNamed(fmt.Sprintf("b%d", i)))
	}
	states := 1
	for got := e.next(); got != "pods=51"; got = e.next() {
		states++
	}
	if most := int(time.Since(start)/quiet) + 1; states > most {
		t.Errorf("%d states in %v, want at most %d", states, time.Since(start), most)
	}
	e.wantNothing()
}

// A source that never is quiet must still be read.
func TestWatchEndlessBurst(t *testing.T) {
	inDir(t, map[string]string{"dir/a.yaml": podNamed("a")})
	e := watch(t, "dir", Options{Quiet: 300 * time.Millisecond, Poll: time.Hour})
	e.want("pods=1")
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
				_ = os.WriteFile("dir/noise.txt", []byte{byte(i)}, 0o644)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	replace(t, "dir/b.yaml", podNamed("b"))
	e.want("pods=2")
}

func TestWatchSingleFile(t *testing.T) {
	inDir(t, map[string]string{"dir/a.yaml": podNamed("a"), "dir/other.yaml": "a: b: c"})
	for _, path := range []string{"dir/a.yaml", "./dir//a.yaml"} {
		t.Run(path, func(t *testing.T) {
			write(t, "dir/a.yaml", podNamed("a"))
			e := watch(t, path, fast)
			e.want("pods=1")
			replace(t, "dir/a.yaml", podNamed("a")+podNamed("b"))
			e.want("pods=2")
			write(t, "dir/other.yaml", "x: y: z")
			e.wantNothing()
			remove(t, "dir/a.yaml")
			e.want("error: dir/a.yaml: stat: no such file or directory")
			replace(t, "dir/a.yaml", podNamed("a"))
			e.want("pods=1")
		})
	}
}

func TestWatchWorkingDirectory(t *testing.T) {
	inDir(t, map[string]string{"a.yaml": podNamed("a")})
	e := watch(t, ".", fast)
	e.want("pods=1")
	replace(t, "b.yaml", podNamed("b"))
	e.want("pods=2")
}

// A mounted ConfigMap: files are links into ..data, itself a link that the
// kubelet replaces by renaming.
func TestWatchConfigMap(t *testing.T) {
	for _, path := range []string{"mount", "mount/a.yaml"} {
		t.Run(path, func(t *testing.T) {
			inDir(t, map[string]string{"mount/..v1/a.yaml": podNamed("a")})
			link(t, "..v1", "mount/..data")
			link(t, "..data/a.yaml", "mount/a.yaml")
			e := watch(t, path, fast)
			e.want("pods=1")
			write(t, "mount/..v2/a.yaml", podNamed("a")+podNamed("b"))
			e.wantNothing()
			link(t, "..v2", "mount/..data_tmp")
			rename(t, "mount/..data_tmp", "mount/..data")
			remove(t, "mount/..v1")
			e.want("pods=2")
			e.wantNothing()
		})
	}
}

func TestWatchDirectoryComesAndGoes(t *testing.T) {
	inDir(t, nil)
	e := watch(t, "dir", fast)
	e.want("error: dir: stat: no such file or directory")
	write(t, "new/a.yaml", podNamed("a"))
	rename(t, "new", "dir")
	e.want("pods=1")
	rename(t, "dir", "old")
	e.want("error: dir: stat: no such file or directory")
	write(t, "old/a.yaml", podNamed("a")+podNamed("x")) // no business of ours
	e.wantNothing()
	write(t, "new/a.yaml", podNamed("a")+podNamed("b"))
	rename(t, "new", "dir")
	e.want("pods=2")
	replace(t, "dir/c.yaml", podNamed("c"))
	e.want("pods=3")
}

// Nothing but a look tells that a link leads elsewhere, or that its target changed.
func TestWatchPolls(t *testing.T) {
	inDir(t, map[string]string{"v1/a.yaml": podNamed("a"), "v2/a.yaml": podNamed("a") + podNamed("b"), "far/b.yaml": podNamed("c")})
	link(t, "v1", "dir")
	e := watch(t, "dir", Options{Quiet: 20 * time.Millisecond, Poll: 50 * time.Millisecond})
	e.want("pods=1")
	link(t, "v2", "tmp")
	rename(t, "tmp", "dir")
	e.want("pods=2")
	link(t, "../far/b.yaml", "v2/b.yaml")
	e.want("pods=3")
	write(t, "far/b.yaml", podNamed("c")+podNamed("d"))
	e.want("pods=4")
}

// After a link leads elsewhere, events of the new directory count.
func TestWatchFollowsSwappedDirectory(t *testing.T) {
	inDir(t, map[string]string{"v1/a.yaml": podNamed("a"), "v2/a.yaml": podNamed("a") + podNamed("b")})
	link(t, "v1", "dir")
	const poll = 3 * time.Second
	e := watch(t, "dir", Options{Quiet: 20 * time.Millisecond, Poll: poll})
	e.want("pods=1")
	link(t, "v2", "tmp")
	rename(t, "tmp", "dir")
	e.want("pods=2")
	// One by one: a slow machine may take as long as the poll now and then.
	fastest := poll
	for i := range 5 {
		start := time.Now()
		replace(t, "v2/a.yaml", strings.Repeat(podNamed("b"), i%2)+podNamed("c"))
		e.want(fmt.Sprintf("pods=%d", 1+i%2))
		if fastest = min(fastest, time.Since(start)); fastest <= poll/2 {
			return
		}
	}
	t.Errorf("noticed after %v: by the poll, not by an event", fastest)
}

func TestWatchRecursive(t *testing.T) {
	inDir(t, map[string]string{"dir/sub/a.yaml": podNamed("a")})
	opts := fast
	opts.Recursive = true
	e := watch(t, "dir", opts)
	e.want("pods=1")
	replace(t, "dir/sub/b.yaml", podNamed("b"))
	e.want("pods=2")
	write(t, "new/deep/c.yaml", podNamed("c"))
	rename(t, "new", "dir/new")
	e.want("pods=3")
	replace(t, "dir/new/deep/c.yaml", podNamed("c")+podNamed("d"))
	e.want("pods=4")
	remove(t, "dir/new")
	e.want("pods=2")
}

// Truncate, then write: between the two, no policy must be lost.
func TestWatchTruncatedFile(t *testing.T) {
	inDir(t, map[string]string{"dir/a.yaml": podNamed("a")})
	e := watch(t, "dir", fast)
	e.want("pods=1")
	start := time.Now()
	write(t, "dir/a.yaml", "")
	time.Sleep(silence)
	write(t, "dir/a.yaml", podNamed("a")+podNamed("b"))
	tooSlow := time.Since(start) >= emptiedFor
	got := e.next()
	if got == "pods=0" && tooSlow {
		got = e.next()
	}
	if got != "pods=2" {
		t.Fatalf("got %q, want pods=2", got)
	}
	start = time.Now()
	write(t, "dir/a.yaml", "") // and it stays so
	e.want("pods=0")
	if took := time.Since(start); took < emptiedFor {
		t.Errorf("believed after %v, want %v", took, emptiedFor)
	}
}

// Without inotify there is still the poll.
func TestWatchWithoutNotify(t *testing.T) {
	for name, tc := range map[string]struct {
		newNotify func() (*fsnotify.Watcher, error)
		want      string
	}{
		"none to be had": {
			func() (*fsnotify.Watcher, error) { return nil, errors.New("too many open files") },
			"error: watch dir: too many open files; looking every 50ms instead (raise fs.inotify.max_user_instances)"},
		"refuses directories": {
			func() (*fsnotify.Watcher, error) {
				w, err := fsnotify.NewWatcher()
				if err != nil {
					return nil, err
				}
				return w, w.Close()
			},
			"error: watch dir: fsnotify: watcher already closed; looking every 50ms instead (is fs.inotify.max_user_watches too low?)"},
	} {
		t.Run(name, func(t *testing.T) {
			inDir(t, map[string]string{"dir/a.yaml": podNamed("a")})
			e := watch(t, "dir", Options{Poll: 50 * time.Millisecond, newNotify: tc.newNotify})
			e.want(tc.want)
			e.want("pods=1")
			replace(t, "dir/b.yaml", podNamed("b"))
			e.want("pods=2")
			remove(t, "dir/a.yaml")
			e.want("pods=1")
			e.wantNothing()
		})
	}
}

func TestWatchNotRegular(t *testing.T) {
	e := watch(t, "/dev/null", fast)
	e.want("error: /dev/null: not a regular file, so it cannot be watched")
}

func TestWatchNeedsCallbacks(t *testing.T) {
	err := Watch(context.Background(), "x", Options{}, nil, func(error) {})
	wantError(t, err, "watch x: both callbacks are needed")
}

func TestWatchLeavesNothingBehind(t *testing.T) {
	inDir(t, map[string]string{"dir/a.yaml": podNamed("a")})
	before := runtime.NumGoroutine()
	for range 20 {
		e := watch(t, "dir", fast)
		e.want("pods=1")
		if err := e.stop(); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before+2 {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
