//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/kube/kubetest"
)

// Options configure a cluster. The zero Options are three nodes, each with an
// agent as deploy/install.yaml runs it.
type Options struct {
	// Nodes is how many; default 3, at most 250. They are node-1, node-2 and so on.
	Nodes int
	// Dir keeps logs, keys and the control plane's data. Empty: a temporary directory,
	// which Close removes. A directory named here must exist, and is left in place.
	Dir string
	// IPv6First makes IPv6 the primary family of nodes and pods; both have both. The
	// API server's Service ranges are the caller's (APIServerArgs).
	IPv6First bool
	// Name and Named are those of netlab.Options: with Named, each namespace can be
	// entered with `ip netns exec nv-<Name>-<namespace>.<pod>`.
	Name  string
	Named bool
	// AgentArgs are appended to the arguments of every agent, so they win.
	AgentArgs []string
	// NoAgent starts no agents; StartAgent can later.
	NoAgent bool
	// Services translates ClusterIPs on every node.
	Services bool
	// NoKubelet leaves pods alone: they become what the caller makes of them.
	NoKubelet bool
	// NoControllers binds no pods to nodes and finalizes no namespaces.
	NoControllers bool
	// Binary is the netverdict to run. Empty: it is built from the tree in which the
	// calling module finds github.com/netverdict/netverdict.
	Binary string
	// APIServerArgs are appended to the API server's.
	APIServerArgs []string
	// Logf tells what the stand-ins for Kubernetes components cannot do; nil: the
	// test's log, or nothing.
	Logf func(format string, args ...any)
}

// Cluster is a running cluster. Its methods may be called concurrently.
type Cluster struct {
	opts      Options
	dir       string // logs, keys, the binary
	lab       *netlab.Lab
	control   *kubetest.ControlPlane
	client    *kubernetes.Clientset
	binary    string
	agentArgs []string // as install.yaml has them, for any node
	nodes     []*Node

	stop       context.CancelFunc // of the stand-ins
	background sync.WaitGroup

	closeOnce sync.Once
	closeErr  error
	closed    chan struct{}
}

// New starts a cluster that is closed when the test ends, or is interrupted. It
// fails the test if that is not possible.
func New(t testing.TB, opts Options) *Cluster {
	t.Helper()
	if opts.Logf == nil {
		opts.Logf = t.Logf
	}
	c, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	c.CloseOnSignal()
	t.Cleanup(func() {
		if t.Failed() {
			c.logAgents(t)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// logAgents shows the end of what each agent said, for tests that failed.
func (c *Cluster) logAgents(t testing.TB) {
	t.Helper()
	for _, n := range c.nodes {
		for _, a := range n.Agents() {
			t.Logf("the end of what %s says:\n%s", a.Name, a.Stderr.tail())
		}
	}
}

// Start starts a cluster and returns when every agent is ready. It builds the
// servers and the agent if that has not been done. ctx bounds the start only.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	if opts.Nodes == 0 {
		opts.Nodes = 3
	}
	if opts.Nodes < 1 || opts.Nodes > 250 {
		return nil, fmt.Errorf("start a cluster: %d nodes: want 1 to 250", opts.Nodes)
	}
	if opts.Logf == nil {
		opts.Logf = func(string, ...any) {}
	}
	c := &Cluster{opts: opts, closed: make(chan struct{})}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start a cluster: %w", err), c.Close())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) (err error) {
	if c.dir = c.opts.Dir; c.dir == "" {
		if c.dir, err = os.MkdirTemp("", "netverdict-cluster-"); err != nil {
			return err
		}
	}
	if c.lab, err = netlab.New(netlab.Options{Name: c.opts.Name, Named: c.opts.Named}); err != nil {
		return err
	}
	build, buildCtx := errgroup.WithContext(ctx)
	build.Go(func() error { return c.startControlPlane(buildCtx) })
	build.Go(func() error { return c.findBinary(buildCtx) })
	if err := build.Wait(); err != nil {
		return err
	}
	if err := c.install(ctx); err != nil {
		return err
	}
	var background context.Context
	background, c.stop = context.WithCancel(context.Background())
	if err := c.addNodes(ctx, background); err != nil {
		return err
	}
	if !c.opts.NoControllers {
		c.startScheduler(background)
		c.startNamespaceController(background)
	}
	if c.opts.Services {
		c.startProxy(background)
	}
	if c.opts.NoAgent {
		return nil
	}
	return c.startAgents(ctx)
}

func (c *Cluster) startControlPlane(ctx context.Context) (err error) {
	var names []string
	for i := range c.opts.Nodes {
		for _, a := range c.nodeAddrs(i + 1) {
			names = append(names, a.String())
		}
	}
	c.control, err = kubetest.Start(ctx, kubetest.Options{
		Dir: filepath.Join(c.dir, "control-plane"), Names: names, APIServerArgs: c.opts.APIServerArgs,
	})
	if err != nil {
		return err
	}
	c.client, err = kubernetes.NewForConfig(c.Config())
	return err
}

// nodeAddrs are the addresses of the n-th node, from 1.
func (c *Cluster) nodeAddrs(n int) []netip.Addr {
	return primaryFirst(c.opts.IPv6First,
		netip.AddrFrom4([4]byte{172, 31, 255, byte(n)}),
		netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x6e, 2: 0x76, 15: byte(n)}))
}

