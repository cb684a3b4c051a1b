//go:build linux

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netverdict/netverdict/bench/netlab"
)

// firstBackoff and lastBackoff bound the pause before a container is restarted. It
// doubles, as the kubelet's does; tests have no time for the kubelet's 10 s to 5 min.
const (
	firstBackoff = time.Second
	lastBackoff  = time.Minute
)

// container is a container of a pod over all its runs.
type container struct {
	pod   *pod
	spec  *corev1.Container
	image *Image // nil if the node does not have it
	files map[string]string
	root  string // its root directory

	stopping chan struct{} // closed by terminate

	// Guarded by pod.mu.
	process     *os.Process // nil while none runs
	state, last corev1.ContainerState
	restarts    int32
	ready       bool
	started     bool
}

func newContainer(p *pod, spec *corev1.Container, files map[string]string) *container {
	c := &container{
		pod: p, spec: spec, image: p.node.image(spec.Image), files: files,
		root: filepath.Join(p.dir, spec.Name), stopping: make(chan struct{}),
	}
	c.state.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
	if c.image == nil {
		c.state.Waiting = &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "this test node does not have the image " + spec.Image}
	}
	return c
}

// run runs the container until it has ended for good.
func (c *container) run() {
	defer c.pod.change()
	if c.image == nil {
		<-c.stopping
		c.finish(time.Now(), errors.New("the image was never there"))
		return
	}
	for backoff := firstBackoff; ; backoff = min(2*backoff, lastBackoff) {
		begin := time.Now()
		err := c.runOnce()
		c.finish(begin, err)
		if !c.again(err) {
			return
		}
		c.await(backoff)
		select {
		case <-c.stopping:
			return
		case <-c.pod.ctx.Done():
			return
		case <-time.After(backoff):
		}
	}
}

// again applies the pod's restart policy.
func (c *container) again(err error) bool {
	select {
	case <-c.stopping:
		return false
	case <-c.pod.ctx.Done():
		return false
	default:
	}
	switch c.pod.created.Spec.RestartPolicy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return err != nil
	default:
		return true
	}
}

// await tells why the container does not run at present.
func (c *container) await(backoff time.Duration) {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	c.last, c.state = c.state, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{
		Reason: "CrashLoopBackOff", Message: fmt.Sprintf("restart in %v", backoff),
	}}
	c.restarts++
	c.pod.change()
}

// runOnce runs the process once, in a fresh root directory, and its probes.
func (c *container) runOnce() error {
	if err := errors.Join(os.RemoveAll(c.root), c.image.unpack(c.root, c.files)); err != nil {
		return err
	}
	log, err := openLog(c.logPath(), c.logPath()+".previous")
	if err != nil {
		return err
	}
	defer log.Close()
	ctx, cancel := context.WithCancel(c.pod.ctx)
	defer cancel()
	cmd := c.command(ctx, c.image.argv(c.spec))
	stdout, stderr := log.stream("stdout"), log.stream("stderr")
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	c.began(cmd.Process)
	go c.probe(ctx)
	err = cmd.Wait()
	stdout.flush()
	stderr.flush()
	return err
}

// command prepares a program in the container: its root, its environment, its
// pod's network.
func (c *container) command(ctx context.Context, argv []string) *netlab.Cmd {
	cmd := c.pod.host.Command(ctx, c.find(argv[0]), argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/:/bin:/usr/bin", "HOSTNAME=" + c.pod.hostname(), "HOME=/"}
	for _, e := range c.spec.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	cmd.SysProcAttr.Chroot = c.root
	return cmd
}

// find looks a program up as the shell would, in the container.
func (c *container) find(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, dir := range []string{"/", "/bin", "/usr/bin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(filepath.Join(c.root, path)); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return "/" + name // does not exist, and the error will say so
}

func (c *container) logPath() string { return filepath.Join(c.pod.dir, c.spec.Name+".log") }

// began notes a new process. Without probes it counts as started and ready at once.
func (c *container) began(process *os.Process) {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	c.process = process
	c.state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}
	c.started = c.spec.StartupProbe == nil
	c.ready = c.started && c.spec.ReadinessProbe == nil
	select {
	case <-c.stopping: // terminate saw no process yet
		_ = process.Signal(syscall.SIGTERM)
	default:
	}
	c.pod.change()
}

// finish notes the end of a process, or that it could not be started.
func (c *container) finish(begin time.Time, err error) {
	t := &corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: metav1.NewTime(begin), FinishedAt: metav1.Now()}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		t.Reason, t.ExitCode = "Error", int32(exitCode(exit))
	case err != nil:
		t.Reason, t.ExitCode, t.Message = "StartError", 128, err.Error()
	}
	t.ContainerID = c.id()
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	c.process, c.ready, c.started = nil, false, false
	c.state = corev1.ContainerState{Terminated: t}
	c.pod.change()
}

// exitCode is 128+n for a process that signal n ended, as shells and runtimes say it.
func exitCode(exit *exec.ExitError) int {
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return exit.ExitCode()
}

// terminate asks the container to end and not to be restarted. Without grace it
// does not ask.
func (c *container) terminate(grace time.Duration) {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	close(c.stopping)
	if c.process != nil && grace > 0 {
		_ = c.process.Signal(syscall.SIGTERM) // fails only if it has ended
	}
}

// kill ends a run because of a failed probe; the restart policy decides what next.
func (c *container) kill() {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	if c.process != nil {
		_ = c.process.Kill() // fails only if it has ended
	}
}

func (c *container) id() string {
	return fmt.Sprintf("netns://%s/%s", c.pod.created.UID, c.spec.Name)
}

// exec runs a command in the container beside its process.
func (c *container) exec(ctx context.Context, argv []string, in io.Reader, out, errs io.Writer) error {
	c.pod.mu.Lock()
	running := c.process != nil
	c.pod.mu.Unlock()
	if !running {
		return fmt.Errorf("container %s does not run", c.spec.Name)
	}
	cmd := c.command(ctx, argv)
	if out != nil {
		cmd.Stdout = out
	}
	if errs != nil {
		cmd.Stderr = errs
	}
	if in != nil {
		pipe, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		go func() { // ends with the client's stream, which nobody waits for
			_, _ = io.Copy(pipe, in)
			_ = pipe.Close()
		}()
	}
	return cmd.Run()
}
