package kubetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"

	"k8s.io/client-go/rest"
)

// Files in the directory of a control plane.
const (
	caFile         = "ca.crt"
	certFile       = "server.crt"
	keyFile        = "server.key"
	clientCertFile = "admin.crt"
	clientKeyFile  = "admin.key"
	tokenKeyFile   = "service-account.key"
	kubeconfigFile = "admin.kubeconfig"
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// errStopped is what lifecycle methods say after Stop.
var errStopped = errors.New("the control plane was stopped; its data is gone")

// startOrder also is the reverse of the order in which servers are stopped.
var startOrder = []Component{Etcd, APIServer}

// Resume starts the servers that do not run and returns when they are ready.
func (cp *ControlPlane) Resume(ctx context.Context) error {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	if cp.stopped {
		return errStopped
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cp.opts.StartTimeout, fmt.Errorf("not ready %v after the start", cp.opts.StartTimeout))
	defer cancel()
	for _, c := range startOrder {
		if p := cp.running[c]; p != nil && p.running() {
			continue
		}
		if err := cp.start(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (cp *ControlPlane) start(ctx context.Context, c Component) error {
	args, url := cp.etcdArgs(), cp.etcdURL("client")+"/readyz"
	if c == APIServer {
		args, url = cp.apiserverArgs(), cp.URL()+"/readyz?verbose"
	}
	probe, err := httpsProbe(cp.probing(), url)
	if err != nil {
		return err
	}
	p, err := startProcess(string(c), cp.logPath(c), cp.programs[c], args)
	if err != nil {
		return err
	}
	cp.running[c] = p
	return p.await(ctx, probe)
}

// probing also speaks to etcd, which wants a client certificate.
func (cp *ControlPlane) probing() *rest.Config {
	cfg := cp.Admin()
	cfg.UserAgent = "kubetest-probe"
	return cfg
}

// ask does one request; the error carries what the server said.
func ask(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s\n%s", url, resp.Status, body)
	}
	return nil
}

// Kill ends servers as kill -9 does, by default both. Data is kept; Resume starts
// them again.
func (cp *ControlPlane) Kill(which ...Component) {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	for _, p := range cp.selected(which) {
		p.kill()
	}
}

// Shutdown ends servers in order, by default both. Data is kept; Resume starts
// them again.
func (cp *ControlPlane) Shutdown(which ...Component) error {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	var err error
	for _, p := range cp.selected(which) {
		err = errors.Join(err, p.stop())
	}
	return err
}

// Restart is Shutdown and Resume.
func (cp *ControlPlane) Restart(ctx context.Context, which ...Component) error {
	if err := cp.Shutdown(which...); err != nil {
		return err
	}
	return cp.Resume(ctx)
}

// selected lists the processes to end, the API server before its storage.
func (cp *ControlPlane) selected(which []Component) []*process {
	var out []*process
	for _, c := range slices.Backward(startOrder) {
		p := cp.running[c]
		if p != nil && (len(which) == 0 || slices.Contains(which, c)) {
			out = append(out, p)
		}
	}
	return out
}

func (cp *ControlPlane) etcdURL(use string) string {
	return "https://" + netip.AddrPortFrom(loopback, cp.ports[use].number).String()
}

func (cp *ControlPlane) etcdArgs() []string {
	client, peer := cp.etcdURL("client"), cp.etcdURL("peer")
	return []string{
		"--name=kubetest",
		"--data-dir=" + cp.path("etcd"),
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=kubetest=" + peer,
		"--trusted-ca-file=" + cp.path(caFile), "--cert-file=" + cp.path(certFile), "--key-file=" + cp.path(keyFile),
		"--client-cert-auth",
		"--peer-trusted-ca-file=" + cp.path(caFile), "--peer-cert-file=" + cp.path(certFile), "--peer-key-file=" + cp.path(keyFile),
		"--peer-client-cert-auth",
		"--unsafe-no-fsync", // data must outlive the process, not the machine
		"--log-level=warn",
	}
}

func (cp *ControlPlane) apiserverArgs() []string {
	args := []string{
		"--etcd-servers=" + cp.etcdURL("client"),
		"--etcd-cafile=" + cp.path(caFile), "--etcd-certfile=" + cp.path(clientCertFile), "--etcd-keyfile=" + cp.path(clientKeyFile),
		"--bind-address=" + cp.opts.Listen.String(),
		"--advertise-address=" + cp.reachable().String(),
		"--secure-port=" + strconv.Itoa(int(cp.ports["api"].number)),
		"--tls-cert-file=" + cp.path(certFile), "--tls-private-key-file=" + cp.path(keyFile),
		"--client-ca-file=" + cp.path(caFile),
		"--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + cp.path(tokenKeyFile), "--service-account-signing-key-file=" + cp.path(tokenKeyFile),
		"--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
		"--allow-privileged",
		"--disable-admission-plugins=ServiceAccount", // no controller makes the accounts it demands
		"--endpoint-reconciler-type=none",            // Endpoints may not hold a loopback address
		"--enable-priority-and-fairness=false",       // bounds nothing here and costs memory
		"--profiling=false",
	}
	return append(args, cp.opts.APIServerArgs...)
}
