package deploytest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/netverdict/netverdict/engine/seccomp/seccomptest"
)

// containerEnv carries a container, as JSON, to the process that becomes it.
const containerEnv = "DEPLOYTEST_CONTAINER"

// container is what a kubelet and a container runtime would make of a pod's
// container: the parts that decide whether the program can do its work.
type container struct {
	Program      string // outside, becomes /netverdict
	Host         string // the node's root directory
	Root         string // an empty directory
	Command      []string
	Env          []string
	Mounts       []mount
	ReadOnly     bool
	NoEscalation bool
	Capabilities []string // without CAP_; all others are dropped
	Seccomp      string   // runtimeDefault, or a profile as JSON
	Watch        bool     // calls that the profile lacks are made, and told to the test
}

// mount is a volume in its place; without Source an empty tmpfs.
type mount struct{ Source, Target string }

// containerOf reads a container of a pod. host stands for the node's root directory;
// token is a directory with a ServiceAccount's credentials, or empty.
func containerOf(t *testing.T, pod corev1.PodSpec, c corev1.Container, node, host, token string) container {
	t.Helper()
	sc := c.SecurityContext
	if !pod.HostNetwork || sc.RunAsUser == nil || *sc.RunAsUser != 0 || *sc.Privileged || len(sc.Capabilities.Drop) != 1 || sc.Capabilities.Drop[0] != "ALL" {
		t.Fatalf("container %s: this is not what is played here: %+v", c.Name, sc)
	}
	out := container{
		Program: builtProgram(t), Host: host, Root: t.TempDir(),
		Command:  append([]string{"/netverdict"}, c.Args...),
		ReadOnly: *sc.ReadOnlyRootFilesystem, NoEscalation: !*sc.AllowPrivilegeEscalation,
		Seccomp: seccompOf(t, sc.SeccompProfile, host),
		Env:     []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=" + node},
	}
	for _, name := range sc.Capabilities.Add {
		out.Capabilities = append(out.Capabilities, string(name))
	}
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom != nil {
			if value = node; e.ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
				t.Fatalf("environment variable %s: unknown source", e.Name)
			}
		}
		out.Env = append(out.Env, e.Name+"="+value)
		for i := range out.Command {
			out.Command[i] = strings.ReplaceAll(out.Command[i], "$("+e.Name+")", value)
		}
	}
	for _, m := range c.VolumeMounts {
		out.Mounts = append(out.Mounts, mount{volumeSource(t, pod, m.Name, host), m.MountPath})
	}
	if token != "" {
		out.Mounts = append(out.Mounts, mount{token, "/var/run/secrets/kubernetes.io/serviceaccount"})
	}
	return out
}

