package kubetest

import (
	"context"
	"crypto/sha256"
	_ "embed" // servers.mod, servers.sum
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Programs that Build can make.
const (
	etcdProgram      = "etcd"
	apiserverProgram = "kube-apiserver"
	kubectlProgram   = "kubectl"
	// endToEndProgram is a test binary: upstream's end-to-end tests.
	endToEndProgram = "e2e.test"
)

// packages are the packages of the programs, tools of servers.mod. A control plane
// needs the first two; deploy/conformance makes a whole cluster.
var packages = map[string]string{
	etcdProgram:               "go.etcd.io/etcd/server/v3",
	apiserverProgram:          "k8s.io/kubernetes/cmd/kube-apiserver",
	kubectlProgram:            "k8s.io/kubernetes/cmd/kubectl",
	"kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
	"kube-scheduler":          "k8s.io/kubernetes/cmd/kube-scheduler",
	"kube-proxy":              "k8s.io/kubernetes/cmd/kube-proxy",
	"agnhost":                 "k8s.io/kubernetes/test/images/agnhost",
	endToEndProgram:           "k8s.io/kubernetes/test/e2e",
	"ginkgo":                  "github.com/onsi/ginkgo/v2/ginkgo",
}

var (
	//go:embed servers.mod
	serversMod []byte
	//go:embed servers.sum
	serversSum []byte

	kubernetesVersion = requiredVersion("k8s.io/kubernetes")
	etcdVersion       = requiredVersion("go.etcd.io/etcd/server/v3")
)

// Version is that of Kubernetes in the control planes, "v1.36.3".
func Version() string { return kubernetesVersion }

// requiredVersion reads a version from servers.mod. It panics if the file, which
// is part of this package, does not require the module.
func requiredVersion(module string) string {
	line := regexp.MustCompile(`(?m)^\s*(?:require )?` + regexp.QuoteMeta(module) + ` (v\S+)`)
	m := line.FindSubmatch(serversMod)
	if m == nil {
		panic("kubetest: servers.mod does not require " + module)
	}
	return string(m[1])
}

// Build returns the path of a program: etcd, kube-apiserver, kube-controller-manager,
// kube-scheduler, kube-proxy, kubectl, agnhost, e2e.test, ginkgo. It builds the
// program if the user cache directory does not have it yet. That takes up to four
// minutes on two cores for the first of the Kubernetes programs, and as long again
// for e2e.test. Processes that need the same program wait for each other.
func Build(ctx context.Context, program string) (string, error) {
	pkg, ok := packages[program]
	if !ok {
		return "", fmt.Errorf("build %s: not one of %s", program, strings.Join(slices.Sorted(maps.Keys(packages)), ", "))
	}
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, program)
	if exists(path) {
		return path, nil
	}
	unlock, err := lockFile(ctx, filepath.Join(dir, "lock"))
	if err != nil {
		return "", fmt.Errorf("wait for another build in %s: %w", dir, err)
	}
	defer unlock()
	if exists(path) {
		return path, nil
	}
	if err := compile(ctx, dir, pkg, path); err != nil {
		return "", fmt.Errorf("build %s (%s) from its Go module: %w", program, pkg, err)
	}
	return path, nil
}

// cacheDir is where the programs of these versions, built by this Go, are kept.
func cacheDir() (string, error) {
	root, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a place for the Kubernetes programs: %w (set XDG_CACHE_HOME or HOME)", err)
	}
	h := sha256.New()
	for _, part := range [][]byte{serversMod, serversSum, []byte(runtime.Version()), []byte(runtime.GOARCH), []byte(linkerFlags())} {
		fmt.Fprintf(h, "%d:", len(part))
		h.Write(part)
	}
	name := fmt.Sprintf("kubernetes-%s-etcd-%s-%x", kubernetesVersion, etcdVersion, h.Sum(nil)[:6])
	dir := filepath.Join(root, "netverdict", "kubetest", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a place for the Kubernetes programs: %w", err)
	}
	return dir, nil
}

// linkerFlags make the programs say which version they are, as release builds do.
func linkerFlags() string {
	return "-s -w -X k8s.io/component-base/version.gitVersion=" + kubernetesVersion +
		" -X k8s.io/client-go/pkg/version.gitVersion=" + kubernetesVersion
}

// compile builds in a scratch directory, and moves only a finished program to its
// place.
func compile(ctx context.Context, dir, pkg, path string) error {
	scratch, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }() // what stays is in the way of nobody
	for name, data := range map[string][]byte{"go.mod": serversMod, "go.sum": serversSum} {
		if err := os.WriteFile(filepath.Join(scratch, name), data, 0o644); err != nil {
			return err
		}
	}
	out := filepath.Join(scratch, "program")
	verb := []string{"build"}
	if pkg == packages[endToEndProgram] {
		verb = []string{"test", "-c"}
	}
	cmd := exec.CommandContext(ctx, "go", append(verb, "-trimpath", "-mod=readonly", "-buildvcs=false", "-ldflags", linkerFlags(), "-o", out, pkg)...)
	cmd.Dir = scratch
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	cmd.WaitDelay = 5 * time.Second
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, lastLines(output, 20))
	}
	return os.Rename(out, path)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// lockFile takes an exclusive lock that ends with the process at the latest.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	for {
		f, err := tryLock(path)
		if err != nil {
			return nil, err
		}
		if f != nil {
			return func() { _ = f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// tryLock returns nil if somebody else has the lock. Closing the file unlocks.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close() // nothing was written
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// lastLines is the end of a log, for an error message.
func lastLines(log []byte, n int) string {
	lines := strings.Split(strings.TrimRight(string(log), "\n"), "\n")
	if len(lines) > n {
		lines = append([]string{"…"}, lines[len(lines)-n:]...)
	}
	return strings.Join(lines, "\n")
}
