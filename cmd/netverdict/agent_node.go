package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// nodeOptions are the agent's flags about its node.
type nodeOptions struct {
	podCIDRs prefixes
}

func (o *nodeOptions) addFlags(f *pflag.FlagSet) {
	f.Var(&o.podCIDRs, "pod-cidr", "`range` that this node gives its pods addresses from, instead of its Node's spec.podCIDRs, which some cloud networks leave empty; may be given more than once")
}

// prefixes is a flag that may be given more than once, or with commas.
type prefixes []netip.Prefix

// Set implements pflag.Value.
func (p *prefixes) Set(text string) error {
	for _, s := range strings.Split(text, ",") {
		cidr, err := netip.ParsePrefix(strings.TrimSpace(s))
		switch {
		case err != nil:
			return fmt.Errorf("%q: want a range such as 10.244.1.0/24", s)
		case cidr != cidr.Masked():
			return fmt.Errorf("%q has host bits: did you mean %v?", s, cidr.Masked())
		case cidr.Bits() == 0:
			return fmt.Errorf("%q: every address cannot be a pod of this node", s)
		case !slices.Contains(*p, cidr):
			*p = append(*p, cidr)
		}
	}
	return nil
}

func (p *prefixes) String() string {
	texts := make([]string, len(*p))
	for i, cidr := range *p {
		texts[i] = cidr.String()
	}
	return strings.Join(texts, ",")
}

// Type implements pflag.Value.
func (*prefixes) Type() string { return "range" }

// ranges are where this node's pods get their addresses from: from the flag, else as
// the Node says, which may say nothing.
func (o *nodeOptions) ranges(node string, nodes []*policy.Node) []netip.Prefix {
	if len(o.podCIDRs) > 0 {
		return o.podCIDRs
	}
	for _, n := range nodes {
		if n.Name == node && node != "" {
			return n.PodCIDRs
		}
	}
	return nil
}

// openRules is the preflight: rules, sets and queues are tried, and all that is
// missing is named at once.
func (o *agentOptions) openRules() (*hook.Hook, error) {
	rules, err := hook.Open(o.hook)
	if errors.Is(err, hook.ErrPermission) {
		return nil, err // it says the same of queues
	}
	if err = errors.Join(err, queue.Probe()); err != nil {
		return nil, err
	}
	return rules, nil
}

// logNode says once what was found out about the node.
func (a *agent) logNode() {
	if a.rules == nil {
		return // it would take privileges that an audit has not
	}
	modes, err := a.rules.KubeProxy()
	if err != nil {
		a.log.Warn("not everything about this node could be found out", "error", err)
	}
	a.log.Info("this node", "iptables", a.rules.Backend(), "kubeProxy", modes, "podCIDRsGiven", a.options.node.podCIDRs.String())
}

// NodeStatus is what an agent found out about its node.
type NodeStatus struct {
	// KubeProxy are the modes of kube-proxy that left traces here: iptables, ipvs,
	// nftables; usually one.
	KubeProxy []string `json:"kubeProxy"`
	// PodCIDRs are the ranges of this node's pods; empty when they are not known.
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	// Problem is what could not be found out.
	Problem string `json:"problem,omitempty"`
}

// RuleStatus is what the rules of one purpose have matched; see hook.Purpose.
type RuleStatus struct {
	Purpose hook.Purpose `json:"purpose"`
	hook.Count
}

// addNode adds what is found out by looking: it takes a moment.
func (a *agent) addNode(s *Status) {
	s.Rules = []RuleStatus{}
	s.NodeFacts = NodeStatus{KubeProxy: []string{}, PodCIDRs: []netip.Prefix{}}
	if k := a.kernel.Load(); k != nil {
		if tree, _ := k.engine.Tree(); tree != nil {
			s.NodeFacts.PodCIDRs = append(s.NodeFacts.PodCIDRs, tree.LocalPodCIDRs()...)
		}
	}
	if a.rules == nil {
		return // an audit may not look
	}
	modes, err := a.rules.KubeProxy()
	counted, countErr := a.rules.Counters()
	s.NodeFacts.KubeProxy = append(s.NodeFacts.KubeProxy, modes...)
	if err := errors.Join(err, countErr); err != nil {
		s.NodeFacts.Problem = err.Error()
	}
	for _, p := range hook.Purposes {
		if n, known := counted[p]; known {
			s.Rules = append(s.Rules, RuleStatus{p, n})
		}
		if s.AntiSpoof != nil && p == hook.PurposeSpoofed {
			s.AntiSpoof.Dropped = counted[p].Packets
		}
	}
}

// factsText is the line of status about the node.
func (n *NodeStatus) factsText() string {
	proxy := "no kube-proxy found"
	if len(n.KubeProxy) > 0 {
		proxy = "kube-proxy " + strings.Join(n.KubeProxy, ", ")
	}
	cidrs := prefixes(n.PodCIDRs)
	ranges := "pods in " + cidrs.String()
	if len(cidrs) == 0 {
		ranges = "pod ranges unknown (give them with --pod-cidr)"
	}
	return proxy + "; " + ranges
}

// packetsText is the line of status about what the rules did with packets: the ends
// that their ways come to.
func packetsText(rules []RuleStatus) string {
	ends := []struct {
		says     string
		rare     bool // said only when there were some
		purposes []hook.Purpose
	}{
		{"asked about", false, []hook.Purpose{hook.PurposeQueue}},
		{"of allowed connections", false, []hook.Purpose{hook.PurposeEstablished, hook.PurposeReply}},
		{"allowed from memory", false, []hook.Purpose{hook.PurposeAllowSet}},
		{"denied from memory", false, []hook.Purpose{hook.PurposeDenySet, hook.PurposeDeniedReply}},
		{"of the node", false, []hook.Purpose{hook.PurposeNode}},
		{"of nobody policed", false, []hook.Purpose{hook.PurposeNotPoliced}},
		{"dropped unasked, of sources beyond --ask-limit", true, []hook.Purpose{hook.PurposeFlood}},
		{"dropped that belong to no connection", true, []hook.Purpose{hook.PurposeInvalid}},
	}
	var parts []string
	for _, end := range ends {
		var n uint64
		for _, r := range rules {
			if slices.Contains(end.purposes, r.Purpose) {
				n += r.Packets
			}
		}
		if n > 0 || !end.rare {
			parts = append(parts, fmt.Sprintf("%d %s", n, end.says))
		}
	}
	return strings.Join(parts, ", ")
}
