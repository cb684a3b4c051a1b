package hook

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/netverdict/netverdict/policy"
)

// state is what a switch changes in the rules.
type state struct {
	epoch       uint32 // of the packet marks that the rules remember
	generation  uint32 // of the connection marks that the rules believe
	allow, deny side   // the sets that the rules use
	answers     bool   // denied packets may be answered
}

// chain describes the rules of one family; render makes them from it.
type chain struct {
	family family
	names  names
	packet Marks
	conn   Marks
	state

	queueNum, queueCount uint16
	failOpen             bool
	askLimit             uint32 // a second and source; 0: no limit
	sources              uint32 // that are told apart
	logsDialed           bool   // while packets are answered
	antiSpoof            bool
	// 0 means that there is no such set.
	allowTimeout, denyTimeout time.Duration
}

// rule is one rule; match and target are in the words of iptables(8).
type rule struct {
	chain   string
	match   string
	purpose Purpose
	target  string
}

// spec is the rule as -A, -D and -I want it after the name of the chain.
func (r rule) spec() string {
	bare := strings.TrimSpace(r.match + " " + r.target)
	if evident(r.chain, splitArgs(bare)) == r.purpose {
		return bare
	}
	return strings.TrimSpace(fmt.Sprintf("%s -m comment --comment %s%s %s", r.match, commentPrefix, r.purpose, r.target))
}

// jump is the rule in POSTROUTING.
func (c *chain) jump() rule {
	return rule{postrouting, "", PurposeJump, "-j " + c.names.base()}
}

// rules lists the rules of all chains in order. The package comment explains
// each one's place.
func (c *chain) rules() []rule {
	return slices.Concat(c.passRules(), c.knownRules(), c.unpolicedRules(), c.nodeRules(), c.askRules(),
		c.replyRules(), c.verdictRules(), c.allowRules(), c.denyRules(), c.arrivalRules(), c.forwardRules())
}

// passRules deal with what the kernel knows about.
func (c *chain) passRules() []rule {
	in := c.names.base()
	return []rule{
		{in, "-m connmark --mark " + c.conn.exactly(policy.Allow, c.generation) + " -m mark ! --mark " + c.packet.decided(), PurposeEstablished, "-j RETURN"},
		{in, "-m mark --mark " + c.packet.decided(), PurposeVerdict, "-g " + c.names.verdict()},
		{in, "-m conntrack --ctdir REPLY", PurposeReplies, "-g " + c.names.reply()},
	}
}

// knownRules know what becomes of a new connection that is like one before. What
// they drop is its first packet, and takes it along. What they allow has no mark of
// ours that would have to be hidden, and is no ICMP error.
func (c *chain) knownRules() (rules []rule) {
	in := c.names.base()
	if c.denyTimeout != 0 {
		rules = append(rules, rule{in, "-m conntrack --ctstate NEW ! --ctstatus CONFIRMED " + matching(c.denySet()), PurposeDenySet, "-j DROP"})
	}
	if c.allowTimeout != 0 {
		rules = append(rules, rule{in, "-m conntrack --ctstate NEW " + matching(c.allowSet()), PurposeAllowSet, "-g " + c.names.known()},
			rule{c.names.known(), "", PurposeAllowMark, c.markAllowed()})
	}
	return rules
}

func matching(set string) string { return fmt.Sprintf("-m set --match-set %s %s", set, key) }

// unpolicedRules let through what no policy is about. A flow that was cut while
// one was must first be forgotten: its replies are dropped before they get here.
func (c *chain) unpolicedRules() []rule {
	in := c.names.base()
	neither := fmt.Sprintf("-m set ! --match-set %s src -m set ! --match-set %s dst",
		c.names.egress(c.family), c.names.ingress(c.family))
	return []rule{
		{in, c.icmpError() + " " + neither, PurposeICMPError, "-j RETURN"},
		{in, "-m connmark --mark " + c.conn.anyNumber(policy.Deny) + " " + neither, PurposeFreed, "-j CONNMARK --set-xmark " + c.conn.cleared()},
		{in, neither, PurposeNotPoliced, "-j RETURN"},
	}
}

// nodeRules let through what is no pod's traffic.
func (c *chain) nodeRules() []rule {
	in := c.names.base()
	return append([]rule{{in, "-m addrtype --src-type LOCAL", PurposeNode, "-j RETURN"}}, c.neighbourRules(in)...)
}

