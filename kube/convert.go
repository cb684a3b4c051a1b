package kube

import (
	"fmt"
	"maps"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/netverdict/netverdict/policy"
)

// ModeAnnotation of a namespace says what becomes of connections that the policies
// in it deny: with ModeAudit they pass and are reported, with ModeEnforce (the
// default) they do not pass.
const (
	ModeAnnotation = "netverdict.io/mode"
	ModeAudit      = "audit"
	ModeEnforce    = "enforce"
)

// DenyAnnotation of a namespace says how connections are denied that the policies
// in it deny: "drop" is silence, "reject" an answer. It overrides the agent's --deny.
const DenyAnnotation = "netverdict.io/deny"

// annotationMistakes says what is wrong with a namespace's annotations.
func annotationMistakes(ns *corev1.Namespace) (mistakes []string) {
	for _, mistake := range [...]string{modeMistake(ns), denyMistake(ns)} {
		if mistake != "" {
			mistakes = append(mistakes, mistake)
		}
	}
	return mistakes
}

// denyMistake says what is wrong with a namespace's DenyAnnotation, or "".
func denyMistake(ns *corev1.Namespace) string {
	how, given := ns.Annotations[DenyAnnotation]
	if !given || denialOf(ns) != policy.DenialUnset {
		return ""
	}
	return fmt.Sprintf("metadata.annotations[%s]: %q is neither drop nor reject; the agent's --deny counts", DenyAnnotation, how)
}

// denialOf is unset where the annotation is missing or cannot be read.
func denialOf(ns *corev1.Namespace) (d policy.Denial) {
	if d.UnmarshalText([]byte(ns.Annotations[DenyAnnotation])) != nil {
		return policy.DenialUnset
	}
	return d
}

// modeMistake says what is wrong with a namespace's ModeAnnotation, or "". A mode
// that nobody can read must not open a namespace, so it is enforced.
func modeMistake(ns *corev1.Namespace) string {
	mode, given := ns.Annotations[ModeAnnotation]
	if !given || mode == ModeAudit || mode == ModeEnforce {
		return ""
	}
	return fmt.Sprintf("metadata.annotations[%s]: %q is neither %s nor %s; its policies are enforced", ModeAnnotation, mode, ModeAudit, ModeEnforce)
}

// NamespaceFromAPI takes what policies can see of a namespace. Like the API server
// it sets the label kubernetes.io/metadata.name. The result shares nothing with ns.
func NamespaceFromAPI(ns *corev1.Namespace) *policy.Namespace {
	labels := make(map[string]string, len(ns.Labels)+1)
	maps.Copy(labels, ns.Labels)
	labels[corev1.LabelMetadataName] = ns.Name
	return &policy.Namespace{Name: ns.Name, Labels: labels, Audit: ns.Annotations[ModeAnnotation] == ModeAudit, Denial: denialOf(ns)}
}

// PodFromAPI takes what policies can see of a pod. It fails on an address that
// does not parse, which a pod from an API server never has. The result shares
// only its labels with the pod.
func PodFromAPI(pod *corev1.Pod) (*policy.Pod, error) {
	addrs, err := podAddrs(&pod.Status)
	if err != nil {
		return nil, fmt.Errorf("read addresses of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	hostAddrs, err := hostAddrs(&pod.Status)
	if err != nil {
		return nil, fmt.Errorf("read host addresses of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return &policy.Pod{
		NamespacedName: policy.NamespacedName{Namespace: pod.Namespace, Name: pod.Name},
		Labels:         pod.Labels,
		NodeName:       pod.Spec.NodeName,
		HostNetwork:    pod.Spec.HostNetwork,
		Addrs:          addrs,
		HostAddrs:      hostAddrs,
		Phase:          podPhase(pod.Status.Phase),
		Created:        pod.CreationTimestamp.Time,
		Ports:          namedPorts(&pod.Spec),
		Workload:       workloadOf(pod),
	}, nil
}

func podAddrs(status *corev1.PodStatus) ([]netip.Addr, error) {
	values := make([]string, 0, 2)
	for _, ip := range status.PodIPs {
		values = append(values, ip.IP)
	}
	return addrs(values, status.PodIP)
}

func hostAddrs(status *corev1.PodStatus) ([]netip.Addr, error) {
	values := make([]string, 0, 2)
	for _, ip := range status.HostIPs {
		values = append(values, ip.IP)
	}
	return addrs(values, status.HostIP)
}

// addrs parses plural, or where that is empty singular, the field that dual stack
// left behind. IPv4-mapped addresses become the IPv4 addresses packets carry.
func addrs(plural []string, singular string) ([]netip.Addr, error) {
	if len(plural) == 0 && singular != "" {
		plural = []string{singular}
	}
	var out []netip.Addr
	for _, value := range plural {
		addr, err := netip.ParseAddr(value)
		if err != nil {
			return nil, err
		}
		out = append(out, addr.Unmap())
	}
	return out, nil
}

func podPhase(p corev1.PodPhase) policy.Phase {
	switch p {
	case corev1.PodSucceeded, corev1.PodFailed:
		return policy.PhaseEnded
	case corev1.PodRunning:
		return policy.PhaseRunning
	}
	return policy.PhasePending
}

// namedPorts lists the named ports of the containers that serve while the pod
// runs: the ordinary ones, and init containers that keep running (sidecars,
// KEP-753). Other init containers are gone by then.
func namedPorts(spec *corev1.PodSpec) []policy.ContainerPort {
	var out []policy.ContainerPort
	for i := range spec.InitContainers {
		c := &spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out = appendNamed(out, c.Ports)
		}
	}
	for i := range spec.Containers {
		out = appendNamed(out, spec.Containers[i].Ports)
	}
	return out
}

func appendNamed(out []policy.ContainerPort, ports []corev1.ContainerPort) []policy.ContainerPort {
	for _, p := range ports {
		proto, ok := protocolOf(p.Protocol)
		if p.Name == "" || !ok || p.ContainerPort < 1 || p.ContainerPort > 65535 {
			continue // nothing a policy could name
		}
		out = append(out, policy.ContainerPort{Name: p.Name, Protocol: proto, Port: uint16(p.ContainerPort)})
	}
	return out
}

func protocolOf(p corev1.Protocol) (policy.Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "": // the API's default
		return policy.TCP, true
	case corev1.ProtocolUDP:
		return policy.UDP, true
	case corev1.ProtocolSCTP:
		return policy.SCTP, true
	}
	return 0, false
}

// NodeFromAPI takes what decisions need of a node. It fails on an address or
// range that does not parse.
func NodeFromAPI(node *corev1.Node) (*policy.Node, error) {
	out := &policy.Node{Name: node.Name}
	for _, a := range node.Status.Addresses {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		addr, err := netip.ParseAddr(a.Address)
		if err != nil {
			return nil, fmt.Errorf("read %s of node %s: %w", a.Type, node.Name, err)
		}
		out.Addrs = append(out.Addrs, addr.Unmap())
	}
	cidrs := node.Spec.PodCIDRs
	if len(cidrs) == 0 && node.Spec.PodCIDR != "" {
		cidrs = []string{node.Spec.PodCIDR}
	}
	for _, value := range cidrs {
		prefix, err := netip.ParsePrefix(value)
		if err != nil {
			return nil, fmt.Errorf("read pod range of node %s: %w", node.Name, err)
		}
		out.PodCIDRs = append(out.PodCIDRs, prefix.Masked())
	}
	return out, nil
}
