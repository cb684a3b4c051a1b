//go:build linux

package suite

import (
	"fmt"
	"net/netip"
)

func dualStackSelectors(t *T) {
	ns, other := t.namespace("a"), t.namespace("b")
	server := t.pod(ns, pod{name: "server", node: 1, labels: "app=server", tcp: []int32{80}, udp: []int32{53}})
	friend := t.pod(ns, pod{name: "friend", node: 2, labels: "app=friend"})
	stranger := t.pod(ns, pod{name: "stranger", node: 2})
	namesake := t.pod(other, pod{name: "friend", node: 1, labels: "app=friend"})
	t.policy(ns, "friends", `
podSelector: {matchLabels: {app: server}}
ingress:
- from: [{podSelector: {matchLabels: {app: friend}}}]`)
	t.tcpPasses(friend, server, 80)
	t.udpPasses(friend, server, 53)
	for _, client := range []*peer{stranger, namesake} {
		t.tcpBlocked(client, server, 80)
		t.udpBlocked(client, server, 53)
	}
}

func dualStackBlocks(t *T) {
	ns := t.namespace("a")
	server := t.pod(ns, pod{name: "server", node: 1, labels: "app=server", tcp: []int32{80}})
	client := t.pod(ns, pod{name: "client", node: 2})
	for _, four := range []bool{true, false} {
		name := map[bool]string{true: "only-ipv4", false: "only-ipv6"}[four]
		t.policy(ns, name, fmt.Sprintf(`
podSelector: {matchLabels: {app: server}}
ingress:
- from: [{ipBlock: {cidr: %q}}]`, netip.PrefixFrom(client.of(four), client.of(four).BitLen())))
		t.passes(name+": TCP of the family", tcp(client.host, server.of(four), 80))
		t.blocked(name+": TCP of the other family", tcp(client.host, server.of(!four), 80))
		t.dropPolicy(ns, name)
		t.tcpPasses(client, server, 80)
	}
}
