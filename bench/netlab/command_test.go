//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCommand(t *testing.T) {
	lab := newLab(t)
	a := addHost(t, addNode(t, lab, "n"), "a", "10.0.0.1", "fd00::1")
	out := must[[]byte](t)(a.Command(t.Context(), "ip", "-br", "addr", "show", "eth0").Output())
	if s := string(out); !strings.Contains(s, "10.0.0.1/32") || !strings.Contains(s, "fd00::1/128") {
		t.Errorf("ip addr: %s", s)
	}
	cmd := a.Command(t.Context(), "cat")
	cmd.Stdin = strings.NewReader("through the pipe")
	if out := must[[]byte](t)(cmd.CombinedOutput()); string(out) != "through the pipe" {
		t.Errorf("cat: %q", out)
	}
	_, err := a.Command(t.Context(), "sh", "-c", "echo broken >&2; exit 3").Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "broken") {
		t.Errorf("failing command: %v", err)
	}
	if err := a.Command(t.Context(), "no-such-program").Run(); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("unknown program: %v", err)
	}
	if err := a.Command(t.Context(), "true").Wait(); err == nil {
		t.Error("Wait before Start succeeded")
	}
}

func TestCommandPipes(t *testing.T) {
	lab := newLab(t)
	a := addHost(t, addNode(t, lab, "n"), "a", "10.0.0.1")
	cmd := a.Command(t.Context(), "sh", "-c", "readlink /proc/self/ns/net; cat")
	in := must[io.WriteCloser](t)(cmd.StdinPipe())
	out := must[io.ReadCloser](t)(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(in, "hello")
	in.Close()
	got := must[[]byte](t)(io.ReadAll(out))
	if want := fmt.Sprintf("net:[%d]\nhello", a.ns.inode); string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := errors.Join(cmd.Wait(), cmd.Wait()); err != nil {
		t.Error(err)
	}
}

// The context's end kills a command with its children.
func TestCommandContext(t *testing.T) {
	lab := newLab(t)
	a := addHost(t, addNode(t, lab, "n"), "a", "10.0.0.1")
	ctx, cancel := context.WithCancel(t.Context())
	cmd, pids := startFamily(t, ctx, a)
	cancel()
	if err := cmd.Wait(); err == nil {
		t.Error("the command ended well")
	}
	eventually(t, func() error { return alive(pids) })
}

// Remove kills and reaps commands, and whatever else is in the namespace.
func TestRemoveKills(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	a := addHost(t, n, "a", "10.0.0.1")
	cmd, pids := startFamily(t, t.Context(), a)
	other := addHost(t, n, "other", "10.0.0.2")
	bystander, otherPids := startFamily(t, t.Context(), other)
	if err := a.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := alive(pids); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", cmd.Process.Pid)); err == nil {
		t.Error("the command was not reaped")
	}
	if err := alive(otherPids); err == nil {
		t.Error("Remove killed another host's processes")
	}
	if err := a.Command(t.Context(), "true").Run(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("command in a removed host: %v", err)
	}
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(alive(otherPids), alive([]int{bystander.Process.Pid})); err != nil {
		t.Error(err)
	}
}

// Commands must survive the goroutine that started them: Pdeathsig watches the
// thread that forked.
func TestCommandOutlivesItsStarter(t *testing.T) {
	lab := newLab(t)
	a := addHost(t, addNode(t, lab, "n"), "a", "10.0.0.1")
	cmd := a.Command(t.Context(), "sleep", "1000")
	started := make(chan error, 1)
	if err := a.Do(func() error { started <- cmd.Start(); return dropCapability(unix.CAP_SYS_ADMIN) }); err == nil { // the thread ends
		t.Fatal("the thread went home")
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if err := alive([]int{cmd.Process.Pid}); err == nil {
		t.Error("the command died with its starter's thread")
	}
}

// startFamily starts a shell with a child and returns the process ids of both.
func startFamily(t *testing.T, ctx context.Context, h *Host) (*Cmd, []int) {
	t.Helper()
	cmd := h.Command(ctx, "sh", "-c", "sleep 1000 & echo $!; echo $$; wait")
	out := must[io.ReadCloser](t)(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, readPids(t, out, 2)
}

func readPids(t *testing.T, r io.Reader, n int) []int {
	t.Helper()
	var pids []int
	for range n {
		var s string
		must[int](t)(fmt.Fscanln(r, &s))
		pids = append(pids, must[int](t)(strconv.Atoi(s)))
	}
	return pids
}

// alive returns an error if one of the processes runs. Zombies, which wait for
// init, do not, nor do those that the kernel is taking down.
func alive(pids []int) error {
	const exiting = 4 // PF_EXITING, include/linux/sched.h
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest) // from field 3, the state; flags are field 9 (proc(5))
		flags, err := strconv.Atoi(f[6])
		if err != nil {
			return fmt.Errorf("parse %q: %w", stat, err)
		}
		if f[0] != "Z" && f[0] != "X" && flags&exiting == 0 {
			return fmt.Errorf("process %d is alive: %s", pid, stat)
		}
	}
	return nil
}

// A child that left its parent's group and session is found by its namespace.
func TestRemoveKillsDaemons(t *testing.T) {
	lab := newLab(t)
	a := addHost(t, addNode(t, lab, "n"), "a", "10.0.0.1")
	out := must[[]byte](t)(a.Command(t.Context(), "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!").Output())
	pids := readPids(t, strings.NewReader(string(out)), 1)
	if err := alive(pids); err == nil {
		t.Fatal("the daemon did not start")
	}
	if err := a.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := alive(pids); err != nil {
		t.Error(err)
	}
}
