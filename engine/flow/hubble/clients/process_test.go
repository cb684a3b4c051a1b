package clients

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/bench/netlab/cluster"
)

func httpPort() *intstr.IntOrString {
	p := intstr.FromInt32(port)
	return &p
}

// environment keeps the user's configuration of hubble out of the tests.
func environment() []string {
	return append(os.Environ(), "HUBBLE_CONFIG=/dev/null", "HOME=/nonexistent", "XDG_CONFIG_HOME=/nonexistent")
}

// netlabOutput runs a program on this machine and returns what it prints.
func netlabOutput(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, cluster.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var stderr bytes.Buffer
	cmd.Env, cmd.Stderr = environment(), &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%w: %s", err, stderr.String())
	}
	return string(out), nil
}

// on runs a program on a node and returns all that it prints.
func on(ctx context.Context, h *netlab.Host, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, cluster.Patience)
	defer cancel()
	cmd := h.Command(ctx, program, args...)
	cmd.Env = environment()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// stream is the growing output of a program that runs on.
type stream struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *stream) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// lines is what is complete of it.
func (s *stream) lines() string {
	text := s.String()
	if i := bytes.LastIndexByte([]byte(text), '\n'); i >= 0 {
		return text[:i+1]
	}
	return ""
}

var _ io.Writer = (*stream)(nil)

// background runs a program on a node, or on this machine, until the test ends.
func (s *scene) background(h *netlab.Host, program string, args ...string) (stdout, stderr *stream) {
	s.Helper()
	stdout, stderr = &stream{}, &stream{}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.Context()))
	var wait func() error
	if h != nil {
		cmd := h.Command(ctx, program, args...)
		cmd.Env, cmd.Stdout, cmd.Stderr = environment(), stdout, stderr
		s.ok(cmd.Start())
		wait = cmd.Wait
	} else {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Env, cmd.Stdout, cmd.Stderr = environment(), stdout, stderr
		cmd.WaitDelay = time.Second
		s.ok(cmd.Start())
		wait = cmd.Wait
	}
	s.Cleanup(func() {
		cancel()
		_ = wait() // it is killed
		if s.Failed() {
			s.Logf("%s %v says:\n%s", program, args, stderr)
		}
	})
	return stdout, stderr
}
