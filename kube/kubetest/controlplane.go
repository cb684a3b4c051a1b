package kubetest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// Component is one of the servers.
type Component string

const (
	Etcd      Component = etcdProgram
	APIServer Component = apiserverProgram
)

// Options say how a control plane is run; the zero Options are fine for most tests.
type Options struct {
	// Dir keeps data, certificates, logs and admin.kubeconfig. Empty: a temporary
	// directory, which Stop removes. A directory named here is left in place.
	Dir string
	// Listen is the address of the API server; default 127.0.0.1. etcd always
	// listens on 127.0.0.1.
	Listen netip.Addr
	// Names are further host names and addresses that clients use for the API
	// server; they go into its certificate.
	Names []string
	// APIServerArgs are appended to the API server's, so they win.
	APIServerArgs []string
	// StartTimeout bounds the time from start to readiness, not the build;
	// default 90 s, for busy machines. Two seconds are usual.
	StartTimeout time.Duration
}

// ControlPlane is a running etcd and kube-apiserver. Its methods may be called
// from any goroutine.
type ControlPlane struct {
	opts      Options
	dir       string
	authority *authority
	admin     *rest.Config
	ports     map[string]*port // by use
	programs  map[Component]string

	mu      sync.Mutex // one start or stop at a time
	running map[Component]*process
	stopped bool
}

// New starts a control plane that is stopped when the test ends. It fails the test
// if that is not possible.
func New(t testing.TB, opts Options) *ControlPlane {
	t.Helper()
	cp, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cp.Stop(); err != nil {
			t.Error(err)
		}
	})
	return cp
}

// Start starts a control plane and returns when it is ready: bootstrapped RBAC
// included. It builds the servers if that has not been done. ctx bounds the start
// only; the servers run until Stop, or until this process ends.
func Start(ctx context.Context, opts Options) (*ControlPlane, error) {
	cp, err := prepare(ctx, opts)
	if err == nil {
		err = cp.Resume(ctx)
	}
	if err != nil && cp != nil {
		err = errors.Join(err, cp.Stop())
	}
	if err != nil {
		return nil, fmt.Errorf("start a control plane: %w", err)
	}
	return cp, nil
}

// prepare does everything but starting. The control plane it returns with an error
// is to be stopped.
func prepare(ctx context.Context, opts Options) (*ControlPlane, error) {
	if !opts.Listen.IsValid() {
		opts.Listen = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if opts.StartTimeout <= 0 {
		opts.StartTimeout = 90 * time.Second
	}
	cp := &ControlPlane{opts: opts, dir: opts.Dir, running: map[Component]*process{}, programs: map[Component]string{}}
	for _, c := range []Component{Etcd, APIServer} {
		path, err := Build(ctx, string(c))
		if err != nil {
			return nil, err
		}
		cp.programs[c] = path
	}
	var err error
	if cp.dir == "" {
		if cp.dir, err = os.MkdirTemp("", "kubetest-"); err != nil {
			return nil, err
		}
	}
	if err := cp.reservePorts(); err != nil {
		return cp, err
	}
	return cp, cp.writeCredentials()
}

func (cp *ControlPlane) reservePorts() error {
	cp.ports = map[string]*port{}
	for use, addr := range map[string]netip.Addr{"client": loopback, "peer": loopback, "api": cp.opts.Listen} {
		p, err := reserve(addr)
		if err != nil {
			return err
		}
		cp.ports[use] = p
	}
	return nil
}

// writeCredentials makes the keys and certificates, and the files the servers read.
func (cp *ControlPlane) writeCredentials() error {
	var err error
	if cp.authority, err = newAuthority(); err != nil {
		return err
	}
	serving, err := cp.authority.server(cp.identities())
	if err != nil {
		return err
	}
	if cp.admin, err = cp.RESTConfig(Administrator); err != nil {
		return err
	}
	tokens, err := signingKey()
	if err != nil {
		return err
	}
	kubeconfig, err := Kubeconfig(cp.admin)
	if err != nil {
		return err
	}
	return cp.writeFiles(map[string][]byte{
		caFile: cp.authority.pem, certFile: serving.cert, keyFile: serving.key,
		clientCertFile: cp.admin.CertData, clientKeyFile: cp.admin.KeyData,
		tokenKeyFile: tokens, kubeconfigFile: kubeconfig,
	})
}

func (cp *ControlPlane) writeFiles(files map[string][]byte) error {
	if err := os.MkdirAll(cp.dir, 0o755); err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(cp.path(name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// identities are the addresses and names in the serving certificate.
func (cp *ControlPlane) identities() (addrs []netip.Addr, names []string) {
	addrs = []netip.Addr{loopback, netip.IPv6Loopback(), cp.opts.Listen}
	names = []string{"localhost", "kubernetes.default.svc"}
	for _, name := range cp.opts.Names {
		if addr, err := netip.ParseAddr(name); err == nil {
			addrs = append(addrs, addr)
		} else {
			names = append(names, name)
		}
	}
	return addrs, names
}

func (cp *ControlPlane) path(name string) string { return filepath.Join(cp.dir, name) }

// URL is where the API server answers, now and after any restart.
func (cp *ControlPlane) URL() string {
	return "https://" + netip.AddrPortFrom(cp.reachable(), cp.ports["api"].number).String()
}

// reachable is the listening address as this host's clients write it.
func (cp *ControlPlane) reachable() netip.Addr {
	if cp.opts.Listen.IsUnspecified() {
		return loopback
	}
	return cp.opts.Listen
}

// Dir is the directory of the control plane.
func (cp *ControlPlane) Dir() string { return cp.dir }

// KubeconfigFile is the path of a kubeconfig that may do everything.
func (cp *ControlPlane) KubeconfigFile() string { return cp.path(kubeconfigFile) }

// Log returns what a server has logged so far, over all its runs.
func (cp *ControlPlane) Log(c Component) ([]byte, error) { return os.ReadFile(cp.logPath(c)) }

func (cp *ControlPlane) logPath(c Component) string { return cp.path(string(c) + ".log") }

// Stop ends the servers, and removes the directory if it was a temporary one. A
// second Stop does nothing.
func (cp *ControlPlane) Stop() error {
	err := cp.Shutdown()
	cp.mu.Lock()
	defer cp.mu.Unlock()
	if cp.stopped {
		return nil
	}
	cp.stopped = true
	for _, p := range cp.ports {
		p.release()
	}
	if cp.opts.Dir == "" {
		err = errors.Join(err, os.RemoveAll(cp.dir))
	}
	return err
}
