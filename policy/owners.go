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

// holding is one address and the pod that holds it. Addr and pod never change;
// the rest is the compiler's.
type holding struct {
	addr netip.Addr
	pod  *Pod

	local bool
	atom  *atom
	at    int // in atom.holdings
}

// claims settles who has which address.
type claims struct {
	contested map[netip.Addr][]*Pod // addresses with several claimants, and those
	nodes     map[netip.Addr]*nodeClaims
}

func newClaims() *claims {
	return &claims{contested: map[netip.Addr][]*Pod{}, nodes: map[netip.Addr]*nodeClaims{}}
}

// nodeClaims are the names of the nodes whose traffic an address is, sorted, and
// how many objects say so of each. Usually that is one name; while a node's
// address moves it may be two, and a host-network pod without spec.nodeName names
// none ("").
type nodeClaims struct {
	names  []string
	counts []int
}

// add reports whether the names changed.
func (c *nodeClaims) add(name string, n int) bool {
	at, known := slices.BinarySearch(c.names, name)
	if !known {
		c.names, c.counts = slices.Insert(slices.Clone(c.names), at, name), slices.Insert(c.counts, at, n)
		return true
	}
	if c.counts[at] += n; c.counts[at] > 0 {
		return false
	}
	c.names, c.counts = slices.Delete(slices.Clone(c.names), at, at+1), slices.Delete(c.counts, at, at+1)
	return true
}

// podAddrs are the addresses that a pod claims. Ended pods claim none, and the
// addresses of host-network pods belong to their node.
func podAddrs(p *Pod) []netip.Addr {
	if p == nil || p.HostNetwork || p.Phase == PhaseEnded {
		return nil
	}
	return p.Addrs
}

// nodeAddrs calls visit with the addresses that a pod says are node traffic, and
// the node: what it reports as its host's, and its own if it is on the host's
// network. A pod's claim on an address is better than a node's.
func nodeAddrs(p *Pod, visit func(netip.Addr, string)) {
	if p == nil {
		return
	}
	if p.NodeName != "" {
		for _, a := range p.HostAddrs {
			visit(a, p.NodeName)
		}
	}
	if p.HostNetwork && p.Phase != PhaseEnded {
		for _, a := range p.Addrs {
			visit(a, p.NodeName)
		}
	}
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

// claim enters a pod's claim; holder has the address so far. It returns who has
// it now.
func (c *claims) claim(a netip.Addr, p, holder *Pod) *Pod {
	if holder == nil {
		return p
	}
	if c.contested[a] == nil {
		c.contested[a] = []*Pod{holder}
	}
	c.contested[a] = append(c.contested[a], p)
	if claimBetter(p, holder) {
		return p
	}
	return holder
}

// unclaim takes a claim out, and returns who has the address then.
func (c *claims) unclaim(a netip.Addr, p, holder *Pod) *Pod {
	dropFrom(c.contested, a, p)
	left := c.contested[a]
	if len(left) == 1 {
		delete(c.contested, a)
	}
	if holder != p {
		return holder
	}
	var best *Pod
	for _, q := range left {
		if best == nil || claimBetter(q, best) {
			best = q
		}
	}
	return best
}

func (c *claims) conflicts() []Conflict {
	var all []Conflict
	for a, pods := range c.contested {
		conflict := Conflict{Addr: a}
		winner := pods[0]
		for _, p := range pods[1:] {
			if claimBetter(p, winner) {
				winner = p
			}
		}
		for _, p := range pods {
			if p != winner {
				conflict.Losers = append(conflict.Losers, p.NamespacedName)
			}
		}
		conflict.Winner = winner.NamespacedName
		slices.SortFunc(conflict.Losers, NamespacedName.Compare)
		all = append(all, conflict)
	}
	slices.SortFunc(all, func(x, y Conflict) int { return x.Addr.Compare(y.Addr) })
	return all
}
