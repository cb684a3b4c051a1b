package policy

import (
	"net/netip"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
)

// Snapshot is everything a tree is compiled from: the state of the cluster as
// one instant saw it. Compile does not change it and keeps references to its
// maps and slices, so the caller must not change them afterwards. The order of
// the slices has no influence on the tree.
type Snapshot struct {
	Namespaces []*Namespace
	Pods       []*Pod
	Nodes      []*Node
	Policies   []*networkingv1.NetworkPolicy

	// Local says which pods get rules: those this node enforces. nil means all
	// of them, as the offline tools want it.
	Local func(*Pod) bool

	// LocalPodCIDRs are the ranges this node gives its pods addresses from. An
	// address in them that no pod holds is an unknown pod (ReasonUnknownPod), not
	// an external address. Empty turns that off.
	LocalPodCIDRs []netip.Prefix
	// UnknownPod is the verdict for such addresses; the zero value denies.
	UnknownPod Verdict

	// Since says what changed since the snapshot that the same source gave before;
	// nil: that is not known. Compile does not look at it; a Builder takes it instead
	// of the whole snapshot.
	Since *Delta
}

// Namespace is what policies can see of a Namespace. Labels always include
// kubernetes.io/metadata.name, which the API server sets on every namespace;
// Compile adds it. A namespace that only a pod or policy mentions has just that one.
type Namespace struct {
	Name   string
	Labels map[string]string
	// Audit makes what the policies of this namespace deny pass, and be reported
	// (Decision.Audit). They still select and judge its pods.
	Audit bool
	// Denial is how connections are denied that the policies of this namespace
	// deny. Where both ends deny, that of the first counts (Decision.Direction).
	Denial Denial
}

// Node is what decisions need of a Node: the addresses that are node traffic.
type Node struct {
	Name     string
	Addrs    []netip.Addr   // status.addresses of the types InternalIP and ExternalIP
	PodCIDRs []netip.Prefix // spec.podCIDRs
}

// Phase orders pods by their claim on an address.
type Phase uint8

const (
	// PhasePending covers pending and unknown pods: they hold their address, but
	// a running pod's claim is better.
	PhasePending Phase = iota
	PhaseRunning
	// PhaseEnded is Succeeded or Failed: the pod holds no address (its IP is free
	// for another pod). A terminating pod is not ended.
	PhaseEnded
)

// Pod is what policies can see of a Pod.
type Pod struct {
	NamespacedName
	Labels      map[string]string
	NodeName    string       // spec.nodeName
	HostNetwork bool         // spec.hostNetwork: node traffic, no selector picks it
	Addrs       []netip.Addr // status.podIPs, at most one per family
	HostAddrs   []netip.Addr // status.hostIPs: addresses of the pod's node
	Phase       Phase
	Created     time.Time // metadata.creationTimestamp
	Ports       []ContainerPort
	Workload    Workload // what made it; decisions do not look at it
}

// Workload names what a pod belongs to, in the pod's namespace: a Deployment, a
// CronJob, … A pod of its own has the zero Workload.
type Workload struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// ContainerPort is a named container port, what a policy's named port resolves to.
// Unnamed ports need not be listed.
type ContainerPort struct {
	Name     string
	Protocol Protocol
	Port     uint16 // host byte order
}
