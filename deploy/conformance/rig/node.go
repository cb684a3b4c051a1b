//go:build linux

package rig

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/bench/netlab/cluster"
	"github.com/netverdict/netverdict/deploy/conformance/kubelet"
	"github.com/netverdict/netverdict/kube/kubetest"
)

// Node is a node of the cluster, with its network and its agents.
type Node struct {
	*cluster.Node
	rig     *Rig
	dir     string
	kubelet *kubelet.Node
	proxy   *process
}

func (r *Rig) startNode(ctx context.Context, node *cluster.Node, c *certificate) (*Node, error) {
	n := &Node{Node: node, rig: r, dir: filepath.Join(r.opts.Dir, node.Name())}
	if err := n.start(ctx, c); err != nil {
		return nil, errors.Join(err, n.stop())
	}
	return n, nil
}

// start brings a node up in the order of a real one: service proxy and agent before
// the first pod.
func (n *Node) start(ctx context.Context, c *certificate) error {
	if err := n.startProxy(); err != nil {
		return err
	}
	if n.rig.opts.Enforce {
		if err := n.Restart(ctx); err != nil {
			return err
		}
	}
	return n.startKubelet(ctx, c)
}

// startProxy runs the real kube-proxy in the node.
func (n *Node) startProxy() error {
	kubeconfig, err := n.kubeconfig("kube-proxy", kubetest.User{Name: "system:kube-proxy"})
	if err != nil {
		return err
	}
	cmd := n.Command(context.Background(), n.rig.opts.Programs["kube-proxy"],
		"--kubeconfig="+kubeconfig, "--hostname-override="+n.Name(),
		"--proxy-mode=iptables", "--detect-local-mode=NodeCIDR",
		"--iptables-sync-period=30s", "--iptables-min-sync-period=0s",
		// These are the machine's, not the namespace's.
		"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s")
	n.proxy, err = startProcess(labProcess{cmd}, filepath.Join(n.dir, "kube-proxy.log"))
	return err
}

// kubeconfig writes a file with which a program on the node reaches the API server
// through the node's relay.
func (n *Node) kubeconfig(name string, user kubetest.User) (string, error) {
	cfg, err := n.rig.cluster.ControlPlane().RESTConfig(user)
	if err != nil {
		return "", err
	}
	cfg.Host = "https://127.0.0.1:6443"
	text, err := kubetest.Kubeconfig(cfg)
	if err != nil {
		return "", err
	}
	path := filepath.Join(n.dir, name+".kubeconfig")
	return path, os.WriteFile(path, text, 0o600)
}

func (n *Node) startKubelet(ctx context.Context, c *certificate) error {
	listener, err := c.listen(n.rig.control("ca.crt"))
	if err != nil {
		return err
	}
	program, err := copyProgram(n.rig.opts.Programs["agnhost"], n.dir)
	if err != nil {
		return err
	}
	n.kubelet, err = kubelet.Start(ctx, kubelet.Options{
		Node: n.Node.Node, Client: n.rig.Client, Images: images(program), Dir: n.dir,
		Listener: listener, Version: kubetest.Version(), Log: n.rig.opts.Log,
	})
	return err
}

// Restart starts an agent as deploy/install.yaml runs it, after the end of the one
// before it, and waits until it enforces.
func (n *Node) Restart(ctx context.Context) error {
	_, err := n.RestartAgent(ctx)
	return err
}

// StopAgent ends the node's agent; its rules stay (install.yaml, --on-stop).
func (n *Node) StopAgent() error {
	var errs []error
	for _, a := range n.Agents() {
		errs = append(errs, a.Stop())
	}
	return errors.Join(errs...)
}

// host is a pod's namespace, nil if it has none here.
func (n *Node) host(uid types.UID) *netlab.Host {
	for _, h := range n.Hosts() {
		if h.Name() == kubelet.HostName(uid) {
			return h
		}
	}
	return nil
}

func (n *Node) stop() error {
	var err error
	if n.kubelet != nil {
		err = n.kubelet.Stop()
	}
	err = errors.Join(err, n.StopAgent())
	if n.proxy != nil {
		n.proxy.stop()
	}
	return err
}
