//go:build linux

package suite

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
)

const fromFriends = `
podSelector: {matchLabels: {app: server}}
ingress:
- from: [{podSelector: {matchLabels: {app: friend}}}]`

func addressReuse(t *T) {
	ns := t.namespace("a")
	server := t.pod(ns, pod{name: "server", node: 1, labels: "app=server", tcp: []int32{80}})
	t.policy(ns, "friends", fromFriends)
	var addrs []netip.Addr
	for round := range 3 {
		for _, p := range []pod{{name: "friend", labels: "app=friend"}, {name: "stranger", labels: "app=stranger"}} {
			p.name, p.node, p.addresses = fmt.Sprintf("%s-%d", p.name, round), 2, addrs
			client := t.pod(ns, p)
			addrs = client.addrs
			check(p.labels == "app=friend", t.tcpPasses, t.tcpBlocked)(client, server, 80)
			t.remove(client)
		}
	}
	t.reuseAsServer(ns, addrs)
}

// reuseAsServer hands the addresses to servers, isolated and not.
func (t *T) reuseAsServer(ns string, addrs []netip.Addr) {
	client := t.pod(ns, pod{name: "client", node: 1})
	for round := range 2 {
		open := t.pod(ns, pod{name: fmt.Sprintf("open-%d", round), node: 2, addresses: addrs, tcp: []int32{80}})
		t.tcpPasses(client, open, 80)
		t.remove(open)
		closed := t.pod(ns, pod{name: fmt.Sprintf("closed-%d", round), node: 2, addresses: addrs, labels: "app=server", tcp: []int32{80}})
		t.tcpBlocked(client, closed, 80)
		t.remove(closed)
	}
}

// podStart starts pods whose first act is to connect. agnhost connect makes one
// attempt: its exit code is the verdict on the pod's first packets.
func podStart(t *T) {
	ns := t.namespace("a")
	server := t.pod(ns, pod{name: "server", node: 1, labels: "app=server", tcp: []int32{80}})
	reached := t.count(server, 8080)
	t.policy(ns, "egress", `
podSelector: {matchLabels: {app: caged}}
policyTypes: [Egress]`)
	t.policy(ns, "free", `
podSelector: {matchLabels: {app: free}}
policyTypes: [Egress]
egress:
- to: [{podSelector: {matchLabels: {app: server}}}]`)
	// The policies are in force when an ordinary pod of each kind meets them.
	t.tcpBlocked(t.pod(ns, pod{name: "probe", node: 2, labels: "app=caged"}), server, 80)

	for round, addr := range server.addrs {
		connect := []string{"/agnhost", "connect", netip.AddrPortFrom(addr, 8080).String(), "--timeout=10s"}
		var caged, free []*corev1.Pod
		for i := range 5 {
			node := i%2 + 1
			caged = append(caged, t.create(ns, pod{name: fmt.Sprintf("caged-%d-%d", round, i), node: node, labels: "app=caged", command: connect}))
			free = append(free, t.create(ns, pod{name: fmt.Sprintf("free-%d-%d", round, i), node: node, labels: "app=free", command: connect}))
		}
		for _, p := range free {
			if p = t.awaitEnd(p); p.Status.Phase != corev1.PodSucceeded {
				t.fail("pod %s, whose policy allows it, did not connect with its first packets: %s", p.Name, p.Status.Phase)
			}
		}
		for _, p := range caged {
			if p = t.awaitEnd(p); p.Status.Phase != corev1.PodFailed {
				t.fail("pod %s %w: it connected before its policy was applied (%s)", p.Name, ErrPasses, p.Status.Phase)
			}
		}
		if got, want := reached.Load(), int64((round+1)*len(free)); got != want {
			t.fail("the server was reached %d times, want %d: once by each pod that may", got, want)
		}
	}
}

func (t *T) awaitEnd(p *corev1.Pod) *corev1.Pod {
	return t.awaitPod(p, func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
}

// count counts connections to a port of a pod.
func (t *T) count(p *peer, port uint16) *atomic.Int64 {
	l, err := p.host.Listen("tcp", net.JoinHostPort("::", fmt.Sprint(port)))
	t.must(err)
	t.atEnd(l.Close)
	count := new(atomic.Int64)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			count.Add(1)
			conn.Close()
		}
	}()
	return count
}
