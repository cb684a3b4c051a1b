package kube

import (
	"hash/maphash"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/policy"
)

// apiPlace is the place of objects that come from no file.
var apiPlace = Place{File: "API server"}

func notice(object, text string) Notice {
	return Notice{Place: apiPlace, Severity: Warning, Object: object, Text: text}
}

func namespaceRow(ns *corev1.Namespace) row[*policy.Namespace] {
	r := row[*policy.Namespace]{
		name: policy.NamespacedName{Name: ns.Name}, value: NamespaceFromAPI(ns), shown: true,
	}
	for _, mistake := range annotationMistakes(ns) {
		r.notices = append(r.notices, notice("Namespace "+ns.Name, printable(mistake)))
	}
	return r
}

// nodeRow leaves out addresses and ranges that do not parse.
func nodeRow(node *corev1.Node) row[*policy.Node] {
	r := row[*policy.Node]{name: policy.NamespacedName{Name: node.Name}, shown: true}
	value, err := NodeFromAPI(node)
	if err != nil {
		r.notices = []Notice{notice("Node "+node.Name, err.Error()+"; left out")}
		value, err = NodeFromAPI(parsableNode(node))
	}
	r.value, r.shown = value, err == nil
	return r
}

func parsableNode(node *corev1.Node) *corev1.Node {
	out := &corev1.Node{}
	out.Name = node.Name
	for _, a := range node.Status.Addresses {
		if _, err := netip.ParseAddr(a.Address); err == nil {
			out.Status.Addresses = append(out.Status.Addresses, a)
		}
	}
	for _, cidr := range append(slices.Clone(node.Spec.PodCIDRs), node.Spec.PodCIDR) {
		if _, err := netip.ParsePrefix(cidr); err == nil && !slices.Contains(out.Spec.PodCIDRs, cidr) {
			out.Spec.PodCIDRs = append(out.Spec.PodCIDRs, cidr)
		}
	}
	return out
}

// podConverter converts the pods of one reflector, one after the other. Pods of
// one workload share their labels.
type podConverter struct {
	labels labelPool
}

// row keeps pods that hold an address. An address that does not parse is held by
// nobody: it stays unknown, and what is unknown is not allowed.
func (c *podConverter) row(pod *corev1.Pod) row[*policy.Pod] {
	r := row[*policy.Pod]{name: policy.NamespacedName{Namespace: c.labels.text(pod.Namespace), Name: pod.Name}}
	value, err := PodFromAPI(pod)
	if err != nil {
		r.notices = []Notice{notice("Pod "+r.name.String(), err.Error()+"; left out")}
		if value, err = PodFromAPI(parsablePod(pod)); err != nil {
			return r
		}
	}
	if value.Phase == policy.PhaseEnded || len(value.Addrs) == 0 {
		return r
	}
	value.NamespacedName = r.name
	value.Labels = c.labels.set(value.Labels)
	value.NodeName = c.labels.text(value.NodeName)
	value.Workload.Kind = c.labels.text(value.Workload.Kind)
	value.Workload.Name = c.labels.text(value.Workload.Name)
	for i := range value.Ports {
		value.Ports[i].Name = c.labels.text(value.Ports[i].Name)
	}
	value.Ports = slices.Clip(value.Ports)
	r.value, r.shown = value, true
	return r
}

func parsablePod(pod *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	s := &pod.Status
	s.PodIPs = slices.DeleteFunc(s.PodIPs, func(ip corev1.PodIP) bool { return !parses(ip.IP) })
	s.HostIPs = slices.DeleteFunc(s.HostIPs, func(ip corev1.HostIP) bool { return !parses(ip.IP) })
	if !parses(s.PodIP) {
		s.PodIP = ""
	}
	if !parses(s.HostIP) {
		s.HostIP = ""
	}
	return pod
}

func parses(addr string) bool {
	_, err := netip.ParseAddr(addr)
	return err == nil
}

// poolSize bounds a labelPool. One that is full starts afresh: what it shared
// stays shared among those who have it.
const poolSize = 1 << 14

// labelPool makes equal labels one.
type labelPool struct {
	seed  maphash.Seed
	sets  map[uint64]map[string]string
	texts map[string]string
}

// text returns an equal string.
func (p *labelPool) text(s string) string {
	if s == "" {
		return ""
	}
	if known, ok := p.texts[s]; ok {
		return known
	}
	if p.texts == nil || len(p.texts) >= poolSize {
		p.texts = map[string]string{}
	}
	p.texts[s] = s
	return s
}

// set returns an equal map, which must not be changed.
func (p *labelPool) set(labels map[string]string) map[string]string {
	if len(labels) == 0 {
		return nil
	}
	if p.sets == nil || len(p.sets) >= poolSize {
		p.seed, p.sets = maphash.MakeSeed(), map[uint64]map[string]string{}
	}
	key := p.hash(labels)
	known := p.sets[key]
	if maps.Equal(known, labels) {
		return known
	}
	own := make(map[string]string, len(labels))
	for k, v := range labels {
		own[p.text(k)] = p.text(v)
	}
	p.sets[key] = own
	return own
}

// hash does not depend on the order of iteration.
func (p *labelPool) hash(labels map[string]string) uint64 {
	var sum uint64
	for k, v := range labels {
		sum += maphash.Comparable(p.seed, [2]string{k, v})
	}
	return sum
}

func sameNamespace(a, b *policy.Namespace) bool {
	return a.Audit == b.Audit && a.Denial == b.Denial && maps.Equal(a.Labels, b.Labels)
}

func sameNode(a, b *policy.Node) bool {
	return slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.PodCIDRs, b.PodCIDRs)
}

func samePod(a, b *policy.Pod) bool {
	return a.NodeName == b.NodeName && a.HostNetwork == b.HostNetwork && a.Phase == b.Phase && a.Workload == b.Workload &&
		a.Created.Equal(b.Created) && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.HostAddrs, b.HostAddrs) &&
		slices.Equal(a.Ports, b.Ports) && maps.Equal(a.Labels, b.Labels)
}

func samePolicy(a, b *networkingv1.NetworkPolicy) bool { return reflect.DeepEqual(a.Spec, b.Spec) }
