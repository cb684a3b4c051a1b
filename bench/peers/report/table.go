package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// column is one column of the table of costs.
type column struct {
	title, scenario, unit string
	against               string // the variant that ratios are to; "" for none
}

var columns = []column{
	{"connects/s", "connects", "connects/s", "conntrack"},
	{"connect p50, µs", "latency", "p50-µs", ""},
	{"p99, µs", "latency", "p99-µs", ""},
	{"fresh UDP/s", "fresh-udp", "packets/s", "c-accept-all"},
	{"one-way UDP/s", "one-way-udp", "packets/s", "conntrack"},
	{"stream, MB/s", "stream", "MByte/s", "none"},
	{"denied SYN/s", "denied-flood", "packets/s", "static-drop"},
	{"agent, cores in the denied flood", "denied-flood", "agent-cores", ""},
}

// median of the rounds; ok is false when there were none.
func (r *results) median(k key) (m float64, ok bool) {
	values := slices.Sorted(slices.Values(r.values[k]))
	if len(values) == 0 {
		return 0, false
	}
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2, true
}

// cell shows a median and how it compares.
func (r *results) cell(c column, variant string) string {
	v, ok := r.median(key{c.scenario, variant, c.unit})
	if !ok {
		return ""
	}
	text := number(v)
	if to, ok := r.median(key{c.scenario, c.against, c.unit}); ok && variant != c.against {
		text += fmt.Sprintf(" (%.2f)", v/to)
	}
	return text
}

// number prints with about three digits, thousands apart.
func number(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 1000:
		return fmt.Sprintf("%.0f", v)
	}
	n := int(v/100+0.5) * 100
	if n >= 1_000_000 {
		return fmt.Sprintf("%d,%03d,%03d", n/1_000_000, n/1000%1000, n%1000)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// markdown renders both tables.
func (r *results) markdown() string {
	var b strings.Builder
	rounds := 0
	for _, v := range r.values {
		rounds = max(rounds, len(v))
	}
	var names []string
	for _, s := range r.source {
		names = append(names, fmt.Sprintf("[%s](results/%[1]s)", filepath.Base(s)))
	}
	fmt.Fprintf(&b, "Medians of %d interleaved rounds, raw: %s. In brackets: times the rate of", rounds, strings.Join(names, ", "))
	for _, c := range columns {
		if c.against != "" {
			fmt.Fprintf(&b, " %s (%s)", c.against, c.title)
		}
	}
	b.WriteString(".\n\n| variant |")
	for _, c := range columns {
		fmt.Fprintf(&b, " %s |", c.title)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, v := range r.variants {
		if _, _, scales := scaleOf(v); scales {
			continue
		}
		fmt.Fprintf(&b, "| %s |", v)
		for _, c := range columns {
			fmt.Fprintf(&b, " %s |", r.cell(c, v))
		}
		b.WriteString("\n")
	}
	r.scaleTable(&b)
	r.evaluateTable(&b)
	return b.String()
}

// scaleTable shows how rates depend on the number of rules.
func (r *results) scaleTable(b *strings.Builder) {
	series, sizes := r.series()
	if len(series) == 0 {
		return
	}
	b.WriteString("\n| by number of policies or rules |")
	for _, n := range sizes {
		fmt.Fprintf(b, " %d: connects/s, fresh UDP/s |", n)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(sizes)) + "\n")
	for _, name := range series {
		fmt.Fprintf(b, "| %s |", name)
		for _, n := range sizes {
			variant := fmt.Sprintf("%s-%d", name, n)
			fmt.Fprintf(b, " %s, %s |", r.cell(column{"", "connects", "connects/s", ""}, variant), r.cell(column{"", "fresh-udp", "packets/s", ""}, variant))
		}
		b.WriteString("\n")
	}
}

// evaluateTable compares decisions with the closest peer's.
func (r *results) evaluateTable(b *strings.Builder) {
	var rows []string
	for _, n := range []int{10, 100, 1_000, 10_000} {
		scenario := fmt.Sprintf("allow/%dpolicies", n)
		ours, ok := r.median(key{scenario, "netverdict", "sec/op"})
		theirs, also := r.median(key{scenario, "kube-network-policies", "sec/op"})
		if ok && also {
			rows = append(rows, fmt.Sprintf("| %s | %.0f ns | %s µs | %s × |\n", number(float64(n)), ours*1e9, number(theirs*1e6), number(theirs/ours)))
		}
	}
	if len(rows) == 0 {
		return
	}
	b.WriteString("\n| policies in one namespace | netverdict, one decision | kube-network-policies v1.1.1 | ratio |\n|---|---|---|---|\n")
	b.WriteString(strings.Join(rows, ""))
}
