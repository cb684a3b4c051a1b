//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		childMain(mode)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "FAIL: these tests make network namespaces: run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func newLab(t testing.TB) *Lab {
	t.Helper()
	lab, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

func addNode(t testing.TB, lab *Lab, name string, cidrs ...string) *Node {
	t.Helper()
	var opts NodeOptions
	for _, c := range cidrs {
		opts.PodCIDRs = append(opts.PodCIDRs, netip.MustParsePrefix(c))
	}
	n, err := lab.AddNode(name, opts)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func addHost(t testing.TB, n *Node, name string, addrs ...string) *Host {
	t.Helper()
	var as []netip.Addr
	for _, a := range addrs {
		as = append(as, netip.MustParseAddr(a))
	}
	h, err := n.AddHost(name, as...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// patience bounds what must happen, on a machine that is slow and busy.
const patience = time.Minute

// within bounds one exchange.
func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// serveAll starts one server of each kind.
func serveAll(t testing.TB, h *Host) {
	t.Helper()
	must[*Server](t)(h.ServeHTTP(80))
	must[*Server](t)(h.ServeTCP(7))
	must[*Server](t)(h.ServeUDP(7))
}

// exchangeAll talks every protocol from one host to each address of another.
func exchangeAll(t *testing.T, from, to *Host) {
	t.Helper()
	for _, a := range to.Addrs() {
		t.Run(fmt.Sprintf("%s to %s %s", from.Name(), to.Name(), a), func(t *testing.T) {
			ctx := within(t, patience)
			r := must[Reply](t)(from.HTTPExchange(ctx, netip.AddrPortFrom(a, 80)))
			checkReply(t, r, from, to)
			if got := must[string](t)(from.HTTPGet(ctx, netip.AddrPortFrom(a, 80))); got != to.Name() {
				t.Errorf("HTTPGet: %q, want %q", got, to.Name())
			}
			if got := must[[]byte](t)(from.TCPExchange(ctx, netip.AddrPortFrom(a, 7), []byte("tcp"))); string(got) != "tcp" {
				t.Errorf("TCP echo %q", got)
			}
			r = must[Reply](t)(from.UDPExchange(ctx, netip.AddrPortFrom(a, 7), []byte("udp\nudp")))
			checkReply(t, r, from, to)
			if string(r.Payload) != "udp\nudp" {
				t.Errorf("UDP echo %q", r.Payload)
			}
			if err := from.Ping(ctx, a); err != nil {
				t.Error(err)
			}
		})
	}
}

func checkReply(t *testing.T, r Reply, from, to *Host) {
	t.Helper()
	if r.Host != to.Name() {
		t.Errorf("answered by %q, want %q", r.Host, to.Name())
	}
	if !strings.Contains(fmt.Sprint(from.Addrs()), r.Remote.Addr().String()) || r.Remote.Port() == 0 {
		t.Errorf("the server saw %s, want one of %v", r.Remote, from.Addrs())
	}
}

func TestTraffic(t *testing.T) {
	lab := newLab(t)
	n1 := addNode(t, lab, "n1", "10.0.1.0/24", "fd00:1::/64")
	n2 := addNode(t, lab, "n2", "10.0.2.0/24", "fd00:2::/64")
	app1 := addHost(t, n1, "prod/app1", "10.0.1.1", "fd00:1::1")
	app3 := addHost(t, n1, "prod/app3", "10.0.1.3", "10.0.1.33", "fd00:1::3", "fd00:1::33")
	web := addHost(t, n2, "web", "10.0.2.1", "fd00:2::1")
	for _, h := range []*Host{app1, app3, web, n1.Host, n2.Host} {
		serveAll(t, h)
	}
	t.Run("one node", func(t *testing.T) {
		exchangeAll(t, app1, app3)
		exchangeAll(t, app3, app1)
		exchangeAll(t, app1, app1)
		exchangeAll(t, app1, n1.Host)
		exchangeAll(t, n1.Host, app1)
	})
	t.Run("not connected", func(t *testing.T) {
		for _, a := range append(web.Addrs(), n2.Addrs()...) {
			if who, err := app1.HTTPGet(within(t, 200*time.Millisecond), netip.AddrPortFrom(a, 80)); err == nil {
				t.Errorf("%s: reached %s without Connect", a, who)
			}
		}
	})
	if err := lab.Connect(n1, n2); err != nil {
		t.Fatal(err)
	}
	if err := lab.Connect(n1, n2); err != nil {
		t.Errorf("again: %v", err)
	}
	t.Run("two nodes", func(t *testing.T) {
		exchangeAll(t, app1, web)
		exchangeAll(t, web, app3)
		exchangeAll(t, n1.Host, n2.Host)
		exchangeAll(t, n1.Host, web)
		exchangeAll(t, web, n1.Host)
	})
}

// The first packet after AddHost and AddNode must pass: no duplicate address
// detection, no link that is still coming up. A lost neighbour solicitation
// would cost a second. On a busy machine something else may, but not every time.
func TestUsableAtOnce(t *testing.T) {
	lab := newLab(t)
	fastest := map[string]time.Duration{}
	n1 := addNode(t, lab, "n1", "10.0.1.0/24", "fd00:1::/64")
	a := addHost(t, n1, "a", "10.0.1.1", "fd00:1::1")
	for i := 2; i < 8; i++ {
		b := addHost(t, n1, fmt.Sprintf("b%d", i), fmt.Sprintf("10.0.1.%d", i), fmt.Sprintf("fd00:1::%d", i))
		node := addNode(t, lab, fmt.Sprintf("n%d", i), fmt.Sprintf("10.0.%d.0/24", i), fmt.Sprintf("fd00:%d::/64", i))
		c := addHost(t, node, fmt.Sprintf("c%d", i), fmt.Sprintf("10.0.%d.1", i), fmt.Sprintf("fd00:%d::1", i))
		if err := lab.Connect(n1, node); err != nil {
			t.Fatal(err)
		}
		for j, to := range append(b.Addrs(), c.Addrs()...) {
			start := time.Now()
			if err := a.Ping(within(t, patience), to); err != nil {
				t.Fatal(err)
			}
			kind := fmt.Sprintf("one node %v, IPv6 %v", j < 2, to.Is6())
			if took := time.Since(start); i == 2 || took < fastest[kind] {
				fastest[kind] = took
			}
		}
	}
	for kind, took := range fastest {
		if took > 900*time.Millisecond {
			t.Errorf("%s: a first packet was never answered before %v", kind, took)
		}
	}
}

// Methods may be called concurrently, also while the lab closes.
func TestConcurrentUse(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	server := addHost(t, n, "server", "10.0.0.1", "fd00::1")
	serveAll(t, server)
	var wg sync.WaitGroup
	warm := make(chan struct{}, 4)
	for i := range 4 {
		wg.Go(func() {
			var err error
			for range 5 {
				err = errors.Join(err, useHost(t, n, i, server))
			}
			if err != nil {
				t.Errorf("before Close: %v", err)
			}
			warm <- struct{}{}
			for useHost(t, n, i, server) == nil { // until Close comes in between
			}
		})
	}
	for range 4 {
		<-warm
	}
	if err := lab.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if _, err := n.AddHost("late", netip.MustParseAddr("10.0.9.9")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("AddHost after Close: %v", err)
	}
}

// useHost leads a host through a whole life, up to the first error.
func useHost(t *testing.T, n *Node, i int, server *Host) error {
	h, err := n.AddHost(fmt.Sprintf("h%d", i), netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}))
	if err != nil {
		return err
	}
	if _, err := h.HTTPGet(within(t, patience), netip.AddrPortFrom(server.Addr4(), 80)); err != nil {
		return err
	}
	if err := h.Command(t.Context(), "true").Run(); err != nil {
		return err
	}
	return h.Remove()
}

func TestUnownedPodAddressIsRefused(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n", "10.0.1.0/24", "fd00:1::/64")
	a := addHost(t, n, "a", "10.0.1.1", "fd00:1::1")
	if err := lab.Connect(n); err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{"10.0.1.99": "no route to host", "fd00:1::99": "network is unreachable"} {
		_, err := a.HTTPGet(within(t, patience), netip.AddrPortFrom(netip.MustParseAddr(to), 80))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", to, err, want)
		}
	}
}

