package oracle

import (
	"net/netip"
	"slices"

	"github.com/netverdict/netverdict/policy"
)

// end is one end of a connection. At most one of pod and nodes is set; neither
// means an address that nobody in the snapshot holds.
type end struct {
	addr  netip.Addr
	pod   *policy.Pod // the pod that holds addr; never a host-network pod
	nodes []string    // the nodes that hold addr; "" is a node whose name is not known
}

func (e end) isNode() bool { return e.pod == nil && len(e.nodes) > 0 }

// isUnknownPod reports whether the address comes from the ranges this node
// gives its pods addresses from, yet nobody holds it.
func (e end) isUnknownPod(s *policy.Snapshot) bool {
	return e.pod == nil && !e.isNode() &&
		slices.ContainsFunc(s.LocalPodCIDRs, func(p netip.Prefix) bool { return p.Masked().Contains(e.addr) })
}

// isOwnNode reports whether n is the node that the pod p runs on. A pod that is
// not scheduled has no node.
func isOwnNode(p, n end) bool {
	return p.pod != nil && p.pod.NodeName != "" && n.isNode() && slices.Contains(n.nodes, p.pod.NodeName)
}

// lookUp finds who holds an address. A pod's claim is better than a node's.
func lookUp(s *policy.Snapshot, addr netip.Addr) end {
	if p := podAt(s, addr); p != nil {
		return end{addr: addr, pod: p}
	}
	return end{addr: addr, nodes: nodesAt(s, addr)}
}

// podAt finds the pod that holds an address.
//
// DESIGN: "hostNetwork pods are node traffic; no selector picks them",
// "Succeeded/Failed pods hold no address: their IP is free for another pod.
// Terminating pods are still enforced", "dual stack: all of status.podIPs".
func podAt(s *policy.Snapshot, addr netip.Addr) *policy.Pod {
	var holder *policy.Pod
	for _, p := range s.Pods {
		if p.HostNetwork || p.Phase == policy.PhaseEnded || !slices.Contains(p.Addrs, addr) {
			continue
		}
		if holder == nil || hasBetterClaim(p, holder) {
			holder = p
		}
	}
	return holder
}

// hasBetterClaim reports whether a keeps an address that b claims as well.
//
// DESIGN: "two pods claim one IP: the running, younger one wins". Equal claims
// go to the smaller namespace and name, so that the answer never depends on order.
func hasBetterClaim(a, b *policy.Pod) bool {
	if aRuns, bRuns := a.Phase == policy.PhaseRunning, b.Phase == policy.PhaseRunning; aRuns != bRuns {
		return aRuns
	}
	if !a.Created.Equal(b.Created) {
		return a.Created.After(b.Created)
	}
	return a.Compare(b.NamespacedName) < 0
}

// nodesAt names the nodes that hold an address: by their own status, by what
// their pods say of their host, or through a host-network pod.
func nodesAt(s *policy.Snapshot, addr netip.Addr) []string {
	var names []string
	for _, n := range s.Nodes {
		if slices.Contains(n.Addrs, addr) {
			names = append(names, n.Name)
		}
	}
	for _, p := range s.Pods {
		if p.NodeName != "" && slices.Contains(p.HostAddrs, addr) {
			names = append(names, p.NodeName)
		}
		if p.HostNetwork && p.Phase != policy.PhaseEnded && slices.Contains(p.Addrs, addr) {
			names = append(names, p.NodeName)
		}
	}
	return names
}
