//go:build linux

package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
)

// stopGrace is how long a process may take to end by itself.
const stopGrace = 5 * time.Second

// process is a program that runs as long as the cluster.
type process struct {
	cmd  runnable
	log  string
	done chan struct{} // closed when it has ended
}

// runnable is a command of this namespace or of a node's.
type runnable interface {
	Start() error
	Wait() error
	output(to io.Writer)
	path() string
	process() *os.Process
}

type hostProcess struct{ *exec.Cmd }

func (h hostProcess) output(to io.Writer)  { h.Stdout, h.Stderr = to, to }
func (h hostProcess) path() string         { return h.Path }
func (h hostProcess) process() *os.Process { return h.Process }

type labProcess struct{ *netlab.Cmd }

func (l labProcess) output(to io.Writer)  { l.Stdout, l.Stderr = to, to }
func (l labProcess) path() string         { return l.Path }
func (l labProcess) process() *os.Process { return l.Process }

// command runs a program in a process group of its own: an interrupt from the
// terminal is for this process, which ends the others in order.
func command(path string, args ...string) hostProcess {
	cmd := exec.CommandContext(context.Background(), path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return hostProcess{cmd}
}

func startProcess(cmd runnable, log string) (*process, error) {
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name(), err)
	}
	defer f.Close()
	cmd.output(f)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name(), err)
	}
	go func() {
		_ = cmd.Wait() // the log says why
		close(p.done)
	}()
	return p, nil
}

func (p *process) name() string { return filepath.Base(p.cmd.path()) }

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) stop() {
	err := p.cmd.process().Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		return
	}
	select {
	case <-p.done:
	case <-time.After(stopGrace):
		_ = p.cmd.process().Kill() // fails only if it has ended
		<-p.done
	}
}
