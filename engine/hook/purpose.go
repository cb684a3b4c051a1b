package hook

import (
	"slices"
	"strings"
)

// Purpose names what a rule is for. Most rules carry it in a comment, by which
// their counters are found again; see evident for the others.
type Purpose string

// The purposes of rules, in the order in which a packet meets them.
const (
	PurposeJump         Purpose = "jump"           // POSTROUTING to our chain, PREROUTING and FORWARD to theirs
	PurposeSpoofed      Purpose = "spoofed"        // sent on with a source address that is elsewhere
	PurposeDialed       Purpose = "dialed"         // new: noted where it was addressed
	PurposeOnLink       Purpose = "on-link"        // between pods of one bridge, and not to or from a pod's own address
	PurposeEstablished  Purpose = "established"    // the flow is allowed
	PurposeVerdict      Purpose = "verdict"        // the packet comes back with a verdict
	PurposeAnswerClear  Purpose = "answer-clear"   // hide our mark on the agent's own packets
	PurposeAnswer       Purpose = "answer"         // sent by the agent to the sender of a denied packet
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
	PurposeRejected     Purpose = "rejected"       // verdict deny, answered and not remembered
	PurposeStaleDenied  Purpose = "stale-denied"   // verdict deny of an earlier epoch
	PurposeStaleAllowed Purpose = "stale-allowed"  // verdict allow of an earlier epoch
	PurposeAllowMark    Purpose = "allow-connmark" // remember allow on the connection
	PurposeAllowClear   Purpose = "allow-clear"    // hide our packet mark
	PurposeDenyMark     Purpose = "deny-connmark"  // remember deny on the connection
	PurposeDrop         Purpose = "drop"           // end of a denied packet
)

// commentPrefix makes our comments recognizable to people.
const commentPrefix = "netverdict:"

// evident returns the purpose of a rule that carries no comment, or "". To the
// kernel a comment is a match like any other, and costs as much: those rules do
// without that most packets meet, and whose other words say what they are for.
func evident(chain string, args []string) Purpose {
	first, set := option(args, "-m"), option(args, "--match-set")
	switch {
	case chain == postrouting, chain == forwarding:
		return PurposeJump
	case strings.HasSuffix(chain, (names{}).known()):
		return PurposeAllowMark
	case first == "connmark" && option(args, "-j") == "RETURN":
		return PurposeEstablished
	case strings.Contains(set, setDeny) && option(args, "-j") == "DROP":
		return PurposeDenySet
	case strings.Contains(set, setAllow) && strings.HasSuffix(option(args, "-g"), (names{}).known()):
		return PurposeAllowSet
	}
	return ""
}

// option returns the word after an option, or "".
func option(args []string, name string) string {
	if i := slices.Index(args, name); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// Purposes lists all of them, in that order.
var Purposes = []Purpose{
	PurposeJump, PurposeSpoofed, PurposeDialed, PurposeOnLink, PurposeEstablished, PurposeVerdict, PurposeAnswerClear, PurposeAnswer, PurposeReplies, PurposeDeniedReply, PurposeReply, PurposeDenySet, PurposeAllowSet,
	PurposeFreed, PurposeNotPoliced, PurposeNode, PurposeNeighbour, PurposeInvalid, PurposeICMPError, PurposeFlood, PurposeQueue,
	PurposeAllowKeep, PurposeAllowed, PurposeDenyKeep, PurposeRejected, PurposeDenied, PurposeStaleDenied, PurposeStaleAllowed,
	PurposeAllowMark, PurposeAllowClear, PurposeDenyMark, PurposeDrop,
}