// neighbourRules let neighbour discovery pass.
func (c *chain) neighbourRules(in string) (rules []rule) {
	if c.family != ipv6 {
		return nil
	}
	// RFC 4861 sections 4 and 6.1 to 8.1: router solicitation to redirect, with
	// a hop limit that shows that no router has passed them on.
	for t := 133; t <= 137; t++ {
		rules = append(rules, rule{in, fmt.Sprintf("-p ipv6-icmp -m icmp6 --icmpv6-type %d -m hl --hl-eq 255", t), PurposeNeighbour, "-j RETURN"})
	}
	return rules
}

// askRules end in the queue. Of what is NEW, the allow set has been asked.
func (c *chain) askRules() []rule {
	in := c.names.base()
	rules := []rule{
		{in, "-m conntrack --ctstate INVALID", PurposeInvalid, "-j DROP"},
		{in, c.icmpError() + " -m connmark --mark " + c.conn.anyNumber(policy.Allow), PurposeICMPError, "-j RETURN"},
	}
	if c.denyTimeout != 0 {
		rules = append(rules, rule{in, matching(c.denySet()), PurposeDenySet, "-g " + c.names.deny()})
	}
	if c.allowTimeout != 0 {
		rules = append(rules, rule{in, "-m conntrack ! --ctstate NEW " + matching(c.allowSet()), PurposeAllowSet, "-g " + c.names.allow()})
	}
	if c.askLimit != 0 {
		for _, match := range c.flooding() {
			rules = append(rules, rule{in, match, PurposeFlood, "-j DROP"})
		}
	}
	return append(rules, rule{in, "", PurposeQueue, c.queueTarget()})
}

// replyRules end the way of a packet in the reply direction.
func (c *chain) replyRules() []rule {
	in := c.names.reply()
	return []rule{
		{in, "-m connmark --mark " + c.conn.anyNumber(policy.Deny), PurposeDeniedReply, "-j DROP"},
		{in, "", PurposeReply, "-j RETURN"},
	}
}

// flooding matches new connections of a source beyond its share. A live flow that is
// asked about again is not new. The table of sources has the limit in its name: the
// kernel keeps the limits with which a table was made first. Isolated pods have one of
// their own, as the kernel drops what is new to a table that is full: others, who may
// forge their sources, fill theirs alone.
func (c *chain) flooding() []string {
	own := fmt.Sprintf("--match-set %s src", c.names.egress(c.family))
	return []string{
		"-m conntrack --ctstate NEW -m set " + own + " " + c.perSource("above", c.askLimit, fmt.Sprintf("ask-%d", c.askLimit)),
		"-m conntrack --ctstate NEW -m set ! " + own + " " + c.perSource("above", c.askLimit, fmt.Sprintf("far-%d", c.askLimit)),
	}
}

// perSource matches packets above a rate or upto it, in packets a second of each
// source. A name is that of one table of sources.
func (c *chain) perSource(side string, rate uint32, name string) string {
	return fmt.Sprintf("-m hashlimit --hashlimit-%[1]s %[2]d/sec --hashlimit-burst %[2]d --hashlimit-mode srcip --hashlimit-name %[3]s"+
		" --hashlimit-htable-size %[4]d --hashlimit-htable-max %[5]d --hashlimit-htable-expire %[6]d",
		side, rate, c.names.set(c.family, name), c.sources/perBucket, c.sources, floodMemory.Milliseconds())
}

const (
	// floodSources is how many sources are told apart at a time. Beyond, the kernel
	// drops what is new: each is 100 bytes of memory that no pod may use up.
	floodSources = 65536
	// perBucket is what the kernel takes when it is not told (htable_create in
	// net/netfilter/xt_hashlimit.c); it never takes fewer sources than buckets.
	perBucket = 8
	// floodMemory is how long a source that has stopped is remembered.
	floodMemory = 2 * time.Second
)

// key is what a verdict depends on, in the order of hash:ip,port,ip: source
// address, protocol and destination port, destination address.
const key = "src,dst,dst"

func (c *chain) queueTarget() string {
	target := fmt.Sprintf("-j NFQUEUE --queue-num %d", c.queueNum)
	if c.queueCount > 1 {
		target = fmt.Sprintf("-j NFQUEUE --queue-balance %d:%d --queue-cpu-fanout", c.queueNum, c.queueNum+c.queueCount-1)
	}
	if c.failOpen {
		target += " --queue-bypass"
	}
	return target
}

