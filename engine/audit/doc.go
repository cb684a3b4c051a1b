// Package audit decides on a copy of the traffic and enforces nothing: it installs
// no rule, delays no packet and needs CAP_NET_RAW alone.
//
//	every interface                                    ┌ a reply, or known already ─▶ nothing
//	AF_PACKET ─▶ BPF: begins a flow? ─▶ look ─▶ flows ─┤
//	 (or a capture file)                               └ new ─▶ recent ─▶ Tree.Decide ─▶ flow.Ring
//
// # Which copy of a packet is judged
//
// One packet is seen several times: when it comes in (on the pod's veth, on a
// bridge), and when it goes out. Rules that enforce sit between the two, behind
// DNAT and before SNAT (mangle POSTROUTING), where nobody can take a copy. So a
// packet is judged when it goes out, by the destination that it has then, and by
// the source that it had when it first came in. What never goes out (it is for the
// node itself, or something drops it) would not meet the rules either.
//
//	pod A ──▶ veth A: A → VIP ──▶ DNAT ─▶ [rules: A → B] ─▶ SNAT ──▶ veth B: node → B ──▶ pod B
//	          came in: source A                                      goes out: destination B
//
// The two are known to be one packet by what translation leaves alone: TCP sequence
// numbers, payloads, identifications (fingerprint). Capture files that do not say
// which way a packet went are judged as they are.
//
// # Which packets begin a flow
//
// TCP SYN, SCTP INIT, ICMP queries; and the first datagram of a UDP or other flow,
// which only somebody with a memory can tell: flows remembers both directions, with
// the timeouts of conntrack, and never takes a reply for a new flow, nor the
// translated copy of one. A flow that is older than the audit may be seen first by
// a reply: for two minutes after the start a datagram from a well-known or
// registered port to an ephemeral one is taken for that.
//
// # What is not seen
//
// TCP and SCTP connections that were there before: their beginning is over, and
// only beginnings are copied. What others drop on the way. Flows within one bridge
// are seen, even where rules would only see them with bridge-nf-call-iptables=1.
// Copies that the kernel had no room for are counted (Stats.KernelDropped).
package audit
