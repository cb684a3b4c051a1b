package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

func newExplain(e env) *cobra.Command {
	var m manifests
	var output string
	cmd := &cobra.Command{
		Use:   "explain -f DIR SOURCE DESTINATION:PORT[/PROTOCOL]",
		Short: "Say how one connection is decided, rule by rule",
		Long: `Say how one connection is decided against manifests: which policies select each
end, which rules were tried, why each matched or not, and the verdict last.

SOURCE and DESTINATION are namespace/pod or an IP address, IPv6 with a port as
[address]:port. PROTOCOL is TCP unless given; protocols without ports are given
as DESTINATION/ICMP.

Exit codes: 0 allowed (or audited), 2 denied, 1 could not find out.`,
		Example: `  netverdict explain -f manifests/ shop/cart shop/db:5432
  netverdict explain -f manifests/ 192.0.2.7 '[fd00::5]:53/UDP'
  netverdict explain -f manifests/ shop/cart shop/db/ICMP`,
		Args: exactArgs("SOURCE", "DESTINATION:PORT"),
		RunE: func(_ *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("--output %q: want text or json", output)
			}
			w, err := loadWorld(e, m)
			if err != nil {
				return err
			}
			return explain(w, e.stdout, args[0], args[1], output)
		},
	}
	m.addFlags(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "`format`: text or json")
	return cmd
}

func explain(w *world, out io.Writer, source, target, output string) error {
	t, err := parseTarget(target)
	if err != nil {
		return err
	}
	src, dst, err := w.ends(source, t.end)
	if err != nil {
		return err
	}
	x := w.tree.Explain(src, dst, t.protocol, t.port)
	if output == "json" {
		err = writeExplanationJSON(out, x)
	} else {
		err = writeExplanation(out, x)
	}
	if err == nil && x.Decision.Verdict == policy.Deny {
		err = errAnswerNo
	}
	return err
}

// target is explain's second argument.
type target struct {
	end      string
	protocol policy.Protocol
	port     uint16
}

// parseTarget reads END:PORT, END:PORT/PROTOCOL or END/PROTOCOL, where END is
// namespace/pod, an IPv4 address or an IPv6 address in brackets.
func parseTarget(s string) (t target, err error) {
	fail := func(why string) (target, error) {
		return t, fmt.Errorf("destination %q: %s; want for example shop/db:5432, 192.0.2.7:53/UDP, [fd00::5]:80 or shop/db/ICMP", s, why)
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Is6() {
		return fail("an IPv6 address needs brackets and a port")
	}
	end, rest, hasPort := cutLast(s, ":")
	if strings.HasSuffix(s, "]") || strings.Contains(rest, "]") {
		end, rest, hasPort = s, "", false
	}
	if !hasPort {
		return parsePortless(s, fail)
	}
	number, protocol, hasProtocol := strings.Cut(rest, "/")
	t.end, t.protocol = strings.Trim(end, "[]"), policy.TCP
	if hasProtocol {
		if t.protocol, err = policy.ParseProtocol(protocol); err != nil {
			return fail(err.Error())
		}
	}
	if !t.protocol.HasPorts() {
		return fail(fmt.Sprintf("%s has no ports", t.protocol))
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return fail(fmt.Sprintf("port %q is not a number within 1–65535", number))
	}
	t.port = uint16(n)
	return t, nil
}

// parsePortless reads END/PROTOCOL. namespace/pod alone has one slash too, so
// only what leaves a whole end behind is a protocol.
func parsePortless(s string, fail func(string) (target, error)) (target, error) {
	end, protocol, _ := cutLast(s, "/")
	bare := strings.Trim(end, "[]")
	_, addrErr := netip.ParseAddr(bare)
	if addrErr != nil && !strings.Contains(end, "/") {
		return fail("the port is missing")
	}
	p, err := policy.ParseProtocol(protocol)
	if err != nil {
		return fail(err.Error())
	}
	if p.HasPorts() {
		return fail("the port is missing")
	}
	return target{end: bare, protocol: p}, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// writeExplanation prints the steps for people, the verdict last.
func writeExplanation(out io.Writer, x *policy.Explanation) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.DiscardEmptyColumns)
	fmt.Fprintf(w, "%s → %s, %s\n", endText(x.Src), endText(x.Dst), portText(x))
	for _, side := range x.Sides {
		judged := x.Src
		if side.Direction == policy.Ingress {
			judged = x.Dst
		}
		fmt.Fprintf(w, "\n%s of %s\n", side.Direction, endText(judged))
		writeSide(w, side)
	}
	fmt.Fprintf(w, "\nverdict: %s: %s\n", x.Decision.Reported(), because(x))
	return w.Flush()
}

