package hook

import "fmt"

// What is done with packets when they arrive, in PREROUTING: before DNAT has
// changed where they go.

// arrivalRules are the chain that PREROUTING jumps to when there is need.
func (c *chain) arrivalRules() (rules []rule) {
	if c.antiSpoof {
		rules = append(rules, rule{c.names.arrival(), c.spoofing(), PurposeSpoofed, "-j DROP"})
	}
	if c.notesDialed() {
		rules = append(rules, rule{c.names.arrival(), c.dialing(), PurposeDialed, c.dialed()})
	}
	return rules
}

// watchesArrivals reports whether there is need.
func (c *chain) watchesArrivals() bool { return len(c.arrivalRules()) > 0 }

// arrivalJump is the rule in PREROUTING.
func (c *chain) arrivalJump() rule {
	return rule{prerouting, "", PurposeJump, "-j " + c.names.arrival()}
}

func (c *chain) notesDialed() bool { return c.answers && c.logsDialed }

// dialing matches new connections that may be to a Service: to a policed pod they
// are direct. ICMP is never sent on to another destination. The rate bounds what a
// flood costs; what is beyond it is denied without an answer.
func (c *chain) dialing() string {
	return fmt.Sprintf("! -p %s -m conntrack --ctstate NEW -m set ! --match-set %s dst %s",
		c.family.icmp(), c.names.ingress(c.family), c.dialedRate())
}

func (c *chain) dialedRate() string { return c.perSource("upto", dialedLimit, "dialed") }

// dialedLimit is how many new connections a second of one source are noted.
const dialedLimit = 1000

// dialedSize is how many bytes of their packets: headers and the beginning of a
// payload, by which the packet is recognized behind DNAT.
const dialedSize = 128

// dialed notes a packet for the process that reads the queue: the group is the
// number of its first queue.
func (c *chain) dialed() string {
	return fmt.Sprintf("-j NFLOG --nflog-group %d --nflog-size %d --nflog-threshold 1", c.queueNum, dialedSize)
}

// ownRules let answers pass that the agent sends in the name of a destination: they
// belong to no connection. They leave with a clean mark.
func (c *chain) ownRules() []rule {
	if !c.answers {
		return nil
	}
	in := c.names.verdict()
	return []rule{
		{in, "-m mark --mark " + c.packet.own(), PurposeAnswerClear, "-j MARK --set-xmark " + c.packet.cleared()},
		{in, "-m mark ! --mark " + c.packet.decided(), PurposeAnswer, "-j RETURN"},
	}
}

// NotesDialed reports whether the kernel can note where connections were addressed
// before DNAT, in every family. Without, only direct connections can be answered.
func (h *Hook) NotesDialed() bool {
	for _, s := range h.stacks {
		if !s.logsDialed {
			return false
		}
	}
	return true
}
