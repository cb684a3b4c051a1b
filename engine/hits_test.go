package engine

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

func ref(name string) policy.PolicyRef {
	return policy.PolicyRef{Kind: policy.KindNetworkPolicy, NamespacedName: policy.NamespacedName{Namespace: "shop", Name: name}}
}

func demandHits(t *testing.T, r *rig, when string, want ...PolicyHits) {
	t.Helper()
	if diff := cmp.Diff(want, r.engine.PolicyHits()); diff != "" {
		t.Errorf("%s: hits (-want +got):\n%s", when, diff)
	}
}

// TestPolicyHits: each policy's part in the decisions, exactly, whatever becomes of
// the flow records and however often the tree is replaced.
func TestPolicyHits(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.PolicyLimit, c.RingSize = 10, 1 })
	r.run(sceneTree(t, allow("web", "db")))
	judge := func(n int, payload []byte) {
		for range n {
			r.judge(queue.Packet{Payload: payload})
		}
	}
	demandHits(t, r, "at the start",
		PolicyHits{ref("web-to-db"), policy.Ingress, policy.Deny, 0}, PolicyHits{ref("web-to-db"), policy.Ingress, policy.Allow, 0})

	judge(3, packetOf(t, web4, db4, policy.TCP, tcpPort))
	judge(2, truncated(t)) // no policy's
	judge(5, packetOf(t, ops4, db4, policy.TCP, tcpPort))
	judge(7, packetOf(t, db4, ops4, policy.TCP, tcpPort)) // nobody isolated
	demandHits(t, r, "with one policy",
		PolicyHits{ref("web-to-db"), policy.Ingress, policy.Deny, 5}, PolicyHits{ref("web-to-db"), policy.Ingress, policy.Allow, 3})

	// Two policies isolate db now: both are why ops is denied.
	judge(1, packetOf(t, ops4, db4, policy.TCP, tcpPort))
	r.apply(sceneTree(t, allow("web", "db"), isolate("db")))
	judge(4, packetOf(t, ops4, db4, policy.TCP, tcpPort))
	judge(1, packetOf(t, web4, db4, policy.TCP, tcpPort))
	demandHits(t, r, "with two",
		PolicyHits{ref("isolate-db"), policy.Ingress, policy.Deny, 4}, PolicyHits{ref("isolate-db"), policy.Ingress, policy.Allow, 0},
		PolicyHits{ref("web-to-db"), policy.Ingress, policy.Deny, 10}, PolicyHits{ref("web-to-db"), policy.Ingress, policy.Allow, 4})

	// A policy that is gone takes its series along; what others counted stays.
	r.apply(sceneTree(t, isolate("db")))
	judge(1, packetOf(t, web4, db4, policy.TCP, tcpPort))
	demandHits(t, r, "with the other",
		PolicyHits{ref("isolate-db"), policy.Ingress, policy.Deny, 5}, PolicyHits{ref("isolate-db"), policy.Ingress, policy.Allow, 0})
	if n := len(r.engine.hits.retired); n > 1 {
		t.Errorf("%d retired sets of counters are kept although the worker has rested since", n)
	}
}

// TestPolicyHitsAreBounded: beyond the limit policies share one series, and none
// falls when places are taken and given.
func TestPolicyHitsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.PolicyLimit = 1 })
	db, web, ops := isolate("db"), isolate("web"), isolate("ops")
	r.run(sceneTree(t, db, web, ops))
	for n, payload := range [][]byte{
		packetOf(t, late4, db4, policy.TCP, tcpPort), // the late pod is unknown: egress denies, no policy
		packetOf(t, ops4, db4, policy.TCP, tcpPort), packetOf(t, db4, web4, policy.TCP, tcpPort), packetOf(t, db4, ops4, policy.TCP, tcpPort),
	} {
		for range n {
			r.judge(queue.Packet{Payload: payload})
		}
	}
	none := func(name string) PolicyHits { return PolicyHits{ref(name), policy.Ingress, policy.Allow, 0} }
	others := PolicyHits{Direction: policy.Ingress, Verdict: policy.Deny, Count: 2 + 3}
	demandHits(t, r, "three policies", PolicyHits{ref("isolate-db"), policy.Ingress, policy.Deny, 1}, none("isolate-db"), others)

	r.apply(sceneTree(t, web, ops))
	r.judge(queue.Packet{Payload: packetOf(t, db4, ops4, policy.TCP, tcpPort)})
	r.judge(queue.Packet{Payload: packetOf(t, db4, web4, policy.TCP, tcpPort)})
	others.Count++
	// By name isolate-ops comes first; what it had counted among the others stays there.
	demandHits(t, r, "two policies", PolicyHits{ref("isolate-ops"), policy.Ingress, policy.Deny, 1}, none("isolate-ops"), others)

	r.apply(sceneTree(t, db, web, ops))
	demandHits(t, r, "three again", PolicyHits{ref("isolate-ops"), policy.Ingress, policy.Deny, 1}, none("isolate-ops"), others)
}

// TestPolicyHitsOfAudited: what passes only because it is audited is not counted as
// allowed by the policy that denies it.
func TestPolicyHitsOfAudited(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.PolicyLimit = 1 })
	r.run(auditedTree(t, isolate("db")))
	r.judge(queue.Packet{Payload: packetOf(t, web4, db4, policy.TCP, tcpPort)})
	demandHits(t, r, "audited", PolicyHits{ref("isolate-db"), policy.Ingress, policy.Deny, 0},
		PolicyHits{ref("isolate-db"), policy.Ingress, policy.Allow, 0}, PolicyHits{ref("isolate-db"), policy.Ingress, policy.Audit, 1})
}

// TestPolicyHitsUnderChange: no decision is lost or counted twice while trees come
// and go and somebody reads.
func TestPolicyHitsUnderChange(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.PolicyLimit = 10 })
	trees := []*policy.Tree{sceneTree(t, isolate("db")), sceneTree(t, isolate("db"), allow("web", "ops"))}
	r.run(trees[0])
	payload := packetOf(t, web4, db4, policy.TCP, tcpPort)
	const rounds, burst = 100, 50
	for i := range rounds {
		for range burst {
			r.source.Inject(queue.Packet{Payload: payload})
		}
		r.apply(trees[(i+1)%2])
		r.engine.PolicyHits()
	}
	r.source.Settle()
	for _, h := range r.engine.PolicyHits() {
		if h.Policy == ref("isolate-db") && h.Verdict == policy.Deny && h.Count != rounds*burst {
			t.Errorf("%s denied %d packets, want %d", h.Policy, h.Count, rounds*burst)
		}
	}
}

// TestOutcomeIDs: the counters are found by ID.
func TestOutcomeIDs(t *testing.T) {
	t.Parallel()
	tree := sceneTree(t, isolate("db"), allow("web", "ops"), isolate("web"))
	for i, o := range tree.Outcomes() {
		if o.ID != uint32(i) {
			t.Errorf("outcome %d (%v) has ID %d", i, o.Reason, o.ID)
		}
	}
	d := tree.Decide(web4, ops4, policy.TCP, tcpPort)
	if got := &tree.Outcomes()[d.Ingress.ID]; got != d.Ingress {
		t.Errorf("the outcome with ID %d is %s, want the decision's", d.Ingress.ID, fmt.Sprint(got))
	}
}
