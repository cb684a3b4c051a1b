// Package oracle decides connections the slow, obvious way: for every question
// it loops over the objects of the snapshot, following the text of the
// networking.k8s.io/v1 API reference, the "Network Policies" concept page of
// kubernetes.io and the semantics table of DESIGN.md sentence by sentence.
//
// It exists to disagree with the compiled tree when one of the two is wrong, so
// it shares no code with policy.Compile, keeps no index and remembers nothing
// between two calls. Keep it readable next to the API text; never make it fast.
//
// A snapshot must be valid, as package policy's validation defines it: Decide
// panics on a selector or an IP block that an API server would have refused.
package oracle

import (
	"net/netip"

	"github.com/netverdict/netverdict/policy"
)

// connection is a question with both of its ends looked up.
type connection struct {
	src, dst end
	proto    policy.Protocol
	port     uint16 // destination port, host byte order; only for TCP, UDP and SCTP
}

// Decide answers for a connection from src to dst. port is the destination
// port in host byte order and means nothing for protocols without ports.
func Decide(s *policy.Snapshot, src, dst netip.Addr, proto policy.Protocol, port uint16) policy.Decision {
	c := connection{src: lookUp(s, src), dst: lookUp(s, dst), proto: proto, port: port}
	return settle(outcome(s, policy.Egress, c), outcome(s, policy.Ingress, c))
}

// settle joins the two directions.
//
// Concept page: "For a connection from a source pod to a destination pod to be
// allowed, both the egress policy on the source pod and the ingress policy on the
// destination pod need to allow the connection."
func settle(egress, ingress *policy.Outcome) policy.Decision {
	d := policy.Decision{Egress: egress, Ingress: ingress}
	switch {
	case denies(egress):
		d.Direction = policy.Egress
	case denies(ingress):
		d.Direction = policy.Ingress

	// Issue 4: "the pods of that namespace are judged as always, but a deny by
	// their rules lets the packet pass and is reported".
	case egress.Audit:
		d.Verdict, d.Audit, d.Direction = policy.Allow, true, policy.Egress
	case ingress.Audit:
		d.Verdict, d.Audit, d.Direction = policy.Allow, true, policy.Ingress
	case hadASay(ingress):
		d.Verdict, d.Direction = policy.Allow, policy.Ingress
	case hadASay(egress):
		d.Verdict, d.Direction = policy.Allow, policy.Egress
	default:
		d.Verdict, d.Direction = policy.Allow, policy.Ingress
	}
	return d
}

// denies reports whether an outcome keeps the connection from passing.
func denies(o *policy.Outcome) bool { return o.Verdict == policy.Deny && !o.Audit }

// hadASay reports whether an allowing outcome comes from asking the policies,
// even if none of them selects the pod.
func hadASay(o *policy.Outcome) bool {
	return o.Reason == policy.ReasonPolicy || o.Reason == policy.ReasonNoPolicy
}

// outcome is what one direction says: egress for the source, ingress for the
// destination.
func outcome(s *policy.Snapshot, dir policy.Direction, c connection) *policy.Outcome {
	me, peer := c.src, c.dst
	if dir == policy.Ingress {
		me, peer = c.dst, c.src
	}
	switch {
	// Concept page: "a pod cannot block access to itself".
	case me.pod != nil && me.pod == peer.pod:
		return allow(policy.ReasonSelf)

	// Concept page: "traffic to and from the node where a Pod is running is always
	// allowed, regardless of the IP address of the Pod or the node".
	case isOwnNode(me, peer) || isOwnNode(peer, me):
		return allow(policy.ReasonNodeTraffic)

	// Concept page: "NetworkPolicies apply to a connection with a pod on one or
	// both ends, and are not relevant to other connections." The same of one end:
	// rules belong to pods, and a host-network pod's "connections will be treated
	// as node connections".
	case me.isNode():
		return allow(policy.ReasonNodeTraffic)
	case me.isUnknownPod(s):
		return &policy.Outcome{Verdict: s.UnknownPod, Reason: policy.ReasonUnknownPod}
	case me.pod == nil:
		return allow(policy.ReasonExternal)

	// DESIGN: "each node decides for its own pods: egress at the source's node,
	// ingress at the destination's".
	case s.Local != nil && !s.Local(me.pod):
		return allow(policy.ReasonNotLocal)
	}
	return judge(s, dir, me, peer, c)
}

func allow(r policy.Reason) *policy.Outcome {
	return &policy.Outcome{Verdict: policy.Allow, Reason: r}
}
