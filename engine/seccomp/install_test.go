//go:build linux

package seccomp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// confinedEnv makes this program confine itself by the named profile and try what it may
// and may not do.
const confinedEnv = "SECCOMP_TEST_CONFINED"

func TestMain(m *testing.M) {
	name := os.Getenv(confinedEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := try(name); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// TestKernelRefuses what the profiles refuse, to a process that had threads before it was confined, and to
// what it runs; the rest works.
func TestKernelRefuses(t *testing.T) {
	t.Parallel()
	for name := range profiles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
			cmd.Env = append(os.Environ(), confinedEnv+"="+name, "TMPDIR="+t.TempDir())
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v:\n%s", err, out)
			}
		})
	}
}

func try(name string) error {
	profile := profiles[name]()
	stop := make(chan struct{})
	defer close(stop)
	for range 3 {
		go func() {
			runtime.LockOSThread()
			<-stop
		}()
	}
	if err := profile.Install(); err != nil {
		return err
	}
	errs := []error{everyThreadIsConfined(), refuses(profile), works()}
	if name != "auditing" {
		errs = append(errs, childrenAreConfined())
	}
	return errors.Join(errs...)
}

func everyThreadIsConfined() error {
	files, err := filepath.Glob("/proc/self/task/*/status")
	if err == nil && len(files) < 4 {
		err = fmt.Errorf("threads %v: want at least 4", files)
	}
	for _, f := range files {
		text, readErr := os.ReadFile(f)
		if readErr != nil {
			return readErr
		}
		for _, want := range []string{"\nSeccomp:\t2\n", "\nNoNewPrivs:\t1\n"} {
			if !strings.Contains(string(text), want) {
				err = errors.Join(err, fmt.Errorf("%s lacks %q", f, want))
			}
		}
	}
	return err
}

// refuses makes every call by name that is forbidden, with arguments that would do nothing,
// and every one that a condition excludes.
func refuses(p *Profile) (err error) {
	for _, r := range p.Rules {
		for _, name := range r.Calls {
			n, ok := architectures[0].table.SyscallNames[name]
			if runtime.GOARCH == "arm64" {
				n, ok = architectures[1].table.SyscallNames[name]
			}
			if want, refused := r.Action.refused(); ok && refused {
				err = errors.Join(err, demand(name, want, uintptr(n)))
			}
		}
	}
	for _, c := range []struct {
		what   string
		number uintptr
		args   []uintptr
	}{
		{"socket(AF_ALG)", unix.SYS_SOCKET, []uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}},
		{"socket(AF_VSOCK)", unix.SYS_SOCKET, []uintptr{unix.AF_VSOCK, unix.SOCK_STREAM, 0}},
		{"socket(NETLINK_AUDIT)", unix.SYS_SOCKET, []uintptr{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT}},
		{"clone(CLONE_NEWNET)", unix.SYS_CLONE, []uintptr{unix.CLONE_NEWNET | uintptr(unix.SIGCHLD)}},
		{"clone(CLONE_NEWUSER)", unix.SYS_CLONE, []uintptr{unix.CLONE_NEWUSER | uintptr(unix.SIGCHLD)}},
		{"ioctl(TIOCSTI)", unix.SYS_IOCTL, []uintptr{0, unix.TIOCSTI}},
		{"a call that is not invented yet", 5000, nil},
	} {
		err = errors.Join(err, demand(c.what, unix.ENOSYS, c.number, c.args...))
	}
	return err
}

func demand(what string, want unix.Errno, number uintptr, args ...uintptr) error {
	args = append(args, 0, 0, 0)
	if _, _, got := unix.RawSyscall(number, args[0], args[1], args[2]); got != want {
		return fmt.Errorf("%s: %w, want %w", what, got, want)
	}
	return nil
}

// works does some of what agents do.
func works() error {
	file := filepath.Join(os.TempDir(), "file")
	if err := errors.Join(os.WriteFile(file, []byte("x"), 0o644), os.Rename(file, file+"2"), os.Remove(file+"2")); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	go func() { _ = http.Serve(l, http.NotFoundHandler()) }()
	resp, err := http.Get("http://" + l.Addr().String())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err = io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	_, err = net.Interfaces()
	return err
}

// childrenAreConfined: a program that is asked for a namespace must not get one.
func childrenAreConfined() error {
	out, err := exec.Command("cat", "/proc/self/status").Output()
	if err != nil || !strings.Contains(string(out), "\nSeccomp:\t2\n") {
		return fmt.Errorf("a child is not confined (%w):\n%s", err, out)
	}
	var failed *exec.ExitError
	out, err = exec.Command("unshare", "--net", "true").CombinedOutput()
	if !errors.As(err, &failed) || !strings.Contains(string(out), syscall.EPERM.Error()) && !strings.Contains(strings.ToLower(string(out)), "not permitted") {
		return fmt.Errorf("unshare --net: %w, want it refused: %s", err, out)
	}
	return nil
}

// TestCannotInstall: who asks for the impossible is told.
func TestCannotInstall(t *testing.T) {
	p := profile([]Rule{allowIf("", "read", is(6, 0))})
	if err := p.Install(); err == nil {
		t.Error("an impossible profile was installed")
	}
	if err := load([]bpf.RawInstruction{{}}, 0); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "CONFIG_SECCOMP") {
		t.Errorf("a program that never returns: %v", err)
	}
}
