package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/policy"
)

func TestPodCIDRFlag(t *testing.T) {
	t.Parallel()
	var p prefixes
	for _, text := range []string{"10.244.1.0/24", "fd00:1::/64, 10.245.0.0/16", "10.244.1.0/24"} {
		if err := p.Set(text); err != nil {
			t.Error(err)
		}
	}
	if got := p.String(); got != "10.244.1.0/24,fd00:1::/64,10.245.0.0/16" {
		t.Errorf("ranges %s", got)
	}
	for text, want := range map[string]string{
		"10.244.1.0": "such as", "10.244.1.7/24": "did you mean 10.244.1.0/24", "0.0.0.0/0": "every address", "": "such as", "::/0": "every address",
	} {
		if err := new(prefixes).Set(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// TestPodRanges: the flag wins over the Node.
func TestPodRanges(t *testing.T) {
	t.Parallel()
	own, given := netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("10.2.0.0/24")
	nodes := []*policy.Node{{Name: "other"}, {Name: "node-1", PodCIDRs: []netip.Prefix{own}}}
	for _, c := range []struct {
		given prefixes
		node  string
		want  []netip.Prefix
	}{
		{nil, "node-1", []netip.Prefix{own}},
		{prefixes{given}, "node-1", []netip.Prefix{given}},
		{prefixes{given}, "", []netip.Prefix{given}},
		{nil, "", nil},
		{nil, "other", nil},
	} {
		o := nodeOptions{podCIDRs: c.given}
		if got := o.ranges(c.node, nodes); !slices.Equal(got, c.want) {
			t.Errorf("node %q, given %v: %v, want %v", c.node, c.given, got, c.want)
		}
	}
}

// TestStatusOfAnAgent: on a node with kube-proxy and pod ranges from the flag, after
// some traffic, status says what is enforced, how packets went, and exits with 0.
func TestStatusOfAnAgent(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		l.serve(l.server, 80)
		l.write("policy.yaml", policyFor("client", "server"))
		l.onNode("iptables-" + strings.TrimPrefix(backend, "--iptables-backend=") + " -t mangle -N KUBE-PROXY-CANARY")
		socket := filepath.Join(t.TempDir(), "agent.sock")
		a := l.agent(backend, "--status-socket", socket, "--pod-cidr=10.1.0.0/24", "--pod-cidr=fd00:1::/64")
		a.await(0, `msg="this node" .*kubeProxy=\[iptables\]`)
		l.expect("allowed", true, l.client, l.server, 80)
		l.expect("denied", false, l.other, l.server, 80)

		var out bytes.Buffer
		if code := run(t.Context(), env{nil, &out, t.Output()}, []string{"status", "--socket", socket, "-o", "json"}); code != exitOK {
			t.Errorf("exit code %d", code)
		}
		var s Status
		if err := json.Unmarshal(out.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		if !s.Enforcing || s.Policies != 1 || s.Policed != 2 || s.LagSeconds != 0 || s.Allowed < 2 || s.Denied < 2 || len(s.Queues) != 1 || s.PodStart != podStartHeld {
			t.Errorf("status: %s", &out)
		}
		if f := s.NodeFacts; !slices.Equal(f.KubeProxy, []string{"iptables"}) || len(f.PodCIDRs) != 2 || f.Problem != "" {
			t.Errorf("node facts: %+v", f)
		}
		for _, p := range []hook.Purpose{hook.PurposeQueue, hook.PurposeEstablished, hook.PurposeDenied} {
			if !slices.ContainsFunc(s.Rules, func(r RuleStatus) bool { return r.Purpose == p && r.Packets > 0 }) {
				t.Errorf("no packets of purpose %s in %+v", p, s.Rules)
			}
		}
		a.terminate()
	})
}

// TestAgentSaysThatPodRangesAreUnknown, at start and in its status.
func TestAgentSaysThatPodRangesAreUnknown(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	socket := filepath.Join(t.TempDir(), "agent.sock")
	a := l.agent("--status-socket", socket)
	a.await(0, `level=WARN .*--pod-cidr`)
	var out bytes.Buffer
	if code := run(t.Context(), env{nil, &out, t.Output()}, []string{"status", "--socket", socket}); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(out.String(), "no kube-proxy found; pod ranges unknown (give them with --pod-cidr)") {
		t.Errorf("status says\n%s", &out)
	}
	a.terminate()
}

// TestAgentSaysThatPodsAreOutsideItsRanges: of such a pod nothing is held at its
// start, whatever the Node says of its ranges.
func TestAgentSaysThatPodsAreOutsideItsRanges(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	socket := filepath.Join(t.TempDir(), "agent.sock")
	a := l.agent("--status-socket", socket, "--pod-cidr=10.1.0.0/24,fd00:2::/64")
	a.await(0, `level=WARN msg="a pod that starts outside of .* outside=fd00:1::\d`)
	var out bytes.Buffer
	if code := run(t.Context(), env{nil, &out, t.Output()}, []string{"status", "--socket", socket}); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(out.String(), podStartText(podStartPartly)) {
		t.Errorf("status says\n%s", &out)
	}
	a.terminate()
}

// TestAgentSaysThatItsNodeIsUnknown, for a mistyped name polices nobody.
func TestAgentSaysThatItsNodeIsUnknown(t *testing.T) {
	t.Parallel()
	a := newAgentLab(t).agent("--node-name=nobody")
	a.await(0, `level=WARN msg="nothing is policed: there is no Node of this name.*" node=nobody`)
	a.terminate()
}

// onNode runs a shell command on the node.
func (l *agentLab) onNode(script string) {
	l.t.Helper()
	cmd := l.node.Command(l.t.Context(), "sh", "-ec", script)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		l.t.Fatalf("%s: %v\n%s", script, err, &said)
	}
}