// volumeSource is what is mounted for a volume.
func volumeSource(t *testing.T, pod corev1.PodSpec, name, host string) string {
	t.Helper()
	for _, v := range pod.Volumes {
		switch {
		case v.Name != name:
		case v.EmptyDir != nil:
			return ""
		case v.HostPath != nil && *v.HostPath.Type == corev1.HostPathDirectoryOrCreate:
			path := filepath.Join(host, v.HostPath.Path)
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			return path
		case v.HostPath != nil && *v.HostPath.Type == corev1.HostPathFileOrCreate:
			path := filepath.Join(host, v.HostPath.Path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			return path
		}
	}
	t.Fatalf("volume %s is missing or of an unknown kind", name)
	return ""
}

// seccompOf reads a profile from where a kubelet has them.
func seccompOf(t *testing.T, p *corev1.SeccompProfile, host string) string {
	t.Helper()
	switch p.Type {
	case corev1.SeccompProfileTypeRuntimeDefault:
		return runtimeDefault
	case corev1.SeccompProfileTypeLocalhost:
		text, err := os.ReadFile(filepath.Join(host, kubeletSeccomp, *p.LocalhostProfile))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	default:
		t.Fatalf("seccomp profile %s: this is not what is played here", p.Type)
		return ""
	}
}

// running is a container that was started.
type running struct {
	watched *seccomptest.Watched // nil: it is not
	cmd     *exec.Cmd
	host    string // root directory of its node
	output  *lockedBuffer
	ended   chan struct{}
	err     error // of the process, once ended
}

// start runs a container until the test ends at the latest.
func (c container) start(t *testing.T) *running {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{cmd: exec.Command("/proc/self/exe"), host: c.Host, output: &lockedBuffer{}, ended: make(chan struct{})}
	r.cmd.Env = append(os.Environ(), containerEnv+"="+string(text))
	r.cmd.Stdout, r.cmd.Stderr = r.output, r.output
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if c.Watch {
		r.watched = seccomptest.Watch(t, r.cmd)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if c.Watch {
		r.watched.Follow(t)
	}
	go func() {
		r.err = r.cmd.Wait()
		close(r.ended)
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill() // may have ended
		<-r.ended
	})
	return r
}

func (r *running) hasEnded() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// wait returns how the container ended: nil for exit code 0.
func (r *running) wait(t *testing.T, atMost time.Duration) error {
	t.Helper()
	select {
	case <-r.ended:
		return r.err
	case <-time.After(atMost):
		t.Fatalf("still running after %v; output:\n%s", atMost, r.output)
		return nil
	}
}

// exec runs a command in a running container, as kubectl exec does.
func (r *running) exec(t *testing.T, args ...string) (string, error) {
	t.Helper()
	pid := fmt.Sprint(r.cmd.Process.Pid)
	cmd := exec.CommandContext(t.Context(), "nsenter", append([]string{"-t", pid, "-m", "-p", "-r", "-w", "--"}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// become turns this process, which is alone in a PID and mount namespace, into the
// container. It returns only what went wrong.
func become(text string) error {
	var c container
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	runtime.LockOSThread() // privileges belong to threads, and this one executes the program
	if err := c.makeRoot(); err != nil {
		return err
	}
	if err := unix.Chroot(c.Root); err != nil {
		return fmt.Errorf("chroot %s: %w", c.Root, err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := c.dropPrivileges(); err != nil {
		return err
	}
	return fmt.Errorf("execute %q: %w", c.Command, unix.Exec(c.Command[0], c.Command, c.Env))
}

// makeRoot plays the image: this machine's Debian, whose iptables is the image's too,
// and nothing else that could be written or found by accident.
func (c container) makeRoot() error {
	err := errors.Join(
		unix.Mount("tmpfs", c.Root, "tmpfs", 0, ""),
		os.MkdirAll(filepath.Join(c.Root, "proc"), 0o755),
		os.MkdirAll(filepath.Join(c.Root, "tmp"), 0o1777),
		os.MkdirAll(filepath.Join(c.Root, "run"), 0o755),
		os.MkdirAll(filepath.Join(c.Root, "var"), 0o755),
		os.Symlink("/run", filepath.Join(c.Root, "var", "run")),
	)
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		err = errors.Join(err, os.Symlink("usr/"+dir, filepath.Join(c.Root, dir)))
	}
	err = errors.Join(err,
		unix.Mount("proc", filepath.Join(c.Root, "proc"), "proc", 0, ""),
		c.bind("/usr", "/usr", true), c.bind("/etc", "/etc", true), c.bind("/sys", "/sys", true), c.bind("/dev", "/dev", false),
		c.bind(filepath.Join(c.Root, "proc", "sys"), "/proc/sys", true), // as runtimes do
		c.bind(c.Program, "/netverdict", true),
	)
	for _, m := range c.Mounts {
		target := strings.Replace(m.Target, "/var/run/", "/run/", 1) // a link that means the host's until chroot
		if m.Source != "" {
			err = errors.Join(err, c.bind(m.Source, target, false))
			continue
		}
		at := filepath.Join(c.Root, target)
		err = errors.Join(err, os.MkdirAll(at, 0o755), unix.Mount("tmpfs", at, "tmpfs", 0, ""))
	}
	if c.ReadOnly {
		err = errors.Join(err, unix.Mount("", c.Root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	}
	return err
}

// bind mounts a file or directory of this machine in the container's root.
func (c container) bind(source, target string, readOnly bool) error {
	at := filepath.Join(c.Root, target)
	info, err := os.Stat(source)
	if err == nil && info.IsDir() {
		err = os.MkdirAll(at, 0o755)
	} else if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, nil, 0o755))
	}
	if err == nil {
		err = unix.Mount(source, at, "", unix.MS_BIND, "")
	}
	if err == nil && readOnly {
		err = unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	if err != nil {
		return fmt.Errorf("mount %s as %s: %w", source, target, err)
	}
	return nil
}

// capabilities are those that the manifests may name (linux/capability.h).
var capabilities = map[string]uintptr{"NET_ADMIN": unix.CAP_NET_ADMIN, "NET_RAW": unix.CAP_NET_RAW, "SYS_NICE": unix.CAP_SYS_NICE}

// dropPrivileges leaves the next program, which root executes, the capabilities of
// the bounding set and no others (capabilities(7), "root").
func (c container) dropPrivileges() error {
	keep := map[uintptr]bool{}
	for _, name := range c.Capabilities {
		number, ok := capabilities[name]
		if !ok {
			return fmt.Errorf("unknown capability %s", name)
		}
		keep[number] = true
	}
	for n := uintptr(0); n <= unix.CAP_LAST_CAP; n++ {
		if keep[n] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", n, err)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&header, &data[0]); err != nil {
		return err
	}
	if c.NoEscalation {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
	}
	switch c.Seccomp {
	case "":
		return nil
	case runtimeDefault:
		return confine(c.Capabilities)
	}
	profile, err := parseProfile([]byte(c.Seccomp))
	if err != nil {
		return err
	}
	return seccomptest.Install(profile)
}
