//go:build linux

package cluster

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/bench/netlab"
)

// front is one port of one ClusterIP.
type front struct {
	vip      netip.AddrPort
	protocol string // tcp or udp
}

// translation is what a node does with a front.
type translation struct {
	backends []netip.AddrPort
	rules    *netlab.Service
}

// proxy translates ClusterIPs on all nodes, as kube-proxy does in iptables mode.
type proxy struct {
	cluster  *Cluster
	services *view[*corev1.Service]
	pods     *view[*corev1.Pod]
	nodes    map[*Node]map[front]translation
}

func (c *Cluster) startProxy(ctx context.Context) {
	p := &proxy{cluster: c, nodes: map[*Node]map[front]translation{}}
	for _, n := range c.nodes {
		p.nodes[n] = map[front]translation{}
	}
	q := newKeys()
	const everything = "all Services" // one key: each change looks at all
	again := func(string) { q.Add(everything) }
	core := c.client.CoreV1().RESTClient()
	p.services = follow(ctx, c, core, "services", fields.Everything(), &corev1.Service{}, again)
	p.pods = follow(ctx, c, core, "pods", fields.Everything(), &corev1.Pod{}, again)
	q.serve(ctx, c, 1, "Service proxy", func(context.Context, string) error { return p.sync() })
}

// sync brings the rules of all nodes to what the objects say.
func (p *proxy) sync() error {
	want := p.wanted()
	var group errgroup.Group
	for node, have := range p.nodes {
		group.Go(func() error { return syncNode(node, have, want) })
	}
	return group.Wait()
}

func syncNode(node *Node, have map[front]translation, want map[front][]netip.AddrPort) error {
	var errs []error
	for f, old := range have {
		if !slices.Equal(old.backends, want[f]) {
			errs = append(errs, old.rules.Remove())
			delete(have, f)
		}
	}
	for f, backends := range want {
		if _, done := have[f]; done {
			continue
		}
		rules, err := node.AddService(f.vip.Addr(), f.vip.Port(), f.protocol, backends...)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		have[f] = translation{backends, rules}
	}
	return errors.Join(errs...)
}

// wanted lists the fronts that have a backend.
func (p *proxy) wanted() map[front][]netip.AddrPort {
	pods := slices.DeleteFunc(p.pods.all(), func(pod *corev1.Pod) bool { return !ready(pod) })
	want := map[front][]netip.AddrPort{}
	for _, s := range p.services.all() {
		if len(s.Spec.Selector) == 0 {
			continue
		}
		selector := labels.SelectorFromSet(s.Spec.Selector)
		for _, port := range s.Spec.Ports {
			backends := map[netip.AddrPort]bool{}
			for _, pod := range pods {
				if pod.Namespace == s.Namespace && selector.Matches(labels.Set(pod.Labels)) {
					addBackends(backends, pod, port)
				}
			}
			addFronts(want, s, port, backends)
		}
	}
	return want
}

// addBackends adds where a pod serves a Service's port: nowhere, if the port has a
// name that the pod does not have.
func addBackends(backends map[netip.AddrPort]bool, pod *corev1.Pod, port corev1.ServicePort) {
	number, ok := targetPort(pod, port)
	if !ok {
		return
	}
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			backends[netip.AddrPortFrom(a, number)] = true
		}
	}
}

func targetPort(pod *corev1.Pod, port corev1.ServicePort) (uint16, bool) {
	if port.TargetPort.Type == intstr.Int {
		return uint16(port.TargetPort.IntVal), true
	}
	for i := range pod.Spec.Containers {
		for _, own := range pod.Spec.Containers[i].Ports {
			if own.Name == port.TargetPort.StrVal && own.Protocol == port.Protocol {
				return uint16(own.ContainerPort), true
			}
		}
	}
	return 0, false
}

// addFronts adds one front for each ClusterIP that has backends of its family.
func addFronts(want map[front][]netip.AddrPort, s *corev1.Service, port corev1.ServicePort, backends map[netip.AddrPort]bool) {
	for _, ip := range s.Spec.ClusterIPs {
		vip, err := netip.ParseAddr(ip)
		if err != nil { // "None"
			continue
		}
		own := slices.DeleteFunc(slices.SortedFunc(maps.Keys(backends), netip.AddrPort.Compare),
			func(b netip.AddrPort) bool { return b.Addr().Is4() != vip.Is4() })
		if len(own) > 0 {
			f := front{netip.AddrPortFrom(vip, uint16(port.Port)), strings.ToLower(string(port.Protocol))}
			want[f] = own
		}
	}
}
