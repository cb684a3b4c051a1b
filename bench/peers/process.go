package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
)

// process is one that judges packets on the node.
type process struct {
	cmd    *netlab.Cmd
	stderr bytes.Buffer
	done   chan struct{} // closed at its end, when err is set
	err    error
}

// start starts a program on the node.
func (s *stage) start(ctx context.Context, stdout io.Writer, program string, args ...string) (*process, error) {
	p := &process{cmd: s.node.Command(ctx, program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = stdout, &p.stderr
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// spawn starts a program that prints something when it is ready.
func (s *stage) spawn(ctx context.Context, program string, args ...string) (*process, error) {
	ready := make(printed, 1)
	p, err := s.start(ctx, ready, program, args...)
	if err != nil {
		return nil, err
	}
	select {
	case <-ready:
		return p, nil
	case <-p.done:
		return nil, fmt.Errorf("start %s: %w", program, p.end())
	}
}

// printed is a writer that tells of its first use.
type printed chan struct{}

func (c printed) Write(b []byte) (int, error) {
	select {
	case c <- struct{}{}:
	default:
	}
	return len(b), nil
}

// end asks the process to end, and waits.
func (p *process) end() error {
	// It fails when the process has ended, which its state will tell.
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	<-p.done
	if state := p.cmd.ProcessState; state.Success() || state.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM {
		return nil
	}
	return fmt.Errorf("%s: %w\n%s", p.cmd.Path, p.err, bytes.TrimSpace(p.stderr.Bytes()))
}

// userHz is the unit of CPU times in /proc: USER_HZ, 100 on every Linux that Go
// runs on (proc(5), sysconf(_SC_CLK_TCK)).
const userHz = 100

// cpuTime is what processes have used of the CPUs, in user and kernel mode.
func cpuTime(pids []int) (total time.Duration, err error) {
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("CPU time of a process that should run: %w", err)
		}
		// Fields 14 and 15, utime and stime; the second may contain spaces, in brackets.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, ticks := range fields[11:13] {
			n, err := strconv.Atoi(ticks)
			if err != nil {
				return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
			}
			total += time.Duration(n) * time.Second / userHz
		}
	}
	return total, nil
}