// verdictRules act on a verdict. Only one of the current epoch is remembered.
// The set is filled here and not in the chain ALLOW, which packets found in the
// set go through too: that would renew their entry, and the decision would never
// be asked for again.
func (c *chain) verdictRules() (rules []rule) {
	in := c.names.verdict()
	allowed := "-m mark --mark " + c.packet.exactly(policy.Allow, c.epoch)
	denied := "-m mark --mark " + c.packet.exactly(policy.Deny, c.epoch)
	rules = c.ownRules()
	if c.allowTimeout != 0 {
		rules = append(rules, rule{in, allowed, PurposeAllowKeep, keep(c.allowSet(), c.allowTimeout)})
	}
	// The node's own packets are never asked about, so a mark of theirs is no
	// verdict. Some carry an accidental one: in struct sk_buff the mark shares its
	// place with reserved_tailroom, which the kernel uses to build MLD reports. They
	// pass in any case: an accidental allow need not be told from a real one.
	rules = append(rules,
		rule{in, allowed, PurposeAllowed, "-g " + c.names.allow()},
		rule{in, "-m addrtype --src-type LOCAL", PurposeNode, "-j RETURN"})
	if c.denyTimeout != 0 {
		rules = append(rules, rule{in, denied, PurposeDenyKeep, keep(c.denySet(), c.denyTimeout)})
	}
	if c.answers {
		rules = append(rules, rule{in, "-m mark --mark " + c.packet.rejected(), PurposeRejected, "-g " + c.names.deny()})
	}
	return append(rules,
		rule{in, denied, PurposeDenied, "-g " + c.names.deny()},
		// What is neither is dropped as well: both verdict bits, or none.
		rule{in, "-m mark ! --mark " + c.packet.anyNumber(policy.Allow), PurposeStaleDenied, "-j DROP"},
		rule{in, "", PurposeStaleAllowed, "-j MARK --set-xmark " + c.packet.cleared()})
}

func keep(set string, timeout time.Duration) string {
	return fmt.Sprintf("-j SET --add-set %s %s --exist --timeout %d", set, key, int(timeout/time.Second))
}

// allowRules end an allowed packet's way through our chains: after the last one
// it goes on behind the jump. Here as in DENY, an ICMP error must not write the
// connection mark: that is the mark of the flow which the error is about, and the
// verdict is on the addresses of the error.
func (c *chain) allowRules() []rule {
	in := c.names.allow()
	return []rule{
		{in, "", PurposeAllowClear, "-j MARK --set-xmark " + c.packet.cleared()},
		{in, c.icmpError(), PurposeICMPError, "-j RETURN"},
		{in, "", PurposeAllowMark, c.markAllowed()},
	}
}

func (c *chain) markAllowed() string {
	return "-j CONNMARK --set-xmark " + c.conn.exactly(policy.Allow, c.generation)
}

func (c *chain) denyRules() []rule {
	in := c.names.deny()
	return []rule{
		{in, c.icmpError(), PurposeDrop, "-j DROP"},
		{in, "", PurposeDenyMark, "-j CONNMARK --set-xmark " + c.conn.exactly(policy.Deny, c.generation)},
		{in, "", PurposeDrop, "-j DROP"},
	}
}

// icmpError matches an ICMP error about a packet of some flow. Conntrack calls no
// other ICMP packet RELATED.
func (c *chain) icmpError() string {
	return "-p " + c.family.icmp() + " -m conntrack --ctstate RELATED"
}

func (c *chain) allowSet() string { return c.names.allowSet(c.family, c.allow) }
func (c *chain) denySet() string  { return c.names.denySet(c.family, c.deny) }

const (
	mangle      = "mangle"
	prerouting  = "PREROUTING"
	forwarding  = "FORWARD"
	postrouting = "POSTROUTING"
)

// hooking says what to do about a jump from a built-in chain.
type hooking struct {
	remove []string // rules of that chain, as iptables-save prints them
	insert bool     // a new one, in front of all other rules
}

// write writes it; jump is the new one.
func (h *hooking) write(b *strings.Builder, jump rule) {
	for _, spec := range h.remove {
		fmt.Fprintf(b, "-D %s %s\n", jump.chain, spec)
	}
	if h.insert {
		fmt.Fprintf(b, "-I %s 1 %s\n", jump.chain, jump.spec())
	}
}

// render returns the input of iptables-restore --noflush that makes our chains
// contain exactly the rules described, in one transaction. Declaring a chain
// makes or empties it; what is not mentioned stays as it is.
func render(c *chain, jump, arrivalJump, forwardJump hooking) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", mangle)
	for _, name := range c.names.chains() {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
	}
	jump.write(&b, c.jump())
	arrivalJump.write(&b, c.arrivalJump())
	forwardJump.write(&b, c.forwardJump())
	for _, r := range c.rules() {
		fmt.Fprintf(&b, "-A %s %s\n", r.chain, r.spec())
	}
	b.WriteString("COMMIT\n")
	return b.String()
}