// primaryFirst orders what there is of each family.
func primaryFirst[T any](six bool, v4, v6 T) []T {
	if six {
		return []T{v6, v4}
	}
	return []T{v4, v6}
}

func (c *Cluster) addNodes(ctx, background context.Context) error {
	for i := range c.opts.Nodes {
		n, err := c.addNode(ctx, i+1)
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
		if !c.opts.NoKubelet {
			n.startKubelet(background)
		}
	}
	return nil
}

func (c *Cluster) startAgents(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		group.Go(func() error {
			a, err := n.StartAgent()
			if err != nil {
				return err
			}
			return a.AwaitReady(ctx)
		})
	}
	return group.Wait()
}

// Close ends everything and removes it. It may be called more than once.
func (c *Cluster) Close() error {
	c.closeOnce.Do(func() {
		c.closeErr = c.shutDown()
		close(c.closed)
	})
	return c.closeErr
}

// shutDown ends first what would complain about the end of something else.
func (c *Cluster) shutDown() error {
	var errs []error
	if c.stop != nil {
		c.stop()
	}
	if c.lab != nil {
		errs = append(errs, c.lab.Close())
	}
	for _, n := range c.nodes {
		n.relay.stop()
	}
	c.background.Wait()
	if c.control != nil {
		errs = append(errs, c.control.Stop())
	}
	if c.dir != "" && c.opts.Dir == "" {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}

// CloseOnSignal closes the cluster when SIGINT, SIGTERM or SIGHUP arrives, and
// then lets the signal end the process. New has called it.
func (c *Cluster) CloseOnSignal() {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		defer signal.Stop(ch)
		select {
		case <-c.closed:
		case sig := <-ch:
			if err := c.Close(); err != nil {
				fmt.Fprintf(os.Stderr, "close the cluster: %v\n", err)
			}
			signal.Stop(ch)
			_ = unix.Kill(unix.Getpid(), sig.(unix.Signal)) // a signal to oneself cannot be refused
		}
	}()
}

// Nodes returns the nodes, node-1 first.
func (c *Cluster) Nodes() []*Node { return slices.Clone(c.nodes) }

// Node returns the node of a name, nil if there is none.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.nodes {
		if n.Name() == name {
			return n
		}
	}
	return nil
}

// Dir is where logs and keys are until Close.
func (c *Cluster) Dir() string { return c.dir }

// Lab is the network, for what is not a node of the cluster.
func (c *Cluster) Lab() *netlab.Lab { return c.lab }

// ControlPlane is for killing and restarting the API server.
func (c *Cluster) ControlPlane() *kubetest.ControlPlane { return c.control }

// Client may do everything.
func (c *Cluster) Client() *kubernetes.Clientset { return c.client }

// Config is that of Client. It is not limited in rate.
func (c *Cluster) Config() *rest.Config {
	cfg := c.control.Admin()
	cfg.Timeout = 0
	return cfg
}

// KubeconfigFile is the path of a kubeconfig that may do everything, for kubectl
// on this machine.
func (c *Cluster) KubeconfigFile() string { return c.control.KubeconfigFile() }

// poll waits until check is true or fails, or ctx ends.
func poll(ctx context.Context, what string, check func() (bool, error)) error {
	for {
		done, err := check()
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}
