//go:build linux

package suite

import (
	"fmt"
	"slices"
	"strings"
)

// Upstream's three SCTPConnectivity tests ask for SCTP sockets. These have their
// pods, policies and expectations (test/e2e/network/netpol/network_policy.go), by
// INIT packets, for both families.

// grid makes pods "namespace/name" with the label pod=name, on both nodes in turn,
// and returns them with what each namespace is really called.
func (t *T) grid(names ...string) (pods map[string]*peer, namespaces map[string]string) {
	pods, namespaces = map[string]*peer{}, map[string]string{}
	for i, full := range names {
		ns, name, _ := strings.Cut(full, "/")
		if namespaces[ns] == "" {
			namespaces[ns] = t.namespace(ns)
		}
		pods[full] = t.pod(namespaces[ns], pod{name: name, node: i%2 + 1, labels: "pod=" + name})
	}
	return pods, namespaces
}

// sctpMatrix demands that every pod reaches every other one, except those that
// blocked lists of each server.
func (t *T) sctpMatrix(pods map[string]*peer, port uint16, blocked map[string][]string) {
	for from := range pods {
		for to := range pods {
			switch {
			case from == to: // upstream does not look at it either
			case slices.Contains(blocked[to], from):
				t.sctpBlocked(pods[from], pods[to], port)
			default:
				t.sctpPasses(pods[from], pods[to], port)
			}
		}
	}
}

func sctpDefaultDeny(t *T) {
	pods, ns := t.grid("x/a", "x/b", "y/a", "y/b")
	t.policy(ns["x"], "deny-all", denyIngress)
	t.sctpMatrix(pods, 80, map[string][]string{"x/a": {"x/b", "y/a", "y/b"}, "x/b": {"x/a", "y/a", "y/b"}})
}

func sctpNamespacePort(t *T) {
	pods, ns := t.grid("x/a", "x/b", "y/a", "z/a")
	t.policy(ns["x"], "allow-ingress-on-port-81-ns-x", fmt.Sprintf(`
podSelector: {matchLabels: {pod: a}}
ingress:
- from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}}]
  ports: [{protocol: SCTP, port: 81}]`, ns["y"]))
	t.sctpMatrix(pods, 81, map[string][]string{"x/a": {"x/b", "z/a"}})
}

func sctpPodAndNamespace(t *T) {
	pods, ns := t.grid("x/a", "x/b", "y/a")
	t.policy(ns["x"], "allow-ns-y-pod-a-via-namespace-pod-selector", fmt.Sprintf(`
podSelector: {matchLabels: {pod: a}}
ingress:
- from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}, podSelector: {matchLabels: {pod: a}}}]`, ns["y"]))
	t.sctpMatrix(pods, 80, map[string][]string{"x/a": {"x/b"}})
}
