//go:build linux

package netlab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary play a program that uses a lab; its value says
// how the program ends.
const childEnv = "NETLAB_TEST_CHILD"

// traces is what a lab could leave behind.
type traces struct {
	Lab    string // name, for files in /run/netns
	Inodes []uint64
	Pids   []int
	Links  []string
}

// populate fills a lab with one of everything that could stay.
func populate(lab *Lab) (*traces, error) {
	n, err := lab.AddNode("cleanup-node", NodeOptions{})
	if err != nil {
		return nil, err
	}
	h, err := n.AddHost("cleanup-host", netip.MustParseAddr("10.0.0.1"))
	if err != nil {
		return nil, err
	}
	cmd := h.Command(context.Background(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := h.ServeHTTP(80); err != nil {
		return nil, err
	}
	return &traces{
		Lab:    lab.opts.Name,
		Inodes: []uint64{lab.fabric.ns.inode, n.ns.inode, h.ns.inode},
		Pids:   []int{cmd.Process.Pid},
		Links:  []string{n.Interface(), h.Interface()},
	}, nil
}

// remains returns an error that names the first thing left behind.
func (tr *traces) remains() error {
	if err := alive(tr.Pids); err != nil {
		return err
	}
	if files, _ := filepath.Glob(namePrefix(tr.Lab) + "*"); len(files) > 0 {
		return fmt.Errorf("left in %s: %v", netnsDir, files)
	}
	for _, link := range tr.Links {
		if _, err := netlink.LinkByName(link); err == nil {
			return fmt.Errorf("link %s is in the root namespace", link)
		}
	}
	for _, inode := range tr.Inodes {
		if holder := holderOf(inode); holder != "" {
			return fmt.Errorf("network namespace %d is held by %s", inode, holder)
		}
	}
	return nil
}

// holderOf looks for a mount, thread or descriptor of a network namespace
// anywhere on the machine.
func holderOf(inode uint64) string {
	ns := fmt.Sprintf("net:[%d]", inode)
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), ns) {
		return "a mount"
	}
	for _, pattern := range []string{"/proc/[0-9]*/task/*/ns/net", "/proc/[0-9]*/fd/*"} {
		links, _ := filepath.Glob(pattern)
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && target == ns {
				return link
			}
		}
	}
	return ""
}

