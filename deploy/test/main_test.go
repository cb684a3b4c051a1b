package deploytest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/kube/kubetest"
)

const (
	deploy     = ".."
	repository = "../.."
)

// insideEnv marks the process that runs the tests, in namespaces of its own.
const insideEnv = "DEPLOYTEST_INSIDE"

// TestMain runs this program up to three deep:
//
//	go test ─▶ enter: fetch and build what needs the network
//	             └─▶ m.Run in a new network and mount namespace: API server on its loopback, tests
//	                   └─▶ become: the agent, as a container (container_test.go)
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(containerEnv) != "":
		fmt.Fprintln(os.Stderr, "container:", become(os.Getenv(containerEnv)))
		os.Exit(125)
	case os.Getenv(insideEnv) != "":
		os.Exit(inside(m))
	default:
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, "deploy/test:", err)
			os.Exit(1)
		}
	}
}

// enter runs this program again where the tests can harm nobody: an agent's rules
// and a control plane's ports stay in a network namespace that ends with them.
func enter() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("running as uid %d: the tests run an agent in namespaces, so they need root", os.Geteuid())
	}
	for _, program := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if _, err := kubetest.Build(context.Background(), program); err != nil {
			return err
		}
	}
	download := exec.Command("go", "mod", "download")
	download.Dir = repository
	if out, err := download.CombinedOutput(); err != nil {
		return fmt.Errorf("%v in %s: %w\n%s", download, repository, err, out)
	}
	runtime.LockOSThread() // the thread's end would be the parent's, to Pdeathsig
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd.Run()
}

// scratch is a directory for what several tests share.
var scratch string

func inside(m *testing.M) int {
	err := prepareInside()
	defer os.RemoveAll(scratch)
	if err != nil {
		fmt.Fprintln(os.Stderr, "deploy/test:", err)
		return 1
	}
	return m.Run()
}

func prepareInside() (err error) {
	if scratch, err = os.MkdirTemp("", "deploytest-"); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	up := exec.Command("ip", "link", "set", "lo", "up")
	if out, err := up.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w (package iproute2)\n%s", up, err, out)
	}
	return nil
}
