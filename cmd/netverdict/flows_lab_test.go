package main

import (
	"path/filepath"
	"testing"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// TestFlowsOfAgent asks a real agent, over its socket, about real connections.
func TestFlowsOfAgent(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.serve(l.server, 80, 81)
	l.write("policy.yaml", policyFor("client", "server"))
	socket := filepath.Join(t.TempDir(), "hubble.sock")
	l.agent("--flow-log=none", "--node-name=node-1", "--hubble-socket", socket)
	server := "--server=unix://" + socket
	l.expect("denied", false, l.other, l.server, 80)
	var denied []flow.Line
	l.await("flows over IPv4 and IPv6", func() bool { // on a busy machine some time after the packets
		denied, _ = startFlows(t, nil, server, "--verdict=deny", "--from-label=app=other").wait()
		return len(denied) >= 2
	})
	for _, f := range denied {
		if f.Source.Pod != "other" || f.Destination.Pod != "server" || f.Destination.Port != 80 || f.Protocol != policy.TCP ||
			f.Reason != policy.ReasonDefaultDeny || len(f.IsolatedBy) != 1 || f.IsolatedBy[0] != "shop/client-to-server" || f.Node != "node-1" {
			t.Errorf("flow %s", f.AppendJSON(nil))
		}
	}
	// Allowed flows are there while somebody follows, which one that is denied
	// shows; the kernel remembers denials, so each try is another port.
	r := startFlows(t, nil, server, "-f", "--to-pod=shop/server")
	for port := uint16(90); r.lines.length() == 0; port++ {
		l.expect("denied", false, l.other, l.server, port)
	}
	before := r.lines.length()
	l.expect("allowed", true, l.client, l.server, 81)
	for _, f := range r.await(before + 2)[before:] {
		if f.Verdict != policy.Allow || f.Policy != "shop/client-to-server" || f.Rule == nil || *f.Rule != 0 || f.Destination.Port != 81 {
			t.Errorf("flow %s", f.AppendJSON(nil))
		}
	}
	r.cancel()
	if _, err := r.wait(); err != nil {
		t.Errorf("stopped: %v", err)
	}
}
