// Package gen makes realistic clusters of any size from a seed, for benchmarks:
// namespaces with teams and stages, applications with replicas spread over
// nodes, and the mix of policies that public examples and guides recommend.
//
//	namespace ns-0007 {team, stage}
//	  app-3 {app, tier, version, pod-template-hash}  ── replicas on random nodes
//	  policies: default-deny, allow-dns, app to app, from the ingress
//	            controller, from monitoring, from a team, to an external CIDR …
//
// The same Size and seed give the same cluster.
package gen

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/netverdict/netverdict/policy"
)

// Size says how big a cluster is.
type Size struct {
	Pods     int
	Policies int
}

const (
	replicas        = 10  // of an application
	appsPerTenant   = 10  // in a namespace
	podsPerNode     = 100 // with a /24 of pod addresses each
	teams           = 20
	nodeSubnet      = 0x0a000000 // 10.0.0.0, a /24 per node
	nodeAddrs       = 0xac100000 // 172.16.0.0, an address per node
	monitoringNS    = "monitoring"
	ingressNS       = "ingress-nginx"
	systemNS        = "kube-system"
	systemNamespace = 3
)

// Cluster is a generated cluster.
type Cluster struct {
	Snapshot *policy.Snapshot
	tenants  []string
	rng      *rand.Rand
}

// New makes a cluster. Pods are all running, with an IPv4 and an IPv6 address.
func New(seed uint64, size Size) *Cluster {
	c := &Cluster{Snapshot: &policy.Snapshot{}, rng: rand.New(rand.NewPCG(seed, 0x67656e))}
	c.addNodes((size.Pods + podsPerNode - 1) / podsPerNode)
	c.addNamespaces(max(1, size.Pods/(replicas*appsPerTenant)))
	c.addPods(size.Pods)
	c.addPolicies(size.Policies)
	return c
}

func (c *Cluster) addNodes(n int) {
	for i := range n {
		c.Snapshot.Nodes = append(c.Snapshot.Nodes, &policy.Node{
			Name:     nodeName(i),
			Addrs:    []netip.Addr{v4(nodeAddrs + uint32(i) + 1)},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(v4(nodeSubnet+uint32(i)<<8), 24)},
		})
	}
}

func nodeName(i int) string { return fmt.Sprintf("node-%04d", i) }

func v4(a uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], a)
	return netip.AddrFrom4(b)
}

// v6 is the IPv6 twin of an IPv4 pod address.
func v6(a uint32) netip.Addr {
	b := [16]byte{0: 0xfd, 1: 0x10}
	binary.BigEndian.PutUint32(b[12:], a)
	return netip.AddrFrom16(b)
}

func (c *Cluster) addNamespaces(tenants int) {
	for _, name := range []string{systemNS, ingressNS, monitoringNS} {
		c.addNamespace(name, map[string]string{"purpose": "system"})
	}
	stages := []string{"production", "staging", "development"}
	for i := range tenants {
		name := fmt.Sprintf("ns-%04d", i)
		c.tenants = append(c.tenants, name)
		c.addNamespace(name, map[string]string{"team": fmt.Sprintf("team-%02d", i%teams), "stage": stages[i%len(stages)]})
	}
}

func (c *Cluster) addNamespace(name string, labels map[string]string) {
	c.Snapshot.Namespaces = append(c.Snapshot.Namespaces, &policy.Namespace{Name: name, Labels: labels})
}

func appName(i int) string { return fmt.Sprintf("app-%d", i) }

var tiers = []string{"frontend", "backend", "cache", "database"}

// addPods fills the nodes one after the other with pods of random applications:
// one pod in 20 belongs to the system namespaces.
func (c *Cluster) addPods(n int) {
	for i := range n {
		ns, app := c.tenants[c.rng.IntN(len(c.tenants))], c.rng.IntN(appsPerTenant)
		name := appName(app)
		if i%20 == 0 {
			ns, name = c.Snapshot.Namespaces[i/20%systemNamespace].Name, []string{"dns", "controller", "prometheus"}[i/20%systemNamespace]
		}
		c.addPod(i, ns, name, tiers[app%len(tiers)])
	}
}

func (c *Cluster) addPod(i int, ns, app, tier string) {
	addr := nodeSubnet + uint32(i/podsPerNode)<<8 + uint32(i%podsPerNode) + 10
	node := i / podsPerNode
	c.Snapshot.Pods = append(c.Snapshot.Pods, &policy.Pod{
		NamespacedName: policy.NamespacedName{Namespace: ns, Name: fmt.Sprintf("%s-%d", app, i)},
		Labels: map[string]string{
			"app":               app,
			"tier":              tier,
			"version":           fmt.Sprintf("v%d", c.rng.IntN(3)),
			"pod-template-hash": fmt.Sprintf("%08x", c.rng.Uint32()),
		},
		NodeName:  nodeName(node),
		HostAddrs: []netip.Addr{v4(nodeAddrs + uint32(node) + 1)},
		Addrs:     []netip.Addr{v4(addr), v6(addr)},
		Phase:     policy.PhaseRunning,
		Created:   time.Unix(1_700_000_000+int64(i), 0),
		Ports:     []policy.ContainerPort{{Name: "http", Protocol: policy.TCP, Port: 8080}, {Name: "metrics", Protocol: policy.TCP, Port: 9090}},
	})
}
