//go:build linux

package rig

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/bench/netlab/cluster"
	"github.com/netverdict/netverdict/deploy/conformance/kubelet"
)

// Family is the primary family of a cluster: that of its Services' first address
// and of its pods' status.podIP. Both clusters are dual stack.
type Family string

// The families.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

// nodes of a cluster: two, so that there is traffic within and between nodes.
const nodes = 2

// Options configure a cluster.
type Options struct {
	// Dir is for its files; it exists.
	Dir     string
	Primary Family
	// Enforce runs an agent on every node.
	Enforce bool
	// Programs has the path of each of Needed.
	Programs map[string]string
	Log      *slog.Logger
}

// Needed are the programs of a cluster, beside those of its control plane.
var Needed = []string{"kube-controller-manager", "kube-scheduler", "kube-proxy", "agnhost", "netverdict"}

// Rig is a running cluster.
type Rig struct {
	Client kubernetes.Interface
	Nodes  []*Node

	opts      Options
	cluster   *cluster.Cluster
	processes []*process
}

// Start starts a cluster and returns when its nodes are ready and, with Enforce,
// enforcing.
func Start(ctx context.Context, opts Options) (*Rig, error) {
	r := &Rig{opts: opts}
	if err := r.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start the %s cluster: %w", opts.Primary, err), r.Stop())
	}
	return r, nil
}

func (r *Rig) start(ctx context.Context) error {
	certificate, err := newCertificate(r.opts.Dir)
	if err != nil {
		return err
	}
	r.cluster, err = cluster.Start(ctx, cluster.Options{
		Nodes: nodes, Dir: r.opts.Dir, IPv6First: r.opts.Primary == IPv6, Binary: r.opts.Programs["netverdict"],
		APIServerArgs: r.apiserverArgs(certificate),
		NoAgent:       true, NoKubelet: true, NoControllers: true, // what follows takes their place
	})
	if err != nil {
		return err
	}
	r.Client = r.cluster.Client()
	// The kubelet registers its node itself, conditions, leases and all.
	if err := r.Client.CoreV1().Nodes().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return err
	}
	if err := r.startControllers(); err != nil {
		return err
	}
	for _, n := range r.cluster.Nodes() {
		node, err := r.startNode(ctx, n, certificate)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name(), err)
		}
		r.Nodes = append(r.Nodes, node)
	}
	return r.awaitNodes(ctx)
}

// control is a file of the control plane.
func (r *Rig) control(name string) string { return filepath.Join(r.opts.Dir, "control-plane", name) }

// KubeconfigFile is the path of a kubeconfig that may do everything.
func (r *Rig) KubeconfigFile() string { return r.cluster.KubeconfigFile() }

// apiserverArgs let the API server reach the kubelets, which are in this process.
func (r *Rig) apiserverArgs(c *certificate) []string {
	services := "10.96.0.0/16,fd00:10:96::/112"
	if r.opts.Primary == IPv6 {
		services = "fd00:10:96::/112,10.96.0.0/16"
	}
	return []string{
		"--service-cluster-ip-range=" + services,
		"--kubelet-preferred-address-types=" + string(corev1.NodeExternalDNS),
		"--kubelet-certificate-authority=" + c.authority,
		"--kubelet-client-certificate=" + r.control("admin.crt"),
		"--kubelet-client-key=" + r.control("admin.key"),
	}
}

// startControllers runs what makes EndpointSlices, ServiceAccounts and the rest of
// what the tests find in a cluster, and what binds pods to nodes.
func (r *Rig) startControllers() error {
	kubeconfig := "--kubeconfig=" + r.KubeconfigFile()
	for name, args := range map[string][]string{
		"kube-controller-manager": {
			"--service-account-private-key-file=" + r.control("service-account.key"),
			"--root-ca-file=" + r.control("ca.crt"),
		},
		"kube-scheduler": {},
	} {
		args = append(args, kubeconfig, "--leader-elect=false", "--secure-port=0", "--kube-api-qps=200", "--kube-api-burst=400")
		p, err := startProcess(command(r.opts.Programs[name], args...), filepath.Join(r.opts.Dir, name+".log"))
		if err != nil {
			return err
		}
		r.processes = append(r.processes, p)
	}
	return nil
}

// awaitNodes waits until the nodes accept pods: the node lifecycle controller lifts
// the taint of new nodes.
func (r *Rig) awaitNodes(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("nodes are not ready after 2 minutes"))
	defer cancel()
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		if err := r.Healthy(); err != nil {
			return false, err
		}
		list, err := r.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, nil //nolint:nilerr // asked again
		}
		return len(list.Items) == nodes && !slices.ContainsFunc(list.Items, func(n corev1.Node) bool { return len(n.Spec.Taints) > 0 }), nil
	})
	return errors.Join(err, context.Cause(ctx))
}

// Healthy tells whether everything that should run still does.
func (r *Rig) Healthy() error {
	all := slices.Clone(r.processes)
	for _, n := range r.Nodes {
		all = append(all, n.proxy)
		if r.opts.Enforce && len(n.Agents()) == 0 {
			return fmt.Errorf("the agent of %s ended by itself: see %s", n.Name(), filepath.Join(r.opts.Dir, n.Name()))
		}
	}
	for _, p := range all {
		if !p.running() {
			return fmt.Errorf("%s ended by itself: see %s", p.name(), p.log)
		}
	}
	return nil
}

// Enforces tells whether the nodes have agents.
func (r *Rig) Enforces() bool { return r.opts.Enforce }

// Host is the network of a pod that runs.
func (r *Rig) Host(p *corev1.Pod) (*netlab.Host, error) {
	for _, n := range r.Nodes {
		if p.Spec.HostNetwork && p.Spec.NodeName == n.Name() {
			return n.Host, nil
		}
		if h := n.host(p.UID); h != nil {
			return h, nil
		}
	}
	return nil, fmt.Errorf("pod %s/%s (%s) has no network on any node", p.Namespace, p.Name, p.UID)
}

// HasHost tells whether a pod's network is still there.
func (r *Rig) HasHost(uid types.UID) bool {
	return slices.ContainsFunc(r.Nodes, func(n *Node) bool { return n.host(uid) != nil })
}

// Stop ends everything. The files stay.
func (r *Rig) Stop() error {
	var err error
	for _, n := range r.Nodes {
		err = errors.Join(err, n.stop())
	}
	for _, p := range r.processes {
		p.stop()
	}
	if r.cluster != nil {
		err = errors.Join(err, r.cluster.Close())
	}
	return err
}

// images are what every node has: agnhost under the names that the tests use.
func images(program string) []kubelet.Image {
	return []kubelet.Image{
		{Repository: "registry.k8s.io/e2e-test-images/agnhost", Program: program, Path: "/agnhost", Entrypoint: []string{"/agnhost"}, Arguments: []string{"pause"}},
		{Repository: "registry.k8s.io/pause", Program: program, Path: "/agnhost", Entrypoint: []string{"/agnhost", "pause"}},
	}
}

// copyProgram puts a program where a pod's files will be: containers link it.
func copyProgram(program, dir string) (string, error) {
	path := filepath.Join(dir, filepath.Base(program))
	data, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, data, 0o755)
}
