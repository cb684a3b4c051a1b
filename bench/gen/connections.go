package gen

import (
	"net/netip"
	"slices"

	"github.com/netverdict/netverdict/policy"
)

// Connection is what a decision is asked about.
type Connection struct {
	Src, Dst netip.Addr
	Protocol policy.Protocol
	Port     uint16 // destination, host byte order
}

var servicePorts = []uint16{80, 443, 8080, 8443, 9050, 9090}

// Connections draws n random IPv4 connections between pods; from restricts the
// sources, nil takes all.
func (c *Cluster) Connections(n int, from []*policy.Pod) []Connection {
	if from == nil {
		from = c.Snapshot.Pods
	}
	list := make([]Connection, n)
	for i := range list {
		list[i] = Connection{
			Src:      from[c.rng.IntN(len(from))].Addrs[0],
			Dst:      c.Snapshot.Pods[c.rng.IntN(len(c.Snapshot.Pods))].Addrs[0],
			Protocol: policy.TCP,
			Port:     servicePorts[c.rng.IntN(len(servicePorts))],
		}
	}
	return list
}

// OnNode lists the pods of one node, and a function that tells them, for
// Snapshot.Local.
func (c *Cluster) OnNode(i int) (pods []*policy.Pod, local func(*policy.Pod) bool) {
	name := nodeName(i)
	local = func(p *policy.Pod) bool { return p.NodeName == name }
	pods = slices.DeleteFunc(slices.Clone(c.Snapshot.Pods), func(p *policy.Pod) bool { return !local(p) })
	return pods, local
}

// Tenant lists the pods of the i-th tenant.
func (c *Cluster) Tenant(i int) []*policy.Pod {
	return slices.DeleteFunc(slices.Clone(c.Snapshot.Pods), func(p *policy.Pod) bool { return p.Namespace != c.tenants[i] })
}
