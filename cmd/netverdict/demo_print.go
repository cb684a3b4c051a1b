package main

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// description is the annotation that says what an object is for.
// https://kubernetes.io/docs/reference/labels-annotations-taints/#description
const description = "kubernetes.io/description"

func printTitle(out *screen, s *story) {
	out.blank()
	title := fmt.Sprintf("━━ %s. %s ", s.key, s.title)
	out.line(0, span{title + strings.Repeat("━", max(0, screenColumns-widest(title))), bold})
}

// printCast lists who takes part in a story.
func printCast(out *screen, s *story, snapshot *policy.Snapshot) {
	var rows [][]string
	for _, n := range snapshot.Namespaces {
		if labels := labelText(n.Labels); labels != "" {
			rows = append(rows, []string{"namespace", n.Name, labels})
		}
	}
	for _, p := range snapshot.Pods {
		rows = append(rows, []string{"pod", p.String(), labelText(p.Labels), addrText(p.Addrs, s.overIPv6)})
	}
	for _, o := range s.outside {
		rows = append(rows, []string{"outside", o.name, o.about, addrText(o.addrs, s.overIPv6)})
	}
	printColumns(out, 2, rows)
}

// labelText leaves out the label that every namespace has.
func labelText(labels map[string]string) string {
	var texts []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if key != "kubernetes.io/metadata.name" {
			texts = append(texts, key+"="+labels[key])
		}
	}
	return strings.Join(texts, ",")
}

func addrText(addrs []netip.Addr, ipv6 bool) string {
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is6() == ipv6 })
	if i < 0 {
		return ""
	}
	return addrs[i].String()
}

// gap is the space between columns.
const gap = 2

// printColumns prints rows of cells, aligned. The last cell of a row may take
// several lines.
func printColumns(out *screen, indent int, rows [][]string) {
	widths := columnWidths(rows)
	for _, row := range rows {
		var b strings.Builder
		last := len(row) - 1
		for i, cell := range row[:last] {
			b.WriteString(pad(cell, widths[i]+gap))
		}
		hang := indent + widest(b.String())
		out.hanging(indent, hang, span{b.String() + row[last], plain})
	}
}

func columnWidths(rows [][]string) (widths []int) {
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], widest(cell))
		}
	}
	return widths
}

// printPolicies lists policies, each with what it says of itself.
func printPolicies(out *screen, policies []*networkingv1.NetworkPolicy) {
	var rows [][]string
	for _, p := range policies {
		rows = append(rows, []string{"policy", p.Namespace + "/" + p.Name, p.Annotations[description]})
	}
	printColumns(out, 2, rows)
}

// flowSpans renders a flow record for people.
func flowSpans(l *flow.Line, name func(flow.Endpoint) string) []span {
	if l.Lost > 0 {
		return []span{{fmt.Sprintf("%s %d flow records were lost", clock(l.Time), l.Lost), alarm}}
	}
	verdict := span{"DENY", red}
	if l.Verdict == policy.Allow {
		verdict = span{"ALLOW", green}
	}
	port := ""
	if l.Protocol.HasPorts() {
		port = fmt.Sprintf(":%d", l.Destination.Port)
	}
	return []span{
		{clock(l.Time) + " ", dim},
		{fmt.Sprintf("%s → %s%s/%s ", name(l.Source), name(l.Destination), port, l.Protocol), plain},
		verdict,
		{" " + causeText(l), plain},
	}
}

// causeText says which direction decided a flow and why; of an allowed one,
// what each direction's policies said.
func causeText(l *flow.Line) string {
	if l.Verdict == policy.Allow && l.Egress != nil && l.Ingress != nil {
		return fmt.Sprintf("egress: %s; ingress: %s", outcomeText(l.Egress), outcomeText(l.Ingress))
	}
	return fmt.Sprintf("%s: %s", l.Direction,
		outcomeText(&flow.OutcomeJSON{Reason: l.Reason, Policy: l.Policy, Rule: l.Rule, IsolatedBy: l.IsolatedBy}))
}

func outcomeText(o *flow.OutcomeJSON) string {
	switch {
	case o.Reason == policy.ReasonPolicy && o.Rule != nil:
		return fmt.Sprintf("%s rule %d", o.Policy, *o.Rule)
	case o.Reason == policy.ReasonDefaultDeny:
		return "isolated by " + strings.Join(o.IsolatedBy, ", ")
	}
	return o.Reason.String()
}

func clock(t time.Time) string { return t.Local().Format("15:04:05.000") }

// printTable prints a connectivity table: what was expected beside what was
// observed, and below a cell what is wrong with it.
func printTable(out *screen, results []result) {
	from, to := widest("from"), widest("to")
	for _, r := range results {
		from, to = max(from, widest(r.from)), max(to, widest(r.target()))
	}
	out.line(4, span{fmt.Sprintf("%s   %s%s%s",
		pad("from", from), pad("to", to+gap), pad("expected", markWidth+gap), "observed"), dim})
	for _, r := range results {
		row := []span{
			{fmt.Sprintf("%s → %s", pad(r.from, from), pad(r.target(), to+gap)), plain},
			{pad(mark(r.want.verdict), markWidth+gap), markColour(r.want.verdict)},
			observedSpan(&r),
		}
		if fault := r.fault(); fault != "" {
			out.line(4, append(row, span{"  ", plain}, span{"◀ MISMATCH", alarm})...)
			out.line(6, span{fault, red})
			continue
		}
		out.line(4, row...)
	}
}

func observedSpan(r *result) span {
	if r.observed.trouble != nil {
		return span{pad("! failed", markWidth), alarm}
	}
	return span{pad(mark(r.observed.verdict), markWidth), markColour(r.observed.verdict)}
}

// markWidth is the columns of the widest mark.
const markWidth = len("x allowed")

func mark(v policy.Verdict) string {
	if v == policy.Allow {
		return "✓ allowed"
	}
	return "✗ denied"
}

func markColour(v policy.Verdict) colour {
	if v == policy.Allow {
		return green
	}
	return yellow
}

// tally counts the checks of all stories.
type tally struct {
	checks, asExpected int
	denied, recorded   int // requests that must be denied; those with the right flow record
}

// count returns how many of the results are not as expected.
func (t *tally) count(results []result) (faults int) {
	for i := range results {
		r := &results[i]
		ok := r.fault() == ""
		t.checks++
		if ok {
			t.asExpected++
		} else {
			faults++
		}
		if r.want.verdict == policy.Deny {
			t.denied++
			if ok {
				t.recorded++
			}
		}
	}
	return faults
}

func printSummary(out *screen, t tally, elapsed time.Duration) {
	verdict := span{"PASS", green}
	if t.asExpected != t.checks {
		verdict = span{fmt.Sprintf(" FAIL: %d NOT AS EXPECTED ", t.checks-t.asExpected), alarm}
	}
	out.blank()
	out.line(0, verdict, span{fmt.Sprintf("  %d checks, %d as expected; the flow log names the policies of %d of %d denials; %.1f s",
		t.checks, t.asExpected, t.recorded, t.denied, elapsed.Seconds()), plain})
}