func writeSide(w io.Writer, side policy.Side) {
	for _, p := range side.Policies {
		fmt.Fprintf(w, "  %s %s selects it (podSelector %s)\n", p.Policy.Kind, p.Policy, p.Selector)
		switch {
		case p.OverLimit != "":
			fmt.Fprintf(w, "    %s\n", p.OverLimit)
		case len(p.Rules) == 0:
			fmt.Fprintf(w, "    it has no %s rules: it isolates and allows nothing\n", side.Direction)
		}
		for _, r := range p.Rules {
			writeRule(w, r)
		}
	}
	fmt.Fprintf(w, "  %s: %s\n", side.Outcome.Reported(), reasonText(side))
}

func writeRule(w io.Writer, r policy.RuleTrace) {
	note := "does not match"
	switch {
	case r.Decided:
		note = "matches, and decides"
	case r.Matched:
		note = "matches too"
	}
	fmt.Fprintf(w, "    rule %d %s\n", r.Rule, note)
	for _, s := range r.Peers {
		writeStep(w, "peer", s)
	}
	for _, s := range r.Ports {
		writeStep(w, "port", s)
	}
}

func writeStep(w io.Writer, what string, s policy.Step) {
	answer := "no"
	if s.Matched {
		answer = "yes"
	}
	fmt.Fprintf(w, "      %s\t%s\t%s:\t%s\n", what, s.Text, answer, s.Why)
}

func endText(i policy.EndInfo) string {
	switch {
	case i.Pod != nil:
		return fmt.Sprintf("pod %s (%s)", i.Pod.NamespacedName, i.Addr)
	case i.Node != "":
		return fmt.Sprintf("node %s (%s)", i.Node, i.Addr)
	}
	return i.Addr.String()
}

func portText(x *policy.Explanation) string {
	if !x.Protocol.HasPorts() {
		return x.Protocol.String()
	}
	return fmt.Sprintf("%s port %d", x.Protocol, x.Port)
}

// reasonText says one direction's reason in words.
func reasonText(side policy.Side) string {
	o := side.Outcome
	switch o.Reason {
	case policy.ReasonPolicy:
		return fmt.Sprintf("%s %s, %s rule %d", o.Policy.Kind, o.Policy, side.Direction, o.Rule)
	case policy.ReasonDefaultDeny:
		var names []string
		for _, p := range o.IsolatedBy {
			names = append(names, p.String())
		}
		text := fmt.Sprintf("isolated for %s by %s, and no rule allows it (default-deny)", side.Direction, strings.Join(names, ", "))
		for _, p := range o.OverLimit {
			text += fmt.Sprintf("; the rules of %s are left out, because they expand beyond a limit", p)
		}
		return text
	case policy.ReasonNoPolicy:
		return fmt.Sprintf("no policy isolates it for %s (no-policy)", side.Direction)
	case policy.ReasonNodeTraffic:
		return "node traffic: policies do not apply to a node or host-network pod, nor between a pod and its own node (node-traffic)"
	case policy.ReasonSelf:
		return "a pod may always talk to itself (self)"
	case policy.ReasonExternal:
		return "no pod has this address, so no policy applies to it (external)"
	}
	return o.Reason.String()
}

func because(x *policy.Explanation) string {
	switch {
	case x.Decision.Verdict == policy.Deny:
		return fmt.Sprintf("%s denies", x.Decision.Direction)
	case x.Decision.Audit:
		return fmt.Sprintf("%s would deny, but that namespace is only audited, so it passes", x.Decision.Direction)
	}
	return "both directions allow"
}

// explanationJSON is what explain -o json prints.
type explanationJSON struct {
	Source      flow.Endpoint   `json:"source"`
	Destination flow.Endpoint   `json:"destination"`
	Protocol    policy.Protocol `json:"protocol"`
	Verdict     policy.Verdict  `json:"verdict"`
	Egress      sideJSON        `json:"egress"`
	Ingress     sideJSON        `json:"ingress"`
}

type sideJSON struct {
	Outcome  *flow.OutcomeJSON    `json:"outcome"`
	Policies []policy.PolicyTrace `json:"policies"`
}

func writeExplanationJSON(out io.Writer, x *policy.Explanation) error {
	side := func(d policy.Direction) sideJSON {
		s := sideJSON{flow.NewOutcome(x.Sides[d].Outcome), x.Sides[d].Policies}
		if s.Policies == nil {
			s.Policies = []policy.PolicyTrace{} // a list, also when it is empty
		}
		return s
	}
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(explanationJSON{
		Source:      endpointJSON(x.Src, 0),
		Destination: endpointJSON(x.Dst, x.Port),
		Protocol:    x.Protocol,
		Verdict:     x.Decision.Reported(),
		Egress:      side(policy.Egress),
		Ingress:     side(policy.Ingress),
	})
}

func endpointJSON(i policy.EndInfo, port uint16) flow.Endpoint {
	e := flow.Endpoint{IP: i.Addr, Port: port}
	if i.Pod != nil {
		e.Namespace, e.Pod = i.Pod.Namespace, i.Pod.Name
	}
	return e
}
