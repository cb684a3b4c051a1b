//go:build linux

package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Cmd is an exec.Cmd that starts in a host's namespace. Set its fields before
// Start as with exec.Cmd. It dies with this process, with the host and with
// its context; a command that should clean up after itself wants SIGTERM
// before that (Process.Signal).
//
// It runs in a process group of its own, so that Ctrl-C reaches the lab first
// and the context's end kills the command's children too; an interactive
// command needs SysProcAttr.Setpgid = false. Only the network namespace is the
// host's: /sys still shows the root namespace's interfaces.
type Cmd struct {
	*exec.Cmd
	host *Host
	wait sync.Once
	err  error // of Wait
}

// Command prepares a program with arguments to be run in the host's namespace.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := &Cmd{Cmd: exec.CommandContext(ctx, name, args...), host: h}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cmd.Cancel = c.kill
	c.WaitDelay = 5 * time.Second // for output pipes that a surviving child holds
	return c
}

// kill kills the command, and its group if it has one.
func (c *Cmd) kill() error {
	if c.SysProcAttr == nil || !c.SysProcAttr.Setpgid {
		return c.Process.Kill()
	}
	if err := unix.Kill(-c.Process.Pid, unix.SIGKILL); errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	} else if err != nil {
		return err
	}
	return nil
}

// Start starts the command in the namespace.
func (c *Cmd) Start() error {
	h := c.host
	h.mu.Lock() // Remove either sees the command or prevents it
	defer h.mu.Unlock()
	if h.gone {
		return fmt.Errorf("start %s: %w", c.Path, h.removed())
	}
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := h.lab.spawner.run(h.ns, c.Cmd.Start); err != nil {
		return fmt.Errorf("start %s in %s: %w", c.Path, h.name, err)
	}
	h.cmds[c] = struct{}{}
	return nil
}

// Wait waits for the end of the command, as exec.Cmd.Wait does. It may be
// called more than once.
func (c *Cmd) Wait() error {
	if c.Process == nil {
		return c.Cmd.Wait() // not started: let exec say so
	}
	c.wait.Do(func() {
		c.err = c.Cmd.Wait()
		c.host.mu.Lock()
		defer c.host.mu.Unlock()
		delete(c.host.cmds, c)
	})
	return c.err
}

// Run starts the command and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns its standard output. If Stderr is nil,
// the standard error is part of the error.
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout = &stdout
	if c.Stderr != nil {
		return stdout.Bytes(), c.Run()
	}
	c.Stderr = &stderr
	err := c.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", filepath.Base(c.Path), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), err
}

// CombinedOutput runs the command and returns its output and errors together.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// killCommands kills the host's commands, also those that went on to another
// namespace. The host is stopped, so there will be no more.
func (h *Host) killCommands() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.cmds {
		_ = c.kill() // it may have ended; it is reaped either way
	}
}

func (h *Host) reapCommands() {
	h.mu.Lock()
	cmds := slices.Collect(maps.Keys(h.cmds))
	h.mu.Unlock()
	for _, c := range cmds {
		_ = c.Wait() // "signal: killed" is for whoever else calls Wait
	}
}

// spawner starts processes from one thread that lives as long as the lab.
// Pdeathsig asks for that: the kernel sends the signal when the thread that
// forked ends, not when the process does (prctl(2), PR_SET_PDEATHSIG).
type spawner struct {
	jobs  chan spawn
	ended chan struct{}
}

type spawn struct {
	ns    *space
	start func() error
	err   chan error
}

func startSpawner() *spawner {
	s := &spawner{jobs: make(chan spawn), ended: make(chan struct{})}
	offMain(s.loop)
	return s
}

// loop never unlocks its thread, so the runtime destroys it in the end.
func (s *spawner) loop() {
	defer close(s.ended)
	home, err := netns.Get()
	if err == nil {
		defer home.Close()
	}
	for job := range s.jobs {
		if err != nil {
			job.err <- fmt.Errorf("open the current network namespace: %w", err)
			continue
		}
		job.err <- s.start(job, home)
	}
}

// start runs one job and goes home, so that no namespace outlives its host here.
func (s *spawner) start(job spawn, home netns.NsHandle) error {
	if err := job.ns.enter(); err != nil {
		return err
	}
	err := job.start()
	if back := netns.Set(home); back != nil && err == nil {
		// The next job enters its own namespace first, so nothing runs in the wrong one.
		fmt.Fprintf(os.Stderr, "netlab: leave a network namespace: %v\n", back)
	}
	return err
}

func (s *spawner) run(ns *space, start func() error) error {
	job := spawn{ns: ns, start: start, err: make(chan error, 1)}
	s.jobs <- job
	return <-job.err
}

// stop ends the spawner's thread. All hosts are stopped, so nobody calls run.
func (s *spawner) stop() {
	close(s.jobs)
	<-s.ended
}

// killProcesses kills every process in the given network namespaces, whoever
// started it, and waits until they are gone, at most for limit.
func killProcesses(inodes map[uint64]bool, limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(2 * time.Millisecond) {
		pids, err := processesIn(inodes)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v are still in the lab's namespaces %s after SIGKILL", pids, limit)
		}
		for _, pid := range pids {
			killIn(pid, inodes)
		}
	}
}

// killIn kills a process unless its number passed to another one meanwhile.
func killIn(pid int, inodes map[uint64]bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // gone; or tried again and reported by killProcesses
	}
	defer unix.Close(fd)
	if inodes[netnsOf(pid)] {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// processesIn lists the processes in the given network namespaces except this
// one. Zombies have left theirs.
func processesIn(inodes map[uint64]bool) ([]int, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid != os.Getpid() && inodes[netnsOf(pid)] {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// netnsOf returns the inode of a process's network namespace, 0 if unknown.
func netnsOf(pid int) uint64 {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return 0
	}
	var inode uint64
	if _, err := fmt.Sscanf(link, "net:[%d]", &inode); err != nil {
		return 0
	}
	return inode
}
