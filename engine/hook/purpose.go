package hook

// Purpose names what a rule is for. Each rule carries it in a comment, by which
// its counters are found again.
type Purpose string

// The purposes of rules, in the order in which a packet meets them.
const (
	PurposeJump         Purpose = "jump"           // POSTROUTING to our chain
	PurposeEstablished  Purpose = "established"    // the flow is allowed
	PurposeVerdict      Purpose = "verdict"        // the packet comes back with a verdict
	PurposeReplies      Purpose = "replies"        // reply direction, whatever its fate
	PurposeDeniedReply  Purpose = "denied-reply"   // reply of a flow that was cut
	PurposeReply        Purpose = "reply"          // reply of any other flow
	PurposeDenySet      Purpose = "deny-set"       // denied by a verdict of the same kind
	PurposeAllowSet     Purpose = "allow-set"      // allowed by a verdict of the same kind
	PurposeFreed        Purpose = "freed"          // forget that a flow was cut: no policy is about it now
	PurposeNotPoliced   Purpose = "not-policed"    // neither end is isolated
	PurposeNode         Purpose = "node"           // sent by the node itself
	PurposeNeighbour    Purpose = "neighbour"      // IPv6 neighbour discovery
	PurposeInvalid      Purpose = "invalid"        // belongs to no connection
	PurposeICMPError    Purpose = "icmp-error"     // error about an allowed flow, allowed itself, or of nobody policed
	PurposeFlood        Purpose = "flood"          // more new connections of one source than its share
	PurposeQueue        Purpose = "queue"          // asked
	PurposeAllowKeep    Purpose = "allow-keep"     // verdict allow into the allow set
	PurposeAllowed      Purpose = "allowed"        // verdict allow
	PurposeDenyKeep     Purpose = "deny-keep"      // verdict deny into the deny set
	PurposeDenied       Purpose = "denied"         // verdict deny
	PurposeStaleDenied  Purpose = "stale-denied"   // verdict deny of an earlier epoch
	PurposeStaleAllowed Purpose = "stale-allowed"  // verdict allow of an earlier epoch
	PurposeAllowMark    Purpose = "allow-connmark" // remember allow on the connection
	PurposeAllowClear   Purpose = "allow-clear"    // hide our packet mark
	PurposeDenyMark     Purpose = "deny-connmark"  // remember deny on the connection
	PurposeDrop         Purpose = "drop"           // end of a denied packet
)

// commentPrefix makes our comments recognizable to people.
const commentPrefix = "netverdict:"

// Purposes lists all of them, in that order.
var Purposes = []Purpose{
	PurposeJump, PurposeEstablished, PurposeVerdict, PurposeReplies, PurposeDeniedReply, PurposeReply, PurposeDenySet, PurposeAllowSet,
	PurposeFreed, PurposeNotPoliced, PurposeNode, PurposeNeighbour, PurposeInvalid, PurposeICMPError, PurposeFlood, PurposeQueue,
	PurposeAllowKeep, PurposeAllowed, PurposeDenyKeep, PurposeDenied, PurposeStaleDenied, PurposeStaleAllowed,
	PurposeAllowMark, PurposeAllowClear, PurposeDenyMark, PurposeDrop,
}
