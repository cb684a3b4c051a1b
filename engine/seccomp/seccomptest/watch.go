//go:build linux

// Package seccomptest finds out which system calls a profile lacks: a process installs it
// with a listener instead of refusals, and its parent lets it make the calls and notes them.
//
//	test ── Watch, Start ──▶ child: Install ── listener ──▶ test: Follow ─▶ Missing
//	                              └ its commands                 └─────────▶ the file named by RecordEnv
package seccomptest

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

const (
	// RecordEnv, in the environment of a test, names a file to which every kind of call is
	// appended, one a line, also those that the profile allows.
	RecordEnv = "NETVERDICT_SECCOMP_RECORD"

	// socketEnv tells a child which of its files leads to its parent.
	socketEnv = "NETVERDICT_SECCOMP_WATCHED"
)

// Watched is a process whose calls are watched, with all that it starts.
type Watched struct {
	parent *net.UnixConn
	child  *os.File

	mu    sync.Mutex
	calls map[string]bool // descriptions
	done  chan struct{}
}

// Watch prepares a command whose program calls Install. Call Follow when it was started.
func Watch(t *testing.T, cmd *exec.Cmd) *Watched {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(ends[0]), "watched")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	w := &Watched{parent: conn.(*net.UnixConn), child: os.NewFile(uintptr(ends[1]), "watching"), calls: map[string]bool{}, done: make(chan struct{})}
	cmd.ExtraFiles = append(cmd.ExtraFiles, w.child)
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", socketEnv, 2+len(cmd.ExtraFiles)))
	return w
}

// Follow notes calls until the command and all that it started have ended.
func (w *Watched) Follow(t *testing.T) {
	t.Helper()
	w.child.Close()
	go func() {
		defer close(w.done)
		defer w.parent.Close()
		listener, err := receiveFile(w.parent)
		if err != nil || listener < 0 {
			return // it ended before it installed anything
		}
		defer unix.Close(listener)
		w.listen(listener)
	}()
}

// Missing waits for the end of the processes and describes the calls that the profile
// would have refused.
func (w *Watched) Missing(t *testing.T) (missing []string) {
	t.Helper()
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	record := ""
	for c := range w.calls {
		record += c + "\n"
		missing = append(missing, c)
	}
	path := os.Getenv(RecordEnv)
	if path == "" {
		return missing
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644) //nolint:gosec // who runs the tests names it
	if err == nil {
		_, err = f.WriteString(record)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return nil // everything was noted, missing or not
}

// receiveFile returns -1 if the other end was closed instead.
func receiveFile(conn *net.UnixConn) (int, error) {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), control)
	if err != nil || n == 0 {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return -1, err
	}
	files, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return files[0], nil
}

// listen answers until nobody is left who could call.
func (w *Watched) listen(listener int) {
	for {
		poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		switch {
		case poll[0].Revents&unix.POLLIN != 0:
			w.answer(listener)
		case poll[0].Revents != 0:
			return
		}
	}
}

func (w *Watched) answer(listener int) {
	call, err := receive(listener)
	if err != nil {
		return // the caller has gone
	}
	who, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", call.pid)) // or it has gone
	text := call.String()
	if os.Getenv(RecordEnv) == "" {
		text = cmp.Or(strings.TrimSpace(string(who)), "?") + " called " + text
	}
	w.mu.Lock()
	w.calls[text] = true
	w.mu.Unlock()
	carryOn(listener, call.id)
}

// String names the call, with its arguments if a profile may depend on them.
func (c *call) String() string {
	name, ok := table.SyscallNumbers[int(c.number)]
	if !ok {
		return "number " + strconv.Itoa(int(c.number))
	}
	for i := range argued[name] {
		name += fmt.Sprintf(" %#x", uint32(c.args[i]))
	}
	return name
}

// argued are calls that profiles allow for some arguments only, and how many of them tell.
var argued = map[string]int{"clone": 1, "ioctl": 2, "prctl": 1, "prlimit64": 1, "seccomp": 1, "socket": 3}

// table has this machine's system calls.
var table = func() *arch.Info {
	info, err := arch.GetInfo("")
	if err != nil {
		panic(err)
	}
	return info
}()
