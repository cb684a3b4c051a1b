// Package flow carries what was decided off the packet path and shows it.
//
//	worker ──Push──▶ Ring ─┐
//	worker ──Push──▶ Ring ─┼─▶ Collector ─┬─▶ Fold ─▶ Limit ─▶ JSONLines (the flow log)
//	worker ──Push──▶ Ring ─┘              └─▶ other Sinks
//
// A worker only ever copies a Record into its own Ring: no lock, no wait, no
// allocation. When the ring is full, because a sink is slow or stdout blocks,
// the record is lost and counted; packets never wait for the log. Names and
// text are made by the sinks, for records that are kept.
//
// # Flow log lines
//
// Each line is one JSON object. Fields marked * are absent when they have
// nothing to say; fields may be added, never renamed.
//
//	time         RFC 3339 with nanoseconds, UTC
//	verdict      "allow", "deny", or "audit": policies deny it, it passes all the same
//	direction    "egress" or "ingress": the direction that decided, or would have
//	reason       why, in that direction: "policy", "default-deny", "no-policy", …
//	protocol     "TCP", "UDP", "SCTP", "ICMP", "ICMPv6" or a number, as a string
//	source       {ip*, port*, namespace*, pod*, labels*}; labels is an object, and
//	             only netverdict flows writes it
//	destination  the same
//	policy*      "namespace/name", when reason is "policy"
//	rule*        index in spec.ingress or spec.egress, when reason is "policy"
//	isolatedBy*  list of "namespace/name", when reason is "default-deny"
//	overLimit*   those of isolatedBy whose rules are left out because they expand too much
//	egress       {verdict, reason, policy*, rule*, isolatedBy*, overLimit*} of each direction
//	ingress
//	tcpFlags*    "SYN", "SYN,ACK", … for TCP
//	icmp*        {type, code} for ICMP and ICMPv6
//	malformed*   why the packet could not be decoded (packet.State)
//	cached*      true when the answer came from the flow cache
//	revision*    serial of the tree that decided
//	node*        whose agent decided; only netverdict flows writes it
//
// Repeated denials are folded. The first of a kind (source and destination
// address, protocol, destination port, deciding policy) is written at once;
// those that follow become one line an interval, with these fields, where time
// is that of the last, and the source port is absent:
//
//	count*       flows that the line stands for; 1 when absent
//	first*       time of the first of them
//	last*        time of the last of them
//	ports*       {distinct*, ranges, more*} of destination ports, when there are
//	             many (a port scan); destination then has no port. ranges is a list
//	             of "80" and "8000-8080"; more counts the ranges left out; without
//	             distinct, ranges are examples
//
// A line {"withheld": n, "lines": m, "time": …} says that n flows, which would
// have been m lines, are missing from the log before that time because there
// were too many lines. A line {"lost": n, "time": …} says that n flows are
// missing because nobody took them in time. The counts of all lines, the
// withheld and the lost add up to the flows that the filter keeps; lost ones are
// counted before the filter.
package flow

import (
	"net/netip"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// Record is one decided flow: plain values and pointers to immutable data, so
// that copying it is all the packet path pays.
type Record struct {
	Time int64 // Unix time in nanoseconds

	// Src and Dst are invalid when the packet was malformed before them.
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16 // host byte order; 0 for protocols without ports
	Protocol         policy.Protocol
	TCPFlags         uint8 // as in packet.Packet; TCP only
	ICMPType         uint8 // ICMP and ICMPv6 only
	ICMPCode         uint8 // ICMP and ICMPv6 only

	// Malformed is the state of the packet; OK and Undecoded (a record that was
	// not made from a packet) leave nothing to show.
	Malformed packet.State
	// Cached says that the decision came from the flow cache.
	Cached bool

	Decision policy.Decision
	// Names resolves the addresses when the record is rendered, as the tree that
	// decided knew them. nil leaves them without names.
	Names Names
	// Revision is the serial of the tree that decided; 0 when none did.
	Revision uint64
}

// Names tells which pod held an address; *policy.Tree does. It must be safe for
// use from another goroutine than the packet path's.
type Names interface {
	Pod(netip.Addr) (*policy.Pod, bool)
}
