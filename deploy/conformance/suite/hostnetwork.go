//go:build linux

package suite

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const denyIngress = `
podSelector: {}
policyTypes: [Ingress]`

func hostNetwork(t *T) {
	ns := t.namespace("a")
	t.policy(ns, "deny", denyIngress)
	// Its readiness is probed by its node: without that traffic it would never be ready.
	server := t.pod(ns, pod{name: "server", node: 1, tcp: []int32{80}, readiness: &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80), Path: "/"}},
		PeriodSeconds: 1, TimeoutSeconds: 5,
	}})
	own, other := t.node(1), t.node(2)
	client := t.pod(ns, pod{name: "client", node: 2})
	t.tcpPasses(own, server, 80)
	t.tcpBlocked(other, server, 80)
	t.tcpBlocked(client, server, 80)
	t.policy(ns, "nodes", fmt.Sprintf(`
podSelector: {}
ingress:
- from: [{ipBlock: {cidr: %s}}, {ipBlock: {cidr: %s}}]`, single(other.of(true)), single(other.of(false))))
	t.tcpPasses(other, server, 80)
	t.tcpBlocked(client, server, 80)
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// node is a node as a peer.
func (t *T) node(number int) *peer {
	n := t.rig.Nodes[number-1]
	return &peer{name: n.Name(), host: n.Host, addrs: n.Addrs()}
}

func hostNetworkPeers(t *T) {
	ns := t.namespace("a")
	// A port of the node's own: other tests have host-network pods, too.
	port := int32(20000 + t.number)
	host := t.pod(ns, pod{name: "host", node: 2, labels: "app=host", hostNetwork: true, tcp: []int32{port}})
	server := t.pod(ns, pod{name: "server", node: 1, labels: "app=server", tcp: []int32{80}})
	client := t.pod(ns, pod{name: "client", node: 1, labels: "app=client"})
	if !slices.Equal(host.addrs, t.node(2).addrs) {
		t.fail("the host-network pod has addresses %v, its node %v", host.addrs, t.node(2).addrs)
	}
	// A policy that selects the host-network pod does not isolate it.
	t.policy(ns, "deny", denyIngress)
	t.tcpBlocked(client, server, 80)
	t.tcpPasses(client, host, uint16(port))
	// As a peer it is its node: a selector that fits its labels does not let it in.
	t.policy(ns, "selector", `
podSelector: {matchLabels: {app: server}}
ingress:
- from: [{podSelector: {matchLabels: {app: host}}}, {podSelector: {matchLabels: {app: client}}}]`)
	t.tcpPasses(client, server, 80)
	t.tcpBlocked(host, server, 80)
	// Nor as a destination, while an ipBlock does.
	t.policy(ns, "egress", `
podSelector: {matchLabels: {app: client}}
policyTypes: [Egress]
egress:
- to: [{podSelector: {matchLabels: {app: host}}}, {podSelector: {matchLabels: {app: server}}}]`)
	t.tcpBlocked(client, host, uint16(port))
	t.tcpPasses(client, server, 80)
	t.policy(ns, "egress-block", fmt.Sprintf(`
podSelector: {matchLabels: {app: client}}
policyTypes: [Egress]
egress:
- to: [{ipBlock: {cidr: %s}}, {ipBlock: {cidr: %s}}]`, single(host.of(true)), single(host.of(false))))
	t.tcpPasses(client, host, uint16(port))
}
