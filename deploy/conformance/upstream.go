//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/deploy/conformance/rig"
)

// universe are upstream's NetworkPolicy tests, whatever is selected of them. The
// suite that was once called legacy (NetworkPolicyLegacy) is gone from 1.36.
var universe = regexp.MustCompile(`\[sig-network\] Netpol\b|\[Feature:NetworkPolicy\]`)

// notRunnable says why a test cannot run on this machine, or "".
func notRunnable(name string) string {
	if strings.Contains(name, "[Feature:SCTPConnectivity]") {
		return sctpSockets()
	}
	return ""
}

// sctpSockets says why there are none, or "".
func sctpSockets() string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return fmt.Sprintf("the test opens SCTP sockets, and this kernel has none (socket: %v)", err)
	}
	unix.Close(fd)
	return ""
}

// upstream runs e2e.test, by ginkgo, as hack/ginkgo-e2e.sh of Kubernetes does.
func upstream(ctx context.Context, o *options, r *rig.Rig, c column, dir string, programs map[string]string) ([]result, error) {
	log := filepath.Join(dir, "e2e.log")
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, programs["ginkgo"], append(ginkgoArgs(o, c), programs["e2e.test"], "--",
		"--provider=skeleton", "--kubeconfig="+r.KubeconfigFile(), "--num-nodes=2",
		"--report-dir="+dir, "--dump-logs-on-failure=false")...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = stopLimit
	runErr := cmd.Run()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	results, err := readJUnit(filepath.Join(dir, "junit_01.xml"))
	if err != nil {
		_ = tail(os.Stderr, log, 4000) // all that can be said
		return nil, fmt.Errorf("run upstream's tests: %w", errors.Join(runErr, err))
	}
	return results, nil
}

func ginkgoArgs(o *options, c column) []string {
	procs := o.procs
	if !c.enforce {
		procs *= 2 // mostly they wait: a probe that should fail and does not is repeated for 10 s
	}
	args := []string{fmt.Sprintf("--procs=%d", procs), "--no-color", "--succinct", "--keep-going", "--timeout=" + o.timeout.String(), "--focus=" + o.focus}
	if o.skip != "" {
		args = append(args, "--skip="+o.skip)
	}
	if sctpSockets() != "" {
		args = append(args, `--skip=\[Feature:SCTPConnectivity\]`)
	}
	return args
}
