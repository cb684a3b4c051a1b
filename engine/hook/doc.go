// Package hook decides which packets reach the queue, and makes the kernel
// remember what was decided about them. It owns a few iptables chains in the
// table mangle and a few ipsets, for IPv4 and for IPv6.
//
//	mangle POSTROUTING ──▶ NETVERDICT                                  (first rule)
//
//	 1  connmark = allow, current generation ────────────▶ pass           established
//	 2  packet mark has a verdict ───────────────────────▶ NETVERDICT-VERDICT
//	 3  reply direction ─────────────────────────────────▶ NETVERDICT-REPLY
//	 4  first packet, in the deny set ───────────────────▶ drop           deny-set
//	 5  NEW and in the allow set ────────────────────────▶ NETVERDICT-KNOWN
//	 6  neither end is asked about: forget a connmark ───▶ pass           freed, not-policed
//	    deny, but not for an ICMP error
//	 7  source address is the node's ────────────────────▶ pass           node
//	 8  IPv6 neighbour discovery, hop limit 255 ─────────▶ pass           neighbour
//	 9  belongs to no connection (INVALID) ──────────────▶ drop           invalid
//	10  ICMP error of a flow with connmark allow ────────▶ pass           icmp-error
//	11  in the deny set ─────────────────────────────────▶ NETVERDICT-DENY
//	12  not NEW, in the allow set ───────────────────────▶ NETVERDICT-ALLOW
//	13  new, and more of its source than its share ──────▶ drop           flood
//	14  NFQUEUE ─▶ user space ─▶ NF_REPEAT with a verdict in the packet mark ─▶ 2
//
//	NETVERDICT-VERDICT                              NETVERDICT-ALLOW
//	  allow, current epoch: add to allow set          clear our packet mark
//	                        ─▶ NETVERDICT-ALLOW       ICMP error: ─▶ pass
//	  the node's: ─▶ pass
//	  deny, current epoch:  add to deny set         NETVERDICT-KNOWN
//	                        ─▶ NETVERDICT-DENY        connmark := allow, generation ─▶ pass
//	  not allow: drop                               NETVERDICT-DENY
//	  clear our packet mark ─▶ pass                   ICMP error: drop
//	NETVERDICT-REPLY                                  connmark := deny, generation
//	  connmark = deny: drop                           drop
//	  pass
//
// "Pass" goes back to POSTROUTING behind the jump, so that rules of others still
// apply. Last on each line is the purpose under which Counters counts it. Most rules
// say it in a comment, but those that most packets meet have none: the kernel
// evaluates comments as it does matches.
//
// POSTROUTING is where a packet has its final destination (after DNAT) and still
// its own source (before SNAT), and where traffic of IPVS comes by, which avoids
// FORWARD.
//
// # Why in this order
//
// 1 keeps flows in the kernel in both directions, with one look at the
// connection. It is not ESTABLISHED that counts: one-way UDP never is, and an
// established flow may have to be judged again. A packet with a verdict is not for
// this rule: of two packets of one flow that wait in the queue together the first
// one's verdict marks the connection, and the second would leave with our mark on
// it, for a tunnel device or somebody else's rules to see.
//
// 3 comes before anything that may queue, as only the original direction is
// ever judged: a reply judged as a flow of its own is the classic bug of this
// design. A flow that was cut by a change of policy is cut in both directions,
// whichever generation did it.
//
// 4 and 5 are as early as they can be: connections of a kind that was decided are
// most of what comes here, and floods. A key is in a set because somebody asked, so
// it was policed, and the changes after which it is not come with fresh sets, or
// remove it. Only NEW packets look there: those of a live flow that nobody polices
// need not. Deny comes first, though no key is in both unless a verdict was given
// twice within an epoch. NETVERDICT-KNOWN is ALLOW without what only a packet that
// was asked about needs. 4 is for packets whose connection nobody has confirmed: the
// kernel drops it with them. A packet of a live flow goes to DENY, at 11, which
// marks the connection, so that it is cut in both directions. No rule renews the
// timeout of an entry: after at most that time the policy is asked again.
//
// 6 lets most packets of most nodes go, after one look into a set for each end.
// Each of the two sets (hash:net) has the addresses that policies isolate in its
// direction. Besides, both have the ranges that the node's pods get their
// addresses from, with an exception (nomatch) for each address whose pod is known
// and not isolated. What remains of the ranges is pods that the API server has
// not told us of yet: policies may be about them, so they are asked about, and
// user space lets them wait. For a known pod that no policy is about this is the
// same one look-up. Where nobody knows the ranges there are none in the sets, and
// a pod is open until it is known.
//
// Prepare makes the changes after which more is asked, Finish those after which
// less is: in between, with either tree, no packet passes that should be asked
// about, and one that is asked about needlessly gets the answer allow. That an
// address changes between match and nomatch is one store.
//
// A connection that was cut while a policy
// was about it loses its deny mark first: 3 would go on dropping its
// replies. It comes after 3 because replies have source and destination swapped.
//
// 7: a node reaches its own pods, always (kubelet probes). A pod cannot claim
// the node's IPv4 address, the kernel drops that as martian; for IPv6, which has no
// such check, and on a bridge, which does not route, NETVERDICT-FORWARD does.
//
// 8: without neighbour discovery (ICMPv6 133 to 137) there is no IPv6. On bridges
// that pass packets to ip6tables it comes by here. What a router has passed on has
// lost the hop limit 255 and is no neighbour's (RFC 4861): it could carry data.
//
// 9: conntrack calls a packet INVALID that fits no connection, such as a late
// segment of one that has ended. Judged by its addresses it might be taken for
// the beginning of a flow in the wrong direction. kube-proxy and Calico drop
// these too; here only those of policed pods are.
//
// 10: an ICMP error in the original direction, about a reply, is part of its flow,
// even while that flow waits to be judged again. Errors in the reply direction
// have passed at 3. Errors about other flows are judged by their own addresses.
// Conntrack gives any error the connection that it quotes, and anybody can send
// one; so whichever way an error goes, at 6, in ALLOW or in DENY, it never writes
// the connection mark: it would free or cut a flow that it only talks about.
// Connections that a conntrack helper expects (FTP data) need
// no rule: the kernel gives them the mark of their parent.
//
// 11 and 12 are for live flows that are asked about again, and for what conntrack
// does not track; at 12 those that are NEW have been asked about at 5. UDP that nobody has answered is NEW for as long as it lives.
//
// 13 keeps one pod that tries a lot of different things, such as a port scan, from
// filling the queue and the time of user space, which all pods share. It comes last,
// for what the sets know costs nobody anything, and does not count. It counts by
// source, in a table for those whose egress is isolated and another one for the rest:
// forged sources without end fill the second.
//
// # What the kernel remembers, and for how long
//
// A decision depends on source address, destination address, protocol and
// destination port, and on nothing else; that is the key of the two sets
// (hash:ip,port,ip), which are therefore exact. For ICMP the set has type and
// code in place of the port, which asks more often than needed. The decoder must
// find the same ports in a packet as the kernel does.
//
// Connection marks and packet marks differ in one bit (see Marks). Others copy the
// connection mark into the packet mark (CONNMARK --restore-mark), ours included:
// without that bit it would be taken for a verdict at 2, and a flow that was
// revoked would go on.
//
// Numbers keep what was decided under one policy from being believed under the
// next:
//
//	            written in       changes at            what is old then
//	epoch       packet marks     every switch          is obeyed once, not remembered
//	generation  connection marks switches that revoke  is asked again
//	allow a/b   rules            switches that revoke  is emptied when no packet uses it
//	deny a/b    rules            switches that add     is emptied when no packet uses it
//
// All of them change in the one transaction that replaces the rules, while the
// old tree is still judging; see Switch for when that fails. A verdict of the
// old tree that arrives after it has the old epoch: its packet is accepted or
// dropped, once. Sending it to the queue again could go on for ever.
//
// Both numbers come round. An epoch lives in packet marks only, and those only
// inside the system call that sends the verdict. A generation lives in
// connections as long as they do: twice in each cycle, the allow marks of all
// generations but the current one are cleared from the connection table. (A deny
// mark is obeyed whatever its number.)
//
// # Answers
//
// While some denied packets are answered (Policed.Answers) there are more rules. In
// VERDICT, a denial that was answered (Marks.Rejected) cuts its connection and is not
// remembered, so that the next of its kind is answered too; and first of all, what
// the agent sends itself (Marks.Own) passes with a clean mark: to conntrack an answer
// without a connection is INVALID, and 9 would drop it. NETVERDICT-ARRIVAL, called
// from PREROUTING before DNAT, notes new connections in an NFLOG group:
//
//	mangle PREROUTING ──▶ NETVERDICT-ARRIVAL
//	  new, not ICMP, not to a policed pod itself: NFLOG ─▶ user space          dialed
//
// Package reject says why.
//
// # One bridge
//
// Pods on one bridge reach each other without a router. POSTROUTING sees what is
// bridged if br_netfilter shows it (bridge-nf-call-iptables), but it can tell pods
// only by the addresses that the API server knows. NETVERDICT-FORWARD, called from
// FORWARD, where what the node sends itself does not come by, drops what names no pod
// on the bridges of SetBridges, and what can only be forged:
//
//	mangle FORWARD ──▶ NETVERDICT-FORWARD
//	  to all or many, to or from a link-local address, on a bridge
//	  of pods: drop, but for IPv6 neighbour discovery             on-link
//	  new, to an isolated pod, from an address of this node: drop  spoofed
//
// # Spoofed sources
//
// With Config.AntiSpoof, NETVERDICT-ARRIVAL first of all drops packets that come from
// an interface behind which pods are (SetPodLinks), but whose source address the
// routes of this node have elsewhere:
//
//	from a pod's interface, the way back to the source is another: drop      spoofed
//
// A pod with a link of its own (ptp, Calico, kindnet) can so use its own addresses
// only; pods that share a bridge can still use each other's.
//
// # Living with others
//
// Rules are replaced in place by iptables-restore --noflush. Deleting a base
// chain of nf_tables would drop what waits in any queue of the namespace. Chains
// and rules of others are never touched. The jump is put first by Install; Verify
// does not mind if somebody else's rule has come before it since.
//
// Rules that iptables cannot express, in its own table, make it blind for the whole
// table: every change then fails with an error that says so, and what is in force
// stays.
//
// A flow that conntrack does not track (-j CT --notrack) is judged packet by
// packet in both directions. When connection tracking begins with our rules, as
// it may on a node without kube-proxy, the first packet seen of an old connection
// decides which direction is the original one.
//
// # Live connections
//
// A new generation makes the kernel ask about every connection that still sends in
// its original direction. A reply has nothing that could be judged: of a connection
// on which only the server sends nobody would ask. Review is for these: it walks the
// connection table, and marks what is denied, so that 3 drops its replies, or takes
// that mark away again. Only Review frees a connection that was cut. It also finds
// those that are older than the rules.
//
// A change that concerns a few addresses, as when a pod comes or goes, needs no new
// generation: SwitchFor starts an epoch only, and when the new tree is in force,
// Forget and Review remove what the kernel knows of these addresses. Sets with many
// keys are exchanged rather than searched.
package hook
