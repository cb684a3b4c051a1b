package engine_test

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/netverdict/netverdict/policy"
)

// TestVerdictsOfEveryProtocol: one policy with ports, one without, real traffic
// of every protocol in both families, and the decisions are recorded as they fell.
func TestVerdictsOfEveryProtocol(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80, 81)
		n.start(
			allow("client", "server", port(corev1.ProtocolTCP, 80), port(corev1.ProtocolUDP, 80), port(corev1.ProtocolSCTP, 80)),
			allow("client", "other"))
		const yes, no = policy.Allow, policy.Deny
		demand(t, slices.Concat(
			http(yes, n.client, n.server, 80), http(no, n.client, n.server, 81), http(no, n.other, n.server, 80),
			udp(yes, n.client, n.server, 80), udp(no, n.client, n.server, 81), udp(no, n.other, n.server, 80),
			sctp(t, yes, n.client, n.server, 80), sctp(t, no, n.client, n.server, 81), sctp(t, no, n.other, n.server, 80),
			ping(no, n.client, n.server), ping(no, n.other, n.server),
			http(yes, n.client, n.other, 80), udp(yes, n.client, n.other, 80), sctp(t, yes, n.client, n.other, 80), ping(yes, n.client, n.other),
			http(no, n.server, n.other, 80), udp(no, n.server, n.other, 80), sctp(t, no, n.server, n.other, 80), ping(no, n.server, n.other),
			// The client is not isolated: anybody reaches it.
			http(yes, n.server, n.client, 80), udp(yes, n.other, n.client, 80), sctp(t, yes, n.server, n.client, 80), ping(yes, n.other, n.client),
		)...)
		stats := n.engine.Stats()
		if stats.Decided(yes) == 0 || stats.Decided(no) == 0 {
			t.Errorf("decisions %+v", stats.Decisions)
		}
	})
}

// serve starts HTTP and UDP servers on every pod.
func (n *network) serve(ports ...uint16) {
	n.t.Helper()
	for _, h := range n.node.Hosts() {
		for _, port := range ports {
			if _, err := h.ServeHTTP(port); err != nil {
				n.t.Fatal(err)
			}
			if _, err := h.ServeUDP(port); err != nil {
				n.t.Fatal(err)
			}
		}
	}
}
