package engine_test

import (
	"net/netip"
	"slices"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// audited is the tree of these policies with the pods' namespace in audit mode.
func (n *network) audited(policies ...*networkingv1.NetworkPolicy) *policy.Tree {
	n.t.Helper()
	s := n.snapshot(false, policies...)
	s.Namespaces = []*policy.Namespace{{Name: "shop", Audit: true}}
	return n.compile(s)
}

// auditedTo counts the connections to an address that were reported as audited.
func (l *flowLog) auditedTo(a netip.Addr, port uint16) (n int) {
	for _, r := range l.Records() {
		if r.Dst == a && r.DstPort == port && r.Decision.Audit && r.Decision.Verdict == policy.Allow {
			n++
		}
	}
	return n
}

// TestAuditedNamespace: a policy comes to an audited namespace while connections
// live. They go on, each is reported, and so is what is new, once as long as the
// kernel remembers it. Enforcing cuts what was reported and nothing else.
func TestAuditedNamespace(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.startWith(func(o *options) { o.engine.Log = flow.Denied })
		streams, allowed := openStreams(t, n.other, n.server), openStreams(t, n.client, n.server)
		if change := n.applyTree(n.audited(allow("client", "server"))); !change.Audits || change.Revokes {
			t.Errorf("change %+v, want one that audits", change)
		}
		for _, s := range streams {
			addr := netip.MustParseAddrPort(s.conns[0].RemoteAddr().String())
			eventually(t, "a report of "+s.name, func() bool { return n.flows.auditedTo(addr.Addr(), addr.Port()) > 0 })
		}
		for range 3 {
			demand(t, slices.Concat(http(policy.Allow, n.other, n.server, 80), http(policy.Allow, n.client, n.server, 80))...)
		}
		families(n.server, func(family string, a netip.Addr) {
			eventually(t, "a report of new connections over "+family, func() bool { return n.flows.auditedTo(a, 80) > 0 })
			if got := n.flows.auditedTo(a, 80); got > 1+int(n.repeatedSYNs()) {
				t.Errorf("%s: %d reports of what the kernel remembers, want 1", family, got)
			}
		})
		for _, s := range slices.Concat(streams, allowed) {
			s.awaitLines(20)
		}
		for _, r := range n.flows.Records() {
			if r.Decision.Reported() != policy.Audit || !slices.Contains(n.other.Addrs(), r.Src) {
				t.Errorf("%v: %v>%v:%d is not what is audited", r.Decision.Reported(), r.Src, r.Dst, r.DstPort)
			}
		}
		change, changed := n.deny(streams, allow("client", "server"))
		if !change.Revokes {
			t.Errorf("change %+v, want one that revokes", change)
		}
		demand(t, slices.Concat(http(policy.Deny, n.other, n.server, 80), http(policy.Allow, n.client, n.server, 80))...)
		for _, s := range streams {
			s.demandCut(changed)
		}
		if change := n.applyTree(n.audited(allow("client", "server"))); !change.Adds {
			t.Errorf("change %+v, want one that adds", change)
		}
		demand(t, http(policy.Allow, n.other, n.server, 80)...)
		for _, s := range slices.Concat(streams, allowed) {
			s.awaitLines(20)
		}
	})
}
