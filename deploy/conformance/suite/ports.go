//go:build linux

package suite

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/intstr"
)

func endPort(t *T) {
	ns := t.namespace("a")
	ports := []int32{7999, 8000, 8005, 8010, 8011}
	server := t.pod(ns, pod{name: "server", node: 1, labels: "app=server", tcp: ports, udp: ports})
	client := t.pod(ns, pod{name: "client", node: 2})
	for _, p := range ports {
		t.tcpPasses(client, server, uint16(p))
		t.udpPasses(client, server, uint16(p))
	}
	t.policy(ns, "range", `
podSelector: {matchLabels: {app: server}}
ingress:
- ports:
  - {protocol: TCP, port: 8000, endPort: 8010}
  - {protocol: UDP, port: 8000, endPort: 8005}`)
	for p, allowed := range map[uint16][2]bool{ // TCP, UDP
		7999: {false, false}, 8000: {true, true}, 8005: {true, true}, 8010: {true, false}, 8011: {false, false},
	} {
		check(allowed[0], t.tcpPasses, t.tcpBlocked)(client, server, p)
		check(allowed[1], t.udpPasses, t.udpBlocked)(client, server, p)
	}
}

// check chooses what to demand.
func check(allowed bool, passes, blocked func(from, to *peer, port uint16)) func(from, to *peer, port uint16) {
	if allowed {
		return passes
	}
	return blocked
}

func namedPorts(t *T) {
	ns := t.namespace("a")
	one := t.pod(ns, pod{name: "one", node: 1, labels: "app=web", tcp: []int32{8081, 8082}, named: "web"})
	two := t.pod(ns, pod{name: "two", node: 2, labels: "app=web", tcp: []int32{8082, 8081}, named: "web"})
	client := t.pod(ns, pod{name: "client", node: 1})
	service := t.service(ns, "web", "app=web", 80, intstr.FromString("web"))
	t.policy(ns, "web", `
podSelector: {matchLabels: {app: web}}
ingress:
- ports: [{port: web}]`)
	t.tcpPasses(client, one, 8081)
	t.tcpBlocked(client, one, 8082)
	t.tcpPasses(client, two, 8082)
	t.tcpBlocked(client, two, 8081)
	for _, addr := range service {
		t.passes(fmt.Sprintf("TCP client → Service %s:80", addr), tcp(client.host, addr, 80))
	}
}