func TestRemoveAndReuse(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	client := addHost(t, n, "client", "10.0.0.1", "fd00::1")
	old := addHost(t, n, "old", "10.0.0.2", "fd00::2")
	serveAll(t, old)
	exchangeAll(t, client, old)
	if _, err := n.AddHost("thief", old.Addr4()); err == nil || !strings.Contains(err.Error(), "belongs to old") {
		t.Errorf("second owner of an address: %v", err)
	}
	for range 2 {
		if err := old.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := old.ServeHTTP(80); !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve in a removed host: %v", err)
	}
	if _, err := client.HTTPGet(within(t, 200*time.Millisecond), netip.AddrPortFrom(old.Addr4(), 80)); err == nil {
		t.Error("a removed host answered")
	}
	reborn := addHost(t, n, "new", "10.0.0.2", "fd00::2")
	serveAll(t, reborn)
	exchangeAll(t, client, reborn)
	addHost(t, n, "old", "10.0.0.3")
}

func TestRemoveNode(t *testing.T) {
	lab := newLab(t)
	n1 := addNode(t, lab, "n1", "10.0.1.0/24")
	n2 := addNode(t, lab, "n2", "10.0.2.0/24")
	pod := addHost(t, n2, "pod", "10.0.2.1")
	if err := errors.Join(lab.Connect(n1, n2), n2.Remove(), n2.Remove()); err != nil {
		t.Fatal(err)
	}
	if err := pod.Do(func() error { return nil }); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the removed node's host: %v", err)
	}
	if _, err := n2.AddHost("late", netip.MustParseAddr("10.0.2.2")); err == nil {
		t.Error("a removed node took a host")
	}
	n2 = addNode(t, lab, "n2", "10.0.2.0/24")
	pod = addHost(t, n2, "pod", "10.0.2.1")
	serveAll(t, pod)
	if err := lab.Connect(n2); err != nil {
		t.Fatal(err)
	}
	exchangeAll(t, n1.Host, pod)
}