func TestCloseLeavesNothing(t *testing.T) {
	for _, named := range []bool{false, true} {
		lab := must[*Lab](t)(New(Options{Name: testLabName(), Named: named}))
		tr, err := populate(lab)
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.remains(); err == nil {
			t.Fatal("nothing to clean up: the test sees nothing")
		}
		for range 2 {
			if err := lab.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := tr.remains(); err != nil {
			t.Errorf("named %v: %v", named, err)
		}
	}
}

func testLabName() string { return fmt.Sprintf("test%d", os.Getpid()) }

func TestNamed(t *testing.T) {
	name := testLabName()
	lab := must[*Lab](t)(New(Options{Name: name, Named: true}))
	defer lab.Close()
	n := addNode(t, lab, "n")
	pod := addHost(t, n, "ns/pod", "10.0.0.1")
	out := must[[]byte](t)(exec.Command("ip", "netns", "exec", "nv-"+name+"-ns.pod", "ip", "addr", "show", "eth0").Output())
	if !strings.Contains(string(out), "10.0.0.1/32") {
		t.Errorf("ip netns exec: %s", out)
	}
	if _, err := New(Options{Name: name, Named: true}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second lab of the name: %v", err)
	}
	if pod.Path() != "/run/netns/nv-"+name+"-ns.pod" {
		t.Errorf("path %s", pod.Path())
	}
	if err := pod.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(pod.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

func TestPathForNsenter(t *testing.T) {
	lab := newLab(t)
	h := addHost(t, addNode(t, lab, "n"), "h", "10.0.0.1")
	out := must[[]byte](t)(exec.Command("nsenter", "--net="+h.Path(), "readlink", "/proc/self/ns/net").Output())
	if got := strings.TrimSpace(string(out)); got != fmt.Sprintf("net:[%d]", h.ns.inode) {
		t.Errorf("nsenter got to %s, want %d", got, h.ns.inode)
	}
}

// childMain is the program; the modes are explained where they are used.
func childMain(mode string) {
	name := fmt.Sprintf("test%d", os.Getpid())
	if given := os.Getenv(childEnv + "_NAME"); given != "" {
		name = given
	}
	lab, err := New(Options{Name: name, Named: mode != "kill"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer lab.Close()
	if mode == "signal" {
		lab.CloseOnSignal(context.Background())
	}
	tr, err := populate(lab)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(tr)
	}
	if err != nil {
		panic(err)
	}
	switch mode {
	case "panic":
		_ = lab.nodes[0].Do(func() error { panic("on purpose") })
	case "exit":
		lab.Close()
		os.Exit(0)
	}
	time.Sleep(time.Minute)
	os.Exit(3)
}

// startChild runs the program until it has said what it made.
func startChild(t *testing.T, mode string, env ...string) (*exec.Cmd, *traces) {
	t.Helper()
	// nohup makes the tests ignore SIGHUP, and children inherit that.
	cmd := exec.CommandContext(t.Context(), "env", "--default-signal=HUP", os.Args[0])
	cmd.Env = append(os.Environ(), append(env, childEnv+"="+mode)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		cmd.Wait()
		t.Fatalf("child %s: %v: %s", mode, err, stderr.String())
	}
	var tr traces
	if err := json.Unmarshal(line, &tr); err != nil {
		t.Fatalf("child %s: %v: %s", mode, err, line)
	}
	return cmd, &tr
}

func TestDeathLeavesNothing(t *testing.T) {
	tests := []struct {
		mode string
		sig  unix.Signal // sent, and expected as cause of death; 0: none
	}{
		{"signal", unix.SIGINT},
		{"signal", unix.SIGTERM},
		{"signal", unix.SIGHUP},
		{"kill", unix.SIGKILL}, // anonymous namespaces
		{"panic", 0},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s %v", tt.mode, tt.sig), func(t *testing.T) {
			cmd, tr := startChild(t, tt.mode)
			if tt.sig != 0 {
				if err := tr.remains(); err == nil {
					t.Fatal("nothing to clean up: the test sees nothing")
				}
				cmd.Process.Signal(tt.sig)
			}
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) {
				t.Fatalf("ended with %v", err)
			}
			status := exit.Sys().(interface {
				Signaled() bool
				ExitStatus() int
			})
			if tt.sig != 0 && !status.Signaled() || tt.sig == 0 && status.ExitStatus() != 2 {
				t.Errorf("ended with %v", exit)
			}
			eventually(t, tr.remains)
		})
	}
}

// What a killed Named lab leaves is removed by the next one of that name.
func TestNextLabRemovesStaleNames(t *testing.T) {
	name := fmt.Sprintf("stale%d", os.Getpid())
	cmd, tr := startChild(t, "kill-named", childEnv+"_NAME="+name)
	cmd.Process.Kill()
	cmd.Wait()
	if err := tr.remains(); err == nil {
		t.Fatal("a killed named lab left nothing: the test sees nothing")
	}
	lab := must[*Lab](t)(New(Options{Name: name, Named: true}))
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, tr.remains)
}

// Without CAP_SYS_ADMIN, New says what is missing. The child inherits the
// reduced bounding set of the thread that forks it.
func TestUnprivileged(t *testing.T) {
	var out []byte
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err = unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
			return
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"=exit")
		out, err = cmd.CombinedOutput()
	}()
	<-done
	if err == nil || !strings.Contains(string(out), "needs CAP_SYS_ADMIN") || !strings.Contains(string(out), "run as root") {
		t.Errorf("%v: %s", err, out)
	}
}
