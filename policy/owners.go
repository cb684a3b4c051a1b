package policy

import (
	"net/netip"
	"slices"
)

// Conflict is an address that more than one live pod claims. The tree gives it
// to the winner; the caller should log it, for it is a fault of the cluster.
type Conflict struct {
	Addr   netip.Addr
	Winner NamespacedName
	Losers []NamespacedName
}

// holding is one address and the pod that holds it.
type holding struct {
	addr netip.Addr
	pod  *Pod
}

// holders settles which pod holds each address. Ended pods hold none, and the
// addresses of host-network pods belong to their node.
func holders(pods []*Pod) (map[netip.Addr]*Pod, []Conflict) {
	held := make(map[netip.Addr]*Pod, len(pods))
	losers := map[netip.Addr][]NamespacedName{}
	for _, p := range pods {
		if p.HostNetwork || p.Phase == PhaseEnded {
			continue
		}
		for _, a := range p.Addrs {
			other, taken := held[a]
			switch {
			case !taken:
				held[a] = p
			case claimBetter(p, other):
				held[a] = p
				losers[a] = append(losers[a], other.NamespacedName)
			default:
				losers[a] = append(losers[a], p.NamespacedName)
			}
		}
	}
	return held, conflicts(held, losers)
}

// claimBetter orders the claims of two pods on one address totally, so that
// the winner does not depend on the order in which the pods arrived: running
// beats not running, then the younger wins, then the smaller name.
func claimBetter(a, b *Pod) bool {
	if ar, br := a.Phase == PhaseRunning, b.Phase == PhaseRunning; ar != br {
		return ar
	}
	if !a.Created.Equal(b.Created) {
		return a.Created.After(b.Created)
	}
	return a.Compare(b.NamespacedName) < 0
}

func conflicts(held map[netip.Addr]*Pod, losers map[netip.Addr][]NamespacedName) []Conflict {
	var all []Conflict
	for a, names := range losers {
		slices.SortFunc(names, NamespacedName.Compare)
		all = append(all, Conflict{Addr: a, Winner: held[a].NamespacedName, Losers: names})
	}
	slices.SortFunc(all, func(x, y Conflict) int { return x.Addr.Compare(y.Addr) })
	return all
}

// nodeAddrs maps every address that is node traffic to the names of its nodes,
// sorted: the Node's own addresses, what pods report as their host's, and the
// addresses of host-network pods. Usually that is one name; while a node's
// address moves it may be two, and a host-network pod without spec.nodeName
// names none (""). A pod's claim on an address is better than a node's.
func nodeAddrs(s *Snapshot) map[netip.Addr][]string {
	nodes := map[netip.Addr][]string{}
	claim := func(addrs []netip.Addr, name string) {
		for _, a := range addrs {
			if at, known := slices.BinarySearch(nodes[a], name); !known {
				nodes[a] = slices.Insert(nodes[a], at, name)
			}
		}
	}
	for _, n := range s.Nodes {
		claim(n.Addrs, n.Name)
	}
	for _, p := range s.Pods {
		if p.NodeName != "" {
			claim(p.HostAddrs, p.NodeName)
		}
		if p.HostNetwork && p.Phase != PhaseEnded {
			claim(p.Addrs, p.NodeName)
		}
	}
	return nodes
}
