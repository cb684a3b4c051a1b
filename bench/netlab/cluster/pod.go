//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netverdict/netverdict/bench/netlab"
)

// Pod is a pod that runs on a node of the cluster.
type Pod struct {
	Namespace, Name string
	UID             types.UID
	Node            *Node
	// Host is the pod's network namespace, that of the node for a pod in the host's
	// network. Its Name is what servers of the pod answer.
	Host *netlab.Host

	free    func() // gives the addresses back; nil in the host's network
	once    sync.Once
	err     error
	servers []io.Closer // in the host's network, where they outlive no pod
}

func (p *Pod) key() string { return p.Namespace + "/" + p.Name }

// Addrs are the pod's addresses, IPv4 first, as in status.podIPs.
func (p *Pod) Addrs() []netip.Addr { return p.Host.Addrs() }

// Targets are the pod's addresses, each with the port.
func (p *Pod) Targets(port uint16) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range p.Addrs() {
		out = append(out, netip.AddrPortFrom(a, port))
	}
	return out
}

// serve starts what the pod's containers are.
func (p *Pod) serve(object *corev1.Pod) error {
	for i := range object.Spec.Containers {
		c := &object.Spec.Containers[i]
		if err := p.start(c); err != nil {
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
	}
	return nil
}

func (p *Pod) start(c *corev1.Container) error {
	if len(c.Command) > 0 {
		return p.run(c)
	}
	for _, port := range c.Ports {
		if err := p.listen(port); err != nil {
			return fmt.Errorf("port %d/%s: %w", port.ContainerPort, port.Protocol, err)
		}
	}
	return nil
}

func (p *Pod) listen(port corev1.ContainerPort) error {
	listen := p.Host.ServeHTTP
	switch port.Protocol {
	case corev1.ProtocolUDP:
		listen = p.Host.ServeUDP
	case corev1.ProtocolSCTP:
		return errors.New("no server for SCTP: declare only TCP and UDP ports")
	}
	s, err := listen(uint16(port.ContainerPort))
	if err == nil && p.free == nil {
		p.servers = append(p.servers, s)
	}
	return err
}

// run starts a container's command. It is on its own: how it ends is not reported.
func (p *Pod) run(c *corev1.Container) error {
	cmd := p.Host.Command(context.Background(), c.Command[0], append(slices.Clone(c.Command[1:]), c.Args...)...)
	cmd.Dir, cmd.Env = c.WorkingDir, os.Environ()
	for _, e := range c.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }()
	if p.free == nil {
		p.servers = append(p.servers, closer(func() error {
			_ = cmd.Cancel() // it may have ended
			_ = cmd.Wait()   // "signal: killed"
			return nil
		}))
	}
	return nil
}

// closer is a function that is an io.Closer.
type closer func() error

// Close calls the function.
func (c closer) Close() error { return c() }

// end takes the pod down and frees its addresses.
func (p *Pod) end() error {
	p.once.Do(func() {
		if p.free != nil {
			p.err = p.Host.Remove()
			p.free()
			return
		}
		for _, s := range p.servers {
			if err := s.Close(); !errors.Is(err, net.ErrClosed) {
				p.err = errors.Join(p.err, err)
			}
		}
	})
	return p.err
}

// TCP declares a port for ServerPod; name may be empty.
func TCP(name string, port int32) corev1.ContainerPort {
	return corev1.ContainerPort{Name: name, ContainerPort: port, Protocol: corev1.ProtocolTCP}
}

// UDP is TCP for UDP.
func UDP(name string, port int32) corev1.ContainerPort {
	return corev1.ContainerPort{Name: name, ContainerPort: port, Protocol: corev1.ProtocolUDP}
}

// ServerPod is a pod with one container that declares ports. An empty node leaves
// the choice to the scheduler.
func ServerPod(namespace, name, node string, labels map[string]string, ports ...corev1.ContainerPort) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			NodeName:   node,
			Containers: []corev1.Container{{Name: "main", Image: "netlab", Ports: ports}},
			// Nobody can use a token here.
			AutomountServiceAccountToken: new(false),
		},
	}
}

// CreateNamespace creates a namespace with labels.
func (c *Cluster) CreateNamespace(ctx context.Context, name string, labels map[string]string) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	_, err := c.client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
	return err
}

// CreatePod creates a pod, in a namespace that exists, and returns when it is
// Running and Ready. With NoKubelet it cannot be used.
func (c *Cluster) CreatePod(ctx context.Context, pod *corev1.Pod) (*Pod, error) {
	created, err := c.client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return c.AwaitPod(ctx, created.Namespace, created.Name)
}

// AwaitPod waits for a pod that somebody created to be Running and Ready.
func (c *Cluster) AwaitPod(ctx context.Context, namespace, name string) (*Pod, error) {
	key := namespace + "/" + name
	var pod *Pod
	err := poll(ctx, "pod "+key, func() (bool, error) {
		pod = c.Pod(namespace, name)
		return pod != nil, nil
	})
	if err == nil {
		return pod, nil
	}
	for _, n := range c.nodes {
		if o, ok := n.kubelet.pods.get(key); ok {
			err = errors.Join(err, n.kubelet.problem(o.UID))
		}
	}
	return nil, err
}

// Pod is a pod that runs, nil if no such pod does.
func (c *Cluster) Pod(namespace, name string) *Pod {
	for _, n := range c.nodes {
		if n.kubelet == nil {
			continue
		}
		if p := n.kubelet.pod(namespace + "/" + name); p != nil {
			return p
		}
	}
	return nil
}

// DeletePod deletes a pod and returns when it is gone, its addresses free.
func (c *Cluster) DeletePod(ctx context.Context, pod *Pod) error {
	pods := c.client.CoreV1().Pods(pod.Namespace)
	err := pods.Delete(ctx, pod.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
	if err != nil {
		return fmt.Errorf("delete pod %s: %w", pod.key(), err)
	}
	return poll(ctx, "the end of pod "+pod.key(), func() (bool, error) {
		if now := pod.Node.kubelet.pod(pod.key()); now == pod {
			return false, nil
		}
		o, err := pods.Get(ctx, pod.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return err == nil && o.UID != pod.UID, err
	})
}
