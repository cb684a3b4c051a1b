package kubetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

const (
	// stopGrace is how long a server may take to end by itself.
	stopGrace = 10 * time.Second
	// logLines is how much of a log an error quotes.
	logLines = 15
)

// process is one run of a server.
type process struct {
	name    string
	logPath string
	cmd     *exec.Cmd
	done    chan struct{} // closed when it has ended; then err is valid
	err     error
}

// startProcess starts a server whose output is appended to a log. It dies with
// this process.
func startProcess(name, logPath, path string, args []string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close() // the child has its own descriptor
	p := &process{name: name, logPath: logPath, cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // an interrupt from the terminal is the test's, not theirs
	}
	started := make(chan error)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// run starts the process and waits for its end on one thread: the kernel sends
// Pdeathsig when the thread that forked ends (prctl(2), PR_SET_PDEATHSIG), and Go
// ends idle threads as it likes.
func (p *process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.err = p.cmd.Wait()
	close(p.done)
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill ends the process at once and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails only if it has ended
	<-p.done
}

// stop asks the process to end, and kills it if it does not.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails only if it has ended
	select {
	case <-p.done:
		return nil
	case <-time.After(stopGrace):
	}
	p.kill()
	return fmt.Errorf("stop %s: still running %v after SIGTERM, so it was killed%s", p.name, stopGrace, p.tail())
}

// await waits until probe succeeds. It fails when the process ends, and when ctx does.
func (p *process) await(ctx context.Context, probe func(context.Context) error) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := probe(attempt)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended while it started: %w%s", p.name, errors.Join(p.err, err), p.tail())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; last answer: %w%s", p.name, context.Cause(ctx), err, p.tail())
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// tail renders the end of the log for an error message.
func (p *process) tail() string {
	log, err := os.ReadFile(p.logPath)
	if err != nil {
		return "\nno log: " + err.Error()
	}
	return fmt.Sprintf("\nthe end of %s:\n%s", p.logPath, lastLines(log, logLines))
}
