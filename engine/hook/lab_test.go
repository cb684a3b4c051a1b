package hook

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary stand in for an unprivileged agent.
func TestMain(m *testing.M) {
	if os.Getenv(reexec) == "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // capabilities are the thread's
	dropCapabilities(strings.Fields(os.Getenv(reexecDrop)))
	_, err := Open(testConfig(NFT))
	fmt.Println(err)
}

const (
	reexec     = "NETVERDICT_HOOK_TEST_OPEN"
	reexecDrop = "NETVERDICT_HOOK_TEST_DROP" // numbers of capabilities
)

func dropCapabilities(numbers []string) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	for _, text := range numbers {
		n, parseErr := strconv.Atoi(text)
		err = errors.Join(err, parseErr)
		data[n/32].Effective &^= 1 << (n % 32)
	}
	if err = errors.Join(err, unix.Capset(&header, &data[0])); err != nil {
		fmt.Println("drop capabilities:", err)
		os.Exit(1)
	}
}

func testConfig(b Backend) Config {
	return Config{
		Backend: b, IPv4: true, IPv6: true,
		QueueNum: 71, AllowTimeout: time.Minute, DenyTimeout: 30 * time.Second,
		MaxElem: 1024, AskLimit: 5000,
	}
}

// newNamespace makes a network namespace that ends with the test; its loopback
// interface is up.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("network namespaces and packet filter rules need root: run this test as root")
	}
	var ns *namespace
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends in the namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			ns, err = currentNamespace()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { ns.file.Close() })
	// Without duplicate address detection IPv6 works from the first packet on.
	ns.run(t, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0; ip link set lo up")
	return ns
}

// in runs f in the namespace and fails the test with its error.
func (n *namespace) in(t testing.TB, f func() error) {
	t.Helper()
	if err := n.do(f); err != nil {
		t.Fatal(err)
	}
}

// run runs a shell script in the namespace and returns its output.
func (n *namespace) run(t testing.TB, script string) string {
	t.Helper()
	var out []byte
	n.in(t, func() (err error) {
		out, err = exec.Command("sh", "-ec", script).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", script, err, out)
		}
		return nil
	})
	return string(out)
}

// open opens a hook in the namespace.
func (n *namespace) open(t testing.TB, cfg Config) *Hook {
	t.Helper()
	var h *Hook
	n.in(t, func() (err error) {
		h, err = Open(cfg)
		return err
	})
	t.Cleanup(h.close)
	return h
}

// installed opens a hook and installs it.
func (n *namespace) installed(t testing.TB, cfg Config, p Policed) *Hook {
	t.Helper()
	h := n.open(t, cfg)
	if err := h.Install(p); err != nil {
		t.Fatal(err)
	}
	return h
}

var volatile = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`)

// rules returns what iptables-save prints for both families, without what
// changes by itself.
func (n *namespace) rules(t testing.TB, b Backend) string {
	t.Helper()
	out := n.run(t, fmt.Sprintf("iptables-%[1]v-save; ip6tables-%[1]v-save", b))
	return volatile.ReplaceAllString(out, "")
}

func (n *namespace) leftovers(t testing.TB, cfg Config) (left []string) {
	t.Helper()
	n.in(t, func() (err error) {
		left, err = Leftovers(cfg)
		return err
	})
	return left
}

// entries returns what ipset itself says is in a set, one line each.
func (n *namespace) entries(t testing.TB, set string) string {
	t.Helper()
	return strings.TrimSpace(n.run(t, "ipset -o save save "+set+" | sed -n 's/^add [^ ]* //p' | cut -d' ' -f1 | sort"))
}

// bothBackends runs a test for each backend.
func bothBackends(t *testing.T, test func(*testing.T, Backend)) {
	for _, b := range [...]Backend{NFT, Legacy} {
		t.Run(b.String(), func(t *testing.T) { test(t, b) })
	}
}
