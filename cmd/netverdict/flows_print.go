package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// flowPrinter writes flows, for people or as JSON lines.
type flowPrinter struct {
	out  *bufio.Writer
	json bool
	// hideNode leaves the node out for people: there is one only.
	hideNode bool
	screen   *screen // renders spans
	flows    uint64  // printed, apart from what says that flows are missing
	buf      []byte
}

func newFlowPrinter(w io.Writer, output, color string) (*flowPrinter, error) {
	p := &flowPrinter{out: bufio.NewWriter(w), json: output == "json", screen: &screen{}}
	if output != "text" && output != "json" {
		return nil, fmt.Errorf("--output %q: want text or json", output)
	}
	switch color {
	case "always":
		p.screen.coloured = true
	case "auto":
		p.screen.coloured = newScreen(w).coloured
	case "never":
	default:
		return nil, fmt.Errorf("--color %q: want auto, always or never", color)
	}
	return p, nil
}

// print writes one line. It is seen after flush.
func (p *flowPrinter) print(l *flow.Line) error {
	p.flows += l.Flows()
	if p.json {
		p.buf = append(l.AppendJSON(p.buf[:0]), '\n')
		_, err := p.out.Write(p.buf)
		return p.failure(err)
	}
	_, err := p.out.WriteString(p.screen.render(p.spans(l)) + "\n")
	return p.failure(err)
}

// printNow writes one line at once: who watches a stream wants to see it.
func (p *flowPrinter) printNow(l *flow.Line) error {
	if err := p.print(l); err != nil {
		return err
	}
	return p.flush()
}

func (p *flowPrinter) flush() error { return p.failure(p.out.Flush()) }

func (*flowPrinter) failure(err error) error {
	if err != nil {
		return fmt.Errorf("print flows: %w", err)
	}
	return nil
}

// flowTime is the local time of a flow as people read it.
const flowTime = "Jan _2 15:04:05.000"

var verdictSpans = map[policy.Verdict]span{
	policy.Deny: {"DENY", red}, policy.Allow: {"ALLOW", green}, policy.Audit: {"AUDIT", yellow},
}

// spans is the compact form:
//
//	time source → destination:port/protocol VERDICT by policies (direction, why)
func (p *flowPrinter) spans(l *flow.Line) []span {
	at := span{l.Time.Local().Format(flowTime) + " ", dim}
	node := span{"", dim}
	if l.Node != "" && !p.hideNode {
		node.text = " on " + printable(l.Node)
	}
	switch {
	case l.Lost > 0:
		return []span{at, {fmt.Sprintf("%d flows were lost", l.Lost), alarm}, node}
	case l.Withheld > 0:
		return []span{at, {fmt.Sprintf("%d flows in %d lines were withheld: too many lines", l.Withheld, l.Lines), alarm}, node}
	}
	return []span{
		at,
		{fmt.Sprintf("%s → %s%s/%s ", endpointText(&l.Source), endpointText(&l.Destination), portSuffix(l), l.Protocol), plain},
		verdictSpans[l.Verdict],
		{decidedText(l) + repeatedText(l), plain},
		node,
	}
}

// endpointText names a pod, or gives the address of what is none.
func endpointText(e *flow.Endpoint) string {
	switch {
	case e.Pod != "":
		return printable(e.Namespace + "/" + e.Pod)
	case e.IP.Is6():
		return "[" + printable(e.IP.String()) + "]"
	case e.IP.IsValid():
		return e.IP.String()
	}
	return "?"
}

func portSuffix(l *flow.Line) string {
	switch {
	case l.Ports != nil:
		return ":*"
	case l.Protocol.HasPorts():
		return ":" + strconv.Itoa(int(l.Destination.Port))
	}
	return ""
}

// decidedText says who decided, and why.
func decidedText(l *flow.Line) string {
	why := l.Reason.String()
	if l.Malformed != 0 {
		why += " " + l.Malformed.String()
	}
	switch {
	case l.Rule != nil:
		return fmt.Sprintf(" by %s (%s rule %d)", printable(l.Policy), l.Direction, *l.Rule)
	case l.Policy != "":
		return fmt.Sprintf(" by %s (%s)", printable(l.Policy), l.Direction)
	case len(l.IsolatedBy) > 0:
		return fmt.Sprintf(" by %s (%s %s)", printable(strings.Join(l.IsolatedBy, ", ")), l.Direction, why)
	}
	return fmt.Sprintf(" (%s %s)", l.Direction, why)
}

// repeatedText says that a line stands for several flows.
func repeatedText(l *flow.Line) string {
	text := ""
	if l.Count > 0 {
		text = fmt.Sprintf(" ×%d since %s", l.Count, l.First.Local().Format(flowTime))
	}
	if p := l.Ports; p != nil {
		text += " to "
		if p.Distinct > 0 {
			text += fmt.Sprintf("%d ", p.Distinct)
		}
		text += "ports " + printable(strings.Join(p.Ranges, ","))
		if p.More > 0 || p.Distinct == 0 {
			text += ",…"
		}
	}
	return text
}

// printable escapes what does not print, so that no name from the network or from
// a file can move the cursor or worse.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) < 0 {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}