func TestRefusals(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n", "10.0.1.0/24")
	bare := addNode(t, lab, "bare")
	addHost(t, bare, "bare-pod", "10.9.9.9")
	ip := netip.MustParseAddr
	tests := []struct {
		name, want string
		err        error
	}{
		{"bad name", "host name", second(n.AddHost("a b", ip("10.0.1.1")))},
		{"name twice", "in use", second(n.AddHost("bare-pod", ip("10.0.1.1")))},
		{"no address", "at least one", second(n.AddHost("x"))},
		{"outside", "outside the node's pod CIDRs", second(n.AddHost("x", ip("10.0.2.1")))},
		{"loopback", "unicast", second(bare.AddHost("x", ip("127.0.0.1")))},
		{"mapped", "unicast", second(bare.AddHost("x", ip("::ffff:10.0.0.1")))},
		{"zero", "unicast", second(bare.AddHost("x", netip.Addr{}))},
		{"host bits", "without host bits", second(lab.AddNode("x", NodeOptions{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}}))},
		{"connect without CIDR", "set NodeOptions.PodCIDRs", lab.Connect(bare)},
		{"name lookup", "dial tcp", second(n.DialContext(t.Context(), "tcp", "localhost:80"))},
		{"lab name", "letters and digits", second(New(Options{Name: "a-b"}))},
	}
	for _, tt := range tests {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q in it", tt.name, tt.err, tt.want)
		}
	}
	addHost(t, n, "x", "10.0.1.1") // nothing of the refused ones stayed
}

func second[T any](_ T, err error) error { return err }

func TestRouterEnd(t *testing.T) {
	tests := map[string]string{"a": "v-a", "ns/app1": "v-ns.app1", "thirteen-char": "v-thirteen-char"}
	for in, want := range tests {
		if got := routerEnd(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	long1, long2 := routerEnd("production/frontend-1"), routerEnd("production/frontend-2")
	if long1 == long2 || len(long1) > 15 || len(long2) > 15 {
		t.Errorf("long names: %s, %s", long1, long2)
	}
}

func TestSetupTime(t *testing.T) {
	begin := time.Now()
	lab := newLab(t)
	n := addNode(t, lab, "n")
	for i := range 10 {
		addHost(t, n, fmt.Sprintf("h%d", i), fmt.Sprintf("10.0.0.%d", i+1), fmt.Sprintf("fd00::%x", i+1))
	}
	built := time.Since(begin)
	begin = time.Now()
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("a node and 10 hosts: up in %s, down in %s", built, time.Since(begin))
}

func TestNoGoroutineLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	lab := newLab(t)
	lab.CloseOnSignal(t.Context())
	n := addNode(t, lab, "n")
	a, b := addHost(t, n, "a", "10.0.0.1", "fd00::1"), addHost(t, n, "b", "10.0.0.2", "fd00::2")
	serveAll(t, b)
	must[*Server](t)(b.ServePush(9, time.Hour))
	exchangeAll(t, a, b)
	c := must[net.Conn](t)(a.DialContext(t.Context(), "tcp", "10.0.0.2:9")) // idle: only Close ends it
	defer c.Close()
	h := must[net.Conn](t)(a.DialContext(t.Context(), "tcp", "10.0.0.2:80"))
	defer h.Close()
	must[*Capture](t)(a.Capture(nil))
	if err := a.Command(t.Context(), "sleep", "1000").Start(); err != nil {
		t.Fatal(err)
	}
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	// os/signal keeps one goroutine for the process once Notify was called.
	eventually(t, func() error {
		if now := runtime.NumGoroutine(); now > before+1 {
			buf := make([]byte, 1<<20)
			return fmt.Errorf("%d goroutines before, %d after:\n%s", before, now, buf[:runtime.Stack(buf, true)])
		}
		return nil
	})
}

func eventually(t testing.TB, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
