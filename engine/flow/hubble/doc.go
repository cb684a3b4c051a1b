// Package hubble serves flow records over Cilium's Hubble API, so that the tools
// which speak it (the hubble command, hubble-relay, the Hubble UI) show what
// netverdict decided. The messages are those of github.com/cilium/cilium/api/v1.
//
//	workers ─▶ rings ─▶ Collector ─▶ Server.Flows ─▶ history (the last N records)
//	                                                   ▲ ▲ ▲   each reads at its own pace
//	                       GetFlows ── select ─▶ render┘ │ │
//	                       GetFlows ── select ─▶ render──┘ │
//	                       GetFlows ── select ─▶ render────┘
//
// Nobody waits for a subscriber. The collector writes to the history and goes on;
// a subscriber that is slower finds that what it wanted next has been overwritten,
// and is told how many records it missed (LostEvent of HUBBLE_RING_BUFFER). What
// the workers' rings had no room for is reported to all of them
// (OBSERVER_EVENTS_QUEUE). Filters look at records; only what passes them is
// rendered.
//
// # What a flow says
//
// A record is one verdict on the first packet of a connection, what Hubble calls a
// policy-verdict event (event_type 5). A client that asks for drop events
// (event_type 1) gets the denied ones as such. There are no trace, L7 or socket
// events.
//
//	verdict            FORWARDED, DROPPED, AUDIT (denied, but let pass)
//	drop_reason_desc   POLICY_DENIED: isolated, and no rule allowed it
//	                   POLICY_DENY: a rule denied it
//	                   NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION: pod not known
//	                   INVALID_PACKET_DROPPED: malformed
//	*_allowed_by       the policy that allowed; its label netverdict.io/rule is the
//	                   index of the rule in spec.ingress or spec.egress (see Rule)
//	*_denied_by        the policy that denied, with rule, or the policies that
//	                   isolate the pod, without
//	policy_log         netverdict.io/egress=REASON, netverdict.io/ingress=REASON
//	identity           host, remote-node or world; 0 for pods, which have no number here
//	Summary            what hubble observe prints in parentheses, the policies included
//
// # Which flows there are
//
// Denied flows always. Allowed ones while somebody wants them: a subscriber that
// follows and whose filters can match them, or another sink (--flow-log=all). So a
// look back shows allowed flows only of such times.
//
// # Filters
//
// They mean what they mean in Cilium. A filter on something that no record has
// (fqdn, service, http, …) is refused with InvalidArgument and its name: it would
// otherwise silently hide everything.
package hubble
