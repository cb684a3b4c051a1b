//go:build linux

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netverdict/netverdict/bench/netlab"
)

// pod is a pod of this node, from its sandbox to its end.
type pod struct {
	node    *Node
	created *corev1.Pod // as it came: what it says of identity and containers stays true
	dir     string
	host    *netlab.Host // the node's for a host-network pod
	addrs   []netip.Addr
	started metav1.Time

	ctx     context.Context // done when the pod is to end
	cancel  context.CancelFunc
	running sync.WaitGroup // of containers
	changed chan struct{}  // one is enough: whoever reports takes the state of then
	ending  sync.Once
	ended   chan struct{} // closed when nothing of the pod is left

	mu         sync.Mutex
	object     *corev1.Pod // as it is now; never changed, only replaced
	containers []*container
	current    map[corev1.PodConditionType]corev1.PodCondition
	gone       bool // its containers have ended for good
}

// HostName is what a pod's namespace is called in the lab.
func HostName(uid types.UID) string { return "pod-" + string(uid) }

// unsupported says what of a pod this node cannot do.
func unsupported(p *corev1.Pod) error {
	if len(p.Spec.InitContainers) > 0 {
		return errors.New("this test node runs no init containers")
	}
	for _, c := range p.Spec.Containers {
		if len(c.VolumeMounts) > 0 {
			return fmt.Errorf("container %s: this test node has no volumes", c.Name)
		}
	}
	return nil
}

// newPod makes the sandbox; start starts the containers.
func newPod(n *Node, object *corev1.Pod) (*pod, error) {
	if err := unsupported(object); err != nil {
		return nil, err
	}
	p := &pod{
		node: n, created: object, object: object, dir: filepath.Join(n.opts.Dir, "pods", string(object.UID)), host: n.opts.Node.Host,
		started: metav1.Now(), current: map[corev1.PodConditionType]corev1.PodCondition{}, changed: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if err := p.setUp(); err != nil {
		p.cancel()
		return nil, errors.Join(err, p.tearDown())
	}
	return p, nil
}

func (p *pod) hostNetwork() bool { return p.created.Spec.HostNetwork }

func (p *pod) setUp() error {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	var err error
	if p.hostNetwork() {
		p.addrs = p.node.opts.Node.Addrs()
	} else {
		if p.addrs, err = p.node.addresses.take(p.created); err != nil {
			return err
		}
		if p.host, err = p.node.opts.Node.AddHost(HostName(p.created.UID), p.addrs...); err != nil {
			return err
		}
	}
	for i := range p.created.Spec.Containers {
		p.containers = append(p.containers, newContainer(p, &p.created.Spec.Containers[i], p.files()))
	}
	return nil
}

// files are what a kubelet writes into every container.
func (p *pod) files() map[string]string {
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, a := range p.addrs {
		fmt.Fprintf(&hosts, "%s %s\n", a, p.hostname())
	}
	return map[string]string{"etc/hosts": hosts.String(), "etc/hostname": p.hostname() + "\n", "etc/resolv.conf": p.resolver()}
}

func (p *pod) hostname() string {
	if p.hostNetwork() {
		return p.node.opts.Node.Name()
	}
	return p.created.Name
}

func (p *pod) resolver() string {
	if len(p.node.opts.DNS) == 0 {
		return "# this cluster has no DNS\n"
	}
	var b strings.Builder
	for _, a := range p.node.opts.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	fmt.Fprintf(&b, "search %s.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n", p.created.Namespace)
	return b.String()
}

func (p *pod) start() {
	for _, c := range p.containers {
		p.running.Go(c.run)
	}
}

// change notes that the status is another one.
func (p *pod) change() {
	select {
	case p.changed <- struct{}{}:
	default: // somebody will report anyway
	}
}

// report hands every new status to the API server until the pod has ended.
func (p *pod) report(notify func(*corev1.Pod)) {
	for {
		select {
		case <-p.changed:
			notify(p.snapshot())
		case <-p.ended:
			notify(p.snapshot())
			return
		}
	}
}

// snapshot is the pod with its status of now.
func (p *pod) snapshot() *corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.object.DeepCopy()
	out.Status = p.status()
	return out
}

// update takes new labels and annotations; nothing else of a running pod may change.
func (p *pod) update(object *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.object = object
}

// end ends the containers, at once or by SIGTERM first, and removes the sandbox. It
// returns at once; ended tells when all is done.
func (p *pod) end(grace time.Duration) {
	p.ending.Do(func() {
		go func() {
			defer close(p.ended)
			p.stop(grace)
			if err := p.tearDown(); err != nil {
				p.node.log.Error("remove a pod", "pod", p.created.Namespace+"/"+p.created.Name, "error", err)
			}
			p.mu.Lock()
			p.gone = true
			p.mu.Unlock()
		}()
	})
}

func (p *pod) stop(grace time.Duration) {
	done := make(chan struct{})
	for _, c := range p.containers {
		c.terminate(grace)
	}
	go func() {
		p.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(grace):
	}
	p.cancel()
	<-done
}

func (p *pod) tearDown() error {
	var err error
	if p.host != nil && p.host != p.node.opts.Node.Host {
		err = p.host.Remove()
	}
	if !p.hostNetwork() {
		p.node.addresses.release(p.addrs)
	}
	return errors.Join(err, os.RemoveAll(p.dir))
}

// container finds a container that can run a command.
func (p *pod) container(name string) (*container, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.containers {
		if c.spec.Name == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("pod %s/%s has no container %q", p.created.Namespace, p.created.Name, name)
}
