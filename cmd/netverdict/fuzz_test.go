package main

import (
	"bytes"

	"net/netip"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// FuzzFlowFilters: no arguments of the flows verb make its filters panic, neither when
// they are read nor when lines are compared with them. A filter and its opposite never
// both hold.
func FuzzFlowFilters(f *testing.F) {
	for _, args := range []string{
		"--pod\nshop/cart,/db", "--not\n--from-pod\nshop/", "--label\napp in (a,b),!c", "--to-ip\n10.0.0.0/8,fd00::1", "--port\n80",
		"--protocol\nicmp,132", "--verdict\ndeny,audit", "--direction\negress", "--reason\ndefault-deny", "--policy\nshop/a", "--from-namespace\nshop", "--not\n--not",
	} {
		f.Add(args)
	}
	rule := 0
	lines := []flow.Line{
		{Source: flow.Endpoint{IP: netip.MustParseAddr("10.0.0.1"), Namespace: "shop", Pod: "cart-1", Labels: map[string]string{"app": "a"}},
			Destination: flow.Endpoint{IP: netip.MustParseAddr("fd00::1"), Port: 80}, Protocol: policy.TCP, Policy: "shop/a", Rule: &rule, Reason: policy.ReasonPolicy},
		{}, {Lost: 1}, {Ports: &flow.Ports{Ranges: []string{"1-2"}}, IsolatedBy: []string{"shop/b"}, Reason: policy.ReasonDefaultDeny},
	}
	read := func(args []string) *flowFilters {
		filters := &flowFilters{}
		cmd := &cobra.Command{}
		filters.addFlags(cmd)
		if cmd.ParseFlags(args) != nil || filters.validate() != nil {
			return nil
		}
		return filters
	}
	f.Fuzz(func(t *testing.T, text string) {
		args := strings.Split(text, "\n")
		filters := read(args)
		if filters == nil {
			return
		}
		var not *flowFilters
		if len(args) == 2 && len(filters.groups) == 1 && len(filters.not) == 0 {
			not = read(append([]string{"--not"}, args...))
		}
		for i := range lines {
			if held := filters.match(&lines[i]); not != nil && lines[i].Lost == 0 && held == not.match(&lines[i]) {
				t.Fatalf("%q and its opposite say %v of %+v", args, held, lines[i])
			}
		}
	})
}

// FuzzEval: no line of eval's input makes it panic, and each has one line of output.
func FuzzEval(f *testing.F) {
	pod := &policy.Pod{NamespacedName: policy.NamespacedName{Namespace: "shop", Name: "cart"}, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Phase: policy.PhaseRunning}
	tree, err := policy.Compile(&policy.Snapshot{Pods: []*policy.Pod{pod}})
	if err != nil {
		f.Fatal(err)
	}
	w := &world{tree: tree, pods: map[policy.NamespacedName]*policy.Pod{pod.NamespacedName: pod}}
	f.Add([]byte(`{"source":"shop/cart","destination":"10.0.0.2","protocol":"TCP","port":80}`))
	f.Add([]byte(`{"source":"::ffff:10.0.0.1","destination":"10.0.0.2","protocol":"icmp"}` + "\n\n" + `{"port":1e400}`))
	f.Add([]byte(`{"source":"shop/cart","destination":"shop/cart","port":5.0,"port":-0}` + "\n[]\nnull\n\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		_ = evalFlows(w, bytes.NewReader(in), &out) // the error counts lines that cannot be evaluated
		lines := 0
		for line := range bytes.Lines(in) {
			if len(bytes.TrimSpace(line)) > 0 {
				lines++
			}
		}
		if got := bytes.Count(out.Bytes(), []byte("\n")); got != lines {
			t.Fatalf("%d lines of %q became %d: %s", lines, in, got, &out)
		}
	})
}

// FuzzTarget: what explain takes for a destination can be looked up.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"shop/db:5432", "192.0.2.7:53/UDP", "[fd00::5]:80", "shop/db/ICMP", "[::]/58", "::1", "a:0", "x/y/z:1/2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		to, err := parseTarget(s)
		if err != nil {
			return
		}
		if to.protocol.HasPorts() != (to.port != 0) {
			t.Fatalf("%q is %+v", s, to)
		}
	})
}
