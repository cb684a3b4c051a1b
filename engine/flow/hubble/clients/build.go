package clients

import (
	"context"
	"crypto/sha256"
	_ "embed" // programs.mod, programs.sum
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Programs that Build can make.
const (
	Hubble = "hubble"
	Relay  = "hubble-relay"
)

// module is where both of them are.
const module = "github.com/cilium/cilium"

var (
	//go:embed programs.mod
	programsMod []byte
	//go:embed programs.sum
	programsSum []byte
)

// Version is that of the programs, "v1.19.0".
func Version() string {
	return string(regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(module) + ` (v\S+)`).FindSubmatch(programsMod)[1])
}

// Build returns the path of a program and builds it if the user cache directory
// does not have it yet, which takes up to five minutes on two cores. Processes
// that need the same program wait for each other.
func Build(ctx context.Context, program string) (string, error) {
	if program != Hubble && program != Relay {
		return "", fmt.Errorf("build %s: not one of %s, %s", program, Hubble, Relay)
	}
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, program)
	unlock, err := lock(ctx, filepath.Join(dir, "lock"))
	if err != nil {
		return "", fmt.Errorf("wait for another build in %s: %w", dir, err)
	}
	defer unlock()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	if err := compile(ctx, dir, module+"/"+program, path); err != nil {
		return "", fmt.Errorf("build %s from its Go module: %w", program, err)
	}
	return path, nil
}

// cacheDir is where the programs of this version, built by this Go, are kept.
func cacheDir() (string, error) {
	root, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a place for Hubble's programs: %w (set XDG_CACHE_HOME or HOME)", err)
	}
	h := sha256.New()
	for _, part := range [][]byte{programsMod, programsSum, []byte(runtime.Version()), []byte(runtime.GOARCH)} {
		fmt.Fprintf(h, "%d:", len(part))
		h.Write(part)
	}
	dir := filepath.Join(root, "netverdict", "hubble", fmt.Sprintf("%s-%x", Version(), h.Sum(nil)[:6]))
	return dir, os.MkdirAll(dir, 0o755)
}

// compile builds in a scratch directory, and moves only a finished program to its
// place.
func compile(ctx context.Context, dir, pkg, path string) error {
	scratch, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }() // what stays is in the way of nobody
	for name, data := range map[string][]byte{"go.mod": programsMod, "go.sum": programsSum} {
		if err := os.WriteFile(filepath.Join(scratch, name), data, 0o644); err != nil {
			return err
		}
	}
	out := filepath.Join(scratch, "program")
	// The version, as hubble/Makefile sets it: the command compares it with servers'.
	flags := "-s -w -X " + module + "/hubble/pkg.Version=" + Version()
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-mod=readonly", "-buildvcs=false", "-ldflags", flags, "-o", out, pkg)
	cmd.Dir = scratch
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	cmd.WaitDelay = 5 * time.Second
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, strings.TrimSpace(string(output)))
	}
	return os.Rename(out, path)
}

// lock takes an exclusive lock that ends with the process at the latest.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
