//go:build linux

package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/kube/kubetest"
)

// Node is a node of the cluster. Do, Command and the clients and servers of
// netlab.Host act in its namespace, as host-network pods do.
type Node struct {
	*netlab.Node
	cluster *Cluster
	dir     string // of its agents' sockets and logs
	relay   *relay
	kubelet *kubelet // nil with NoKubelet

	mu      sync.Mutex
	agents  []*Agent // that run
	started int      // agents ever started; numbers them
}

func (c *Cluster) podCIDRs(n int) []netip.Prefix {
	return primaryFirst(c.opts.IPv6First,
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(n), 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x02, 3: 0x44, 5: byte(n)}), 64))
}

// addNode makes the n-th node, from 1, and its object.
func (c *Cluster) addNode(ctx context.Context, number int) (*Node, error) {
	name := fmt.Sprintf("node-%d", number)
	n := &Node{cluster: c, dir: filepath.Join(c.dir, name)}
	if err := os.Mkdir(n.dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	n.Node, err = c.lab.AddNode(name, netlab.NodeOptions{Addrs: c.nodeAddrs(number), PodCIDRs: c.podCIDRs(number)})
	if err != nil {
		return nil, err
	}
	if err := c.lab.Connect(n.Node); err != nil {
		return nil, err
	}
	if n.relay, err = startRelay(n.Host, c.control.URL()); err != nil {
		return nil, fmt.Errorf("node %s: relay to the API server: %w", name, err)
	}
	return n, n.register(ctx)
}

// register creates the Node object as a kubelet does.
func (n *Node) register(ctx context.Context) error {
	nodes := n.cluster.client.CoreV1().Nodes()
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name(), Labels: map[string]string{
		corev1.LabelHostname: n.Name(), corev1.LabelOSStable: "linux",
	}}}
	for _, p := range n.PodCIDRs() {
		o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, p.String())
	}
	o.Spec.PodCIDR = o.Spec.PodCIDRs[0]
	o, err := nodes.Create(ctx, o, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	// Admission has tainted it as not ready; the controller that lifts that is not here.
	o.Spec.Taints = nil
	if o, err = nodes.Update(ctx, o, metav1.UpdateOptions{}); err != nil {
		return err
	}
	o.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: n.Name()}}
	for _, a := range n.Addrs() {
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	o.Status.NodeInfo = corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: runtime.GOARCH, KubeletVersion: kubetest.Version()}
	o.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
		LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
	}}
	_, err = nodes.UpdateStatus(ctx, o, metav1.UpdateOptions{})
	return err
}

// Cut takes the API server away from the node's agents, and only from them: what
// changes meanwhile, they do not see.
func (n *Node) Cut() { n.relay.cut() }

// Mend undoes Cut.
func (n *Node) Mend() error { return n.relay.mend() }

// Agents are the node's agents that run, oldest first.
func (n *Node) Agents() []*Agent {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.agents)
}

// Agent is the newest agent that runs, nil if none does.
func (n *Node) Agent() *Agent {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.agents) == 0 {
		return nil
	}
	return n.agents[len(n.agents)-1]
}

// QueuedPackets reads how many packets the kernel has put into the node's
// NFQUEUEs: the sequence number of the last packet of each queue that somebody
// listens to (/proc/net/netfilter/nfnetlink_queue, seventh column).
func (n *Node) QueuedPackets() (uint64, error) {
	var table []byte
	err := n.Do(func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("node %s: count queued packets: %w", n.Name(), err)
	}
	var sum uint64
	for line := range strings.Lines(string(table)) {
		var number, port, waiting, mode, copied, dropped, lost, packets uint64
		if _, err := fmt.Sscan(line, &number, &port, &waiting, &mode, &copied, &dropped, &lost, &packets); err != nil {
			return 0, fmt.Errorf("node %s: count queued packets: %q: %w", n.Name(), line, err)
		}
		sum += packets
	}
	return sum, nil
}
