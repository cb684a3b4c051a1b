package policytest

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/netverdict/netverdict/policy"
)

// terminatingSuffix marks pods that get a deletionTimestamp in Manifests.
const terminatingSuffix = "-terminating"

// modeAnnotation of a namespace is what policy.Namespace.Audit is read from, and
// denyAnnotation what Denial is.
const (
	modeAnnotation = "netverdict.io/mode"
	denyAnnotation = "netverdict.io/deny"
)

// Manifests renders the snapshot's objects as a stream of YAML documents, as
// kubectl would print them. What a snapshot says beyond objects (Local,
// LocalPodCIDRs, UnknownPod) has no manifest. A pod whose name ends in
// "-terminating" is rendered as one being deleted.
//
// It panics when an object cannot be marshalled, which no snapshot of this
// package can cause.
func Manifests(s *policy.Snapshot) []byte {
	var out bytes.Buffer
	write := func(object any) {
		text, err := yaml.Marshal(object)
		if err != nil {
			panic(fmt.Sprintf("policytest: render %T: %v", object, err))
		}
		out.WriteString("---\n")
		out.Write(text)
	}
	for _, ns := range s.Namespaces {
		write(namespaceObject(ns))
	}
	for _, n := range s.Nodes {
		write(nodeObject(n))
	}
	for _, p := range s.Pods {
		write(podObject(p))
	}
	for _, np := range s.Policies {
		write(np)
	}
	return out.Bytes()
}

func namespaceObject(ns *policy.Namespace) *corev1.Namespace {
	o := &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: ns.Name, Labels: ns.Labels},
	}
	switch {
	case ns.Audit:
		o.Annotations = map[string]string{modeAnnotation: "audit"}
	case len(ns.Labels)%2 == 1: // saying what is so anyway makes no difference
		o.Annotations = map[string]string{modeAnnotation: "enforce"}
	}
	if ns.Denial != policy.DenialUnset {
		if o.Annotations == nil {
			o.Annotations = map[string]string{}
		}
		o.Annotations[denyAnnotation] = ns.Denial.String()
	}
	return o
}

func nodeObject(n *policy.Node) *corev1.Node {
	o := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: n.Name},
	}
	o.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: n.Name}}
	for i, a := range n.Addrs {
		kind := corev1.NodeInternalIP
		if i%2 == 1 {
			kind = corev1.NodeExternalIP
		}
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: kind, Address: a.String()})
	}
	for _, c := range n.PodCIDRs {
		o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, c.String())
	}
	if len(n.PodCIDRs) > 0 {
		o.Spec.PodCIDR = n.PodCIDRs[0].String()
	}
	return o
}

func podObject(p *policy.Pod) *corev1.Pod {
	o := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, Name: p.Name, Labels: p.Labels,
			CreationTimestamp: metav1.NewTime(p.Created),
		},
		Spec: corev1.PodSpec{NodeName: p.NodeName, HostNetwork: p.HostNetwork, Containers: containers(p)},
	}
	if strings.HasSuffix(p.Name, terminatingSuffix) {
		o.DeletionTimestamp = new(metav1.NewTime(p.Created.Add(time.Hour)))
		o.DeletionGracePeriodSeconds = new(int64(30))
	}
	o.Status.Phase = podPhase(p)
	for _, a := range p.Addrs {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	for _, a := range p.HostAddrs {
		o.Status.HostIPs = append(o.Status.HostIPs, corev1.HostIP{IP: a.String()})
	}
	o.Status.PodIP, o.Status.HostIP = firstAddr(p.Addrs), firstAddr(p.HostAddrs)
	return o
}

// containers puts each port into a container of its own: only then may a pod use
// one port name twice.
func containers(p *policy.Pod) []corev1.Container {
	list := []corev1.Container{{Name: "main", Image: "registry.k8s.io/pause:3.10"}}
	for i, port := range p.Ports {
		list = append(list, corev1.Container{
			Name:  fmt.Sprintf("port-%d", i),
			Image: "registry.k8s.io/pause:3.10",
			Ports: []corev1.ContainerPort{{
				Name: port.Name, ContainerPort: int32(port.Port), Protocol: corev1.Protocol(port.Protocol.String()),
			}},
		})
	}
	return list
}

// podPhase uses all five phases of the API; which of two is meant depends on
// nothing that a policy could see.
func podPhase(p *policy.Pod) corev1.PodPhase {
	second := len(p.Name)%2 == 1
	switch {
	case p.Phase == policy.PhaseRunning:
		return corev1.PodRunning
	case p.Phase == policy.PhasePending && second:
		return corev1.PodUnknown
	case p.Phase == policy.PhasePending:
		return corev1.PodPending
	case second:
		return corev1.PodFailed
	}
	return corev1.PodSucceeded
}

func firstAddr(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return ""
	}
	return addrs[0].String()
}
