//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/deploy/conformance/rig"
	"github.com/netverdict/netverdict/kube/kubetest"
)

// insideEnv marks the process in namespaces of its own, and has the paths of the
// programs in JSON.
const insideEnv = "CONFORMANCE_PROGRAMS"

// dirEnv is where that process keeps its files.
const dirEnv = "CONFORMANCE_DIR"

// errTold is the failure of a process that has said why.
var errTold = errors.New("the tests failed")

// enter builds what is missing, which needs the network, and runs this program again
// in a network, mount and PID namespace: the machine's own is never touched, and
// however the run ends, the kernel ends every process of it.
func enter(ctx context.Context, o *options) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("running as uid %d: nodes and pods are network namespaces, so this needs root", os.Geteuid())
	}
	dir, err := workDir(o.keep)
	if err != nil {
		return err
	}
	if o.keep == "" {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	programs, err := build(ctx, dir)
	if err != nil {
		return err
	}
	text, err := json.Marshal(programs)
	if err != nil {
		return err
	}
	// e2e.test leaves directories where its temporary files go.
	temporary := filepath.Join(dir, "tmp")
	if err := os.Mkdir(temporary, 0o755); err != nil {
		return err
	}
	err = again(ctx, insideEnv+"="+string(text), dirEnv+"="+dir, "TMPDIR="+temporary)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &exit) && exit.Exited():
		return errTold
	}
	return err
}

// again runs this program in new namespaces.
func again(ctx context.Context, env ...string) error {
	runtime.LockOSThread() // the thread's end would be the parent's, to Pdeathsig
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Setpgid:    true, // Ctrl-C reaches it once, through Cancel
		Pdeathsig:  syscall.SIGKILL,
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopLimit
	return cmd.Run()
}

// workDir makes the directory of a run: an empty one, because a control plane would
// go on with the data of the one before it.
func workDir(keep string) (string, error) {
	if keep == "" {
		return os.MkdirTemp("", "conformance-")
	}
	if err := os.MkdirAll(keep, 0o755); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(keep)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("-keep %s: the directory is not empty", keep)
	}
	if err != nil {
		return "", err
	}
	return filepath.Abs(keep)
}

// build makes the programs that a cluster needs, or finds them in the cache.
func build(ctx context.Context, dir string) (map[string]string, error) {
	programs := map[string]string{}
	upstream := []string{"etcd", "kube-apiserver", "e2e.test", "ginkgo"}
	for _, name := range slices.Concat(upstream, rig.Needed) {
		if name == "netverdict" {
			continue
		}
		fmt.Fprintf(os.Stderr, "conformance: %s\n", name)
		path, err := kubetest.Build(ctx, name)
		if err != nil {
			return nil, err
		}
		programs[name] = path
	}
	path := filepath.Join(dir, "netverdict")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "./cmd/netverdict")
	cmd.Dir = repository
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build netverdict: %w\n%s", err, out)
	}
	programs["netverdict"] = path
	return programs, nil
}

// inside is process 1 of its PID namespace.
func inside(ctx context.Context, o *options) error {
	programs := map[string]string{}
	if err := json.Unmarshal([]byte(os.Getenv(insideEnv)), &programs); err != nil {
		return fmt.Errorf("read $%s: %w", insideEnv, err)
	}
	if err := privateMachine(); err != nil {
		return err
	}
	return run(ctx, o, os.Getenv(dirEnv), maps.Clone(programs))
}

// privateMachine gives the new namespaces what programs expect of a machine.
func privateMachine() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc of the new PID namespace: %w", err)
	}
	up := exec.CommandContext(context.Background(), "ip", "link", "set", "lo", "up")
	if out, err := up.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w (package iproute2)\n%s", up, err, out)
	}
	return nil
}
