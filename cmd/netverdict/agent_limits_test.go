package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/netverdict/netverdict/engine/flow"
)

// explosive lets everybody in, in a way that expands to n² members: each block
// contains what the others leave out.
func explosive(n int) string {
	var b strings.Builder
	b.WriteString(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: explosive, namespace: shop}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from:
`)
	b.WriteString("    - ipBlock: {cidr: \"::/0\"}\n")
	for i := range n {
		fmt.Fprintf(&b, "    - ipBlock: {cidr: 0.0.0.0/0, except: [192.0.%d.%d/32]}\n", i>>8, i&255)
	}
	return b.String()
}

// A policy that expands too much isolates its pods and allows nothing: another policy
// may. Log, status and flow log name it.
func TestPolicyOverLimit(t *testing.T) {
	l := newAgentLab(t)
	l.serve(l.server, 80)
	l.serve(l.other, 80)
	l.write("explosive.yaml", explosive(500))
	socket := filepath.Join(t.TempDir(), "agent.sock")
	a := l.agent("--node-name=node-1", "--status-socket="+socket, "--policy-limits=0.01")
	said := a.await(0, `a policy is over a limit`)
	for _, want := range []string{"explosive.yaml", "NetworkPolicy shop/explosive", "spec.ingress[0].from", "--policy-limits"} {
		if !strings.Contains(said, want) {
			t.Errorf("the log does not name %s: %s", want, said)
		}
	}
	l.expect("only the policy over a limit", false, l.client, l.server, 80)
	l.expect("not selected", true, l.client, l.other, 80)

	s, err := askStatus(context.Background(), socket)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := writeStatus(&text, s, "text"); err != nil {
		t.Fatal(err)
	}
	if len(s.OverLimit) != 1 || !strings.Contains(text.String(), "over limit") || !strings.Contains(text.String(), "shop/explosive") {
		t.Errorf("status does not name the policy:\n%s", &text)
	}
	l.await("a flow record that names the policy", func() bool {
		lines, _ := a.flows.since(0)
		return slices.ContainsFunc(lines, func(line flow.Line) bool { return slices.Equal(line.OverLimit, []string{"shop/explosive"}) })
	})

	a.after(func() { l.write("policy.yaml", policyFor("client", "server")) }, newState)
	l.expect("with a policy that allows", true, l.client, l.server, 80)
	l.expect("with a policy that allows", false, l.other, l.server, 80)
	a.after(func() { l.write("explosive.yaml", explosive(2)) }, newState)
	l.expect("with a policy that is small now", true, l.other, l.server, 80)
	if s, err = askStatus(context.Background(), socket); err != nil || len(s.OverLimit) != 0 {
		t.Errorf("status: %+v, %v", s.OverLimit, err)
	}
	a.terminate()
}
