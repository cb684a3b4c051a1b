//go:build linux

// Package reject answers packets that were denied, so that their senders fail at
// once instead of after a time-out:
//
//	worker ─▶ Reject ─▶ share of the source ─▶ ring ─▶ craft ─▶ raw socket ─▶ sender of the packet
//	          │         (else: remember the         ▲
//	          │          denial, say nothing)       │ what did it address?
//	          └ never waits                   NFLOG in PREROUTING; conntrack for live flows
//
// TCP is answered with a reset (RFC 9293 section 3.10.7), everything else with an
// ICMP error "communication administratively prohibited" (RFC 1812 section 5.2.7.1,
// RFC 4443 section 3.1). What RFC 1122 section 3.2.2 and RFC 4443 section 2.4 forbid
// to answer is not: ICMP errors, multicast, senders that are nobody.
//
// # In whose name
//
// A client believes an answer only if it comes from, or quotes, the address that it
// sent to. Behind a Service that is not the address in the packet, which has been
// through DNAT when it is judged; and as the connection of a denied packet is never
// confirmed, conntrack translates nothing back. NFQUEUE could hand over conntrack's
// tuples with a packet (NFQA_CT), but the kernels of many nodes are built without
// that (CONFIG_NETFILTER_NETLINK_GLUE_CT). So a rule in PREROUTING, before DNAT,
// copies the first packets of connections to an NFLOG group, which any kernel with
// the xt_NFLOG target can. The copy is in the socket before its packet goes on to be
// judged, and is found by source, protocol and what DNAT leaves alone: sequence
// numbers, payload. Without NFLOG only direct connections are answered in a way
// that clients believe.
//
// An ordinary reset would have no connection and be dropped as INVALID by our own
// rules: it carries hook.Marks.Own.
package reject
