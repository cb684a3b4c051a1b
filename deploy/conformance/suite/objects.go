//go:build linux

package suite

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/yaml"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/deploy/conformance/kubelet"
)

// agnhost of the version that upstream's tests use; the node has only one.
const agnhost = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"

// pod says what a test wants of a pod.
type pod struct {
	name        string
	node        int // from 1; 0: the scheduler's choice
	labels      string
	tcp, udp    []int32
	sctp        []int32 // declared only: the kernel here may have no SCTP sockets to serve on
	named       string  // name of the first TCP port
	hostNetwork bool
	addresses   []netip.Addr // asked for; empty: any
	command     []string     // instead of a server on the ports
	readiness   *corev1.Probe
}

// peer is a running pod.
type peer struct {
	name  string // namespace/name
	host  *netlab.Host
	addrs []netip.Addr
	uid   types.UID
}

// of picks an address by family.
func (p *peer) of(four bool) netip.Addr {
	i := slices.IndexFunc(p.addrs, func(a netip.Addr) bool { return a.Is4() == four })
	return p.addrs[i]
}

// namespace makes a namespace with a label role=suffix.
func (t *T) namespace(suffix string) string {
	name := fmt.Sprintf("own-%d-%s", t.number, suffix)
	_, err := t.client.CoreV1().Namespaces().Create(t.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{"role": suffix},
	}}, metav1.CreateOptions{})
	t.must(err)
	t.namespaces = append(t.namespaces, name)
	return name
}

// clean removes what the test made, and waits until it is gone: addresses are free
// again, and the next run of the suite may use the names.
func (t *T) clean(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for _, fn := range slices.Backward(t.closers) {
		t.err = errors.Join(t.err, fn())
	}
	for _, ns := range t.namespaces {
		err := t.client.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{})
		t.err = errors.Join(t.err, err)
	}
	for _, ns := range t.namespaces {
		err := wait.PollUntilContextCancel(ctx, 200*time.Millisecond, true, func(ctx context.Context) (bool, error) {
			_, err := t.client.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
			return err != nil, nil
		})
		if err != nil {
			t.err = errors.Join(t.err, fmt.Errorf("namespace %s is not gone: %w", ns, err))
		}
	}
}

// policy applies a NetworkPolicy; spec is YAML.
func (t *T) policy(namespace, name, spec string) {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
	t.must(yaml.UnmarshalStrict([]byte(strings.ReplaceAll(spec, "\t", "  ")), &p.Spec))
	_, err := t.client.NetworkingV1().NetworkPolicies(namespace).Create(t.ctx, p, metav1.CreateOptions{})
	t.must(err)
}

// dropPolicy deletes a policy.
func (t *T) dropPolicy(namespace, name string) {
	t.must(t.client.NetworkingV1().NetworkPolicies(namespace).Delete(t.ctx, name, metav1.DeleteOptions{}))
}

// pod creates a pod and waits until it is ready.
func (t *T) pod(namespace string, p pod) *peer {
	return t.await(t.create(namespace, p))
}

// create creates a pod and does not wait.
func (t *T) create(namespace string, p pod) *corev1.Pod {
	zero := int64(0)
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.name, Labels: labels(p.labels)}}
	o.Spec = corev1.PodSpec{TerminationGracePeriodSeconds: &zero, HostNetwork: p.hostNetwork, Containers: []corev1.Container{p.container()}}
	if p.node > 0 {
		o.Spec.NodeName = t.rig.Nodes[p.node-1].Name()
	}
	if len(p.command) > 0 {
		o.Spec.RestartPolicy = corev1.RestartPolicyNever
	}
	var wanted []string
	for _, a := range p.addresses {
		wanted = append(wanted, a.String())
	}
	if wanted != nil {
		o.Annotations = map[string]string{kubelet.AddressesAnnotation: strings.Join(wanted, ",")}
	}
	o, err := t.client.CoreV1().Pods(namespace).Create(t.ctx, o, metav1.CreateOptions{})
	t.must(err)
	return o
}

func (p *pod) container() corev1.Container {
	c := corev1.Container{Name: "main", Image: agnhost, Args: []string{"porter"}, Command: p.command, ReadinessProbe: p.readiness}
	if len(p.command) > 0 {
		c.Args = nil
	}
	for i, port := range p.tcp {
		name := fmt.Sprintf("tcp-%d", port)
		if i == 0 && p.named != "" {
			name = p.named
		}
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: name, ContainerPort: port, Protocol: corev1.ProtocolTCP})
		c.Env = append(c.Env, corev1.EnvVar{Name: "SERVE_TCP_PORT_" + strconv.Itoa(int(port)), Value: p.name})
	}
	for _, port := range p.udp {
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: fmt.Sprintf("udp-%d", port), ContainerPort: port, Protocol: corev1.ProtocolUDP})
		c.Env = append(c.Env, corev1.EnvVar{Name: "SERVE_UDP_PORT_" + strconv.Itoa(int(port)), Value: p.name})
	}
	for _, port := range p.sctp {
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: fmt.Sprintf("sctp-%d", port), ContainerPort: port, Protocol: corev1.ProtocolSCTP})
	}
	return c
}

// await waits until a pod is ready and its servers listen.
func (t *T) await(o *corev1.Pod) *peer {
	o = t.awaitPod(o, func(p *corev1.Pod) bool {
		return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
	})
	p := &peer{name: o.Namespace + "/" + o.Name, uid: o.UID}
	for _, ip := range o.Status.PodIPs {
		p.addrs = append(p.addrs, netip.MustParseAddr(ip.IP))
	}
	host, err := t.rig.Host(o)
	t.must(err)
	p.host = host
	return p
}

// awaitPod waits until a pod is as it should be.
func (t *T) awaitPod(o *corev1.Pod, as func(*corev1.Pod) bool) *corev1.Pod {
	pods := t.client.CoreV1().Pods(o.Namespace)
	err := wait.PollUntilContextCancel(t.ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		now, err := pods.Get(ctx, o.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		o = now
		return as(o), nil
	})
	if err != nil {
		t.fail("pod %s/%s: %w; its status: %+v", o.Namespace, o.Name, err, o.Status)
	}
	return o
}

// remove deletes a pod and waits until it is gone.
func (t *T) remove(p *peer) {
	namespace, name, _ := strings.Cut(p.name, "/")
	pods := t.client.CoreV1().Pods(namespace)
	t.must(pods.Delete(t.ctx, name, metav1.DeleteOptions{}))
	t.must(wait.PollUntilContextCancel(t.ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		_, err := pods.Get(ctx, name, metav1.GetOptions{})
		return err != nil && !t.rig.HasHost(p.uid), nil
	}))
}

// service makes a dual-stack Service of a TCP port and returns its addresses.
func (t *T) service(namespace, name, selector string, port int32, target intstr.IntOrString) []netip.Addr {
	policy := corev1.IPFamilyPolicyRequireDualStack
	s, err := t.client.CoreV1().Services(namespace).Create(t.ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Selector: labels(selector), IPFamilyPolicy: &policy,
			Ports: []corev1.ServicePort{{Port: port, TargetPort: target, Protocol: corev1.ProtocolTCP}},
		},
	}, metav1.CreateOptions{})
	t.must(err)
	var out []netip.Addr
	for _, ip := range s.Spec.ClusterIPs {
		out = append(out, netip.MustParseAddr(ip))
	}
	return out
}

// labels reads "a=b,c=d".
func labels(text string) map[string]string {
	out := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			out[key] = value
		}
	}
	return out
}
