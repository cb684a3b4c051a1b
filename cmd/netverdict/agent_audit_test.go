package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

const auditing = `msg="auditing; nothing is enforced"`

// auditAgent starts an agent that audits, as nobody with CAP_NET_RAW alone, where
// no command can be found, and returns when it does.
func (l *agentLab) auditAgent(args ...string) *agentProcess {
	l.t.Helper()
	cmd := asNobody(l.t, l.command(append([]string{"agent", "--mode=audit", "--manifests", l.dir}, args...)...))
	cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_RAW}
	cmd.Env = append(cmd.Env, "PATH=/nonexistent")
	a := l.launch(cmd)
	a.await(0, auditing)
	return a
}

// probe makes a request of each protocol over each family, from each pod to each
// other, on two ports. What comes of it is in the flow log.
func (l *agentLab) probe() {
	l.t.Helper()
	var wg sync.WaitGroup
	hosts := []*netlab.Host{l.client, l.server, l.other}
	for _, from := range hosts {
		for _, to := range hosts {
			for _, a := range to.Addrs() {
				wg.Go(func() { l.ping(from, a) })
				for _, port := range []uint16{80, 81} {
					wg.Go(func() { l.request(from, netip.AddrPortFrom(a, port)) })
				}
			}
		}
	}
	wg.Wait()
}

func (l *agentLab) request(from *netlab.Host, to netip.AddrPort) {
	ctx, cancel := untilSilence()
	defer cancel()
	_, _ = from.HTTPGet(ctx, to)
	udp, done := untilSilence()
	defer done()
	_, _ = from.UDPExchange(udp, to, []byte("hello"))
}

func (l *agentLab) ping(from *netlab.Host, to netip.Addr) {
	ctx, cancel := untilSilence()
	defer cancel()
	_ = from.Ping(ctx, to)
}

// serveAll starts HTTP and UDP servers on every pod.
func (l *agentLab) serveAll(ports ...uint16) {
	l.t.Helper()
	for _, h := range []*netlab.Host{l.client, l.server, l.other} {
		l.serve(h, ports...)
		for _, port := range ports {
			if _, err := h.ServeUDP(port); err != nil {
				l.t.Fatal(err)
			}
		}
	}
}

// rules lists what iptables, of both backends, and ipset know on the node.
func (l *agentLab) rules() string {
	l.t.Helper()
	var all strings.Builder
	for _, command := range []string{
		"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save", "ipset list", "nft list ruleset",
	} {
		args := strings.Fields(command)
		out, err := l.node.Command(context.Background(), args[0], args[1:]...).CombinedOutput()
		if err != nil {
			l.t.Fatalf("%s: %v: %s", command, err, out)
		}
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "#") { // the time
				fmt.Fprintf(&all, "%s: %s", command, line)
			}
		}
	}
	return all.String()
}

// decided spells what was decided in a flow log, without what differs between two
// runs of the same traffic; would-be denials are told as what they would be.
func decided(flows []flow.Line) (all []string) {
	for i := range flows {
		f := &flows[i]
		verdict := f.Verdict
		if verdict == policy.Audit {
			verdict = policy.Deny
		}
		rule := "-"
		if f.Rule != nil {
			rule = fmt.Sprint(*f.Rule)
		}
		all = append(all, fmt.Sprintf("%v %s>%s:%d/%v %v %v %s#%s %v egress %v ingress %v", verdict, f.Source.IP, f.Destination.IP, f.Destination.Port,
			f.Protocol, f.Direction, f.Reason, f.Policy, rule, f.IsolatedBy, f.Egress.Reason, f.Ingress.Reason))
	}
	slices.Sort(all)
	return slices.Compact(all) // a SYN that a slow machine leaves waiting is sent again
}

// awaitFlows waits until the flow log has so many records, and none for a while.
func (a *agentProcess) awaitFlows(least int) []flow.Line {
	a.t.Helper()
	limit := time.After(agentPatience)
	for {
		flows, more := a.flows.since(0)
		quiet := time.After(1500 * time.Millisecond)
		if len(flows) < least {
			quiet = nil
		}
		select {
		case <-more:
		case <-quiet:
			return flows
		case <-limit:
			a.t.Fatalf("%d records, want %d: %v", len(flows), least, decided(flows))
		case <-a.ended:
			a.t.Fatalf("the agent ended; its records: %v", decided(flows))
		}
	}
}

// TestAuditSaysWhatEnforcingDoes: on the same traffic an agent that audits and one
// that enforces decide the same; the one that audits stops nothing, installs
// nothing, and needs no privilege but to copy packets.
func TestAuditSaysWhatEnforcingDoes(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.serveAll(80, 81)
	l.write("policies.yaml", policyFor("client", "server")+"---\n"+policyFor("server", "client")+`---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: other-asks-81, namespace: shop}
spec:
  podSelector: {matchLabels: {app: other}}
  policyTypes: [Egress]
  egress: [{ports: [{port: 81}, {port: 81, protocol: UDP}]}]
`)
	every := []string{"--flow-log=all", "--flow-log-fold=0", "--flow-log-rate=0"}
	before := l.rules()
	audit := l.auditAgent(every...)
	l.expect("audited", true, l.other, l.server, 80)
	l.expect("audited", true, l.client, l.server, 80)
	during := l.rules()
	audit.terminate()
	if diff := cmp.Diff(before, during); diff != "" {
		t.Errorf("the audit changed rules (-before +during):\n%s", diff)
	}
	if diff := cmp.Diff(before, l.rules()); diff != "" {
		t.Errorf("the audit left rules (-before +after):\n%s", diff)
	}

	audit = l.auditAgent(every...)
	l.probe()
	audit.awaitFlows(40)
	audit.terminate()
	audited, _ := audit.flows.since(0)
	enforce := l.agent(every...)
	l.probe()
	enforce.awaitFlows(40)
	enforce.terminate()
	enforced, _ := enforce.flows.since(0)
	if diff := cmp.Diff(decided(enforced), decided(audited)); diff != "" {
		t.Errorf("decisions (-enforced +audited):\n%s", diff)
	}
	count := func(flows []flow.Line, v policy.Verdict) int {
		return len(decided(slices.DeleteFunc(slices.Clone(flows), func(f flow.Line) bool { return f.Verdict != v })))
	}
	denials := count(enforced, policy.Deny)
	if denials == 0 || count(audited, policy.Audit) != denials || count(audited, policy.Deny) != 0 || count(enforced, policy.Audit) != 0 {
		t.Errorf("%d denials enforced, %d audited, %d denied in the audit", denials, count(audited, policy.Audit), count(audited, policy.Deny))
	}
}

// TestAuditFollowsEdits, and says what it does and does not do.
func TestAuditFollowsEdits(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.serve(l.server, 80)
	dir, err := os.MkdirTemp("", "netverdict-audit-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "agent.sock")
	a := l.auditAgent("--status-socket", socket, "--flow-log-fold=0")
	said := a.after(func() { l.write("policy.yaml", policyFor("client", "server")) }, `msg="auditing a new state"`)
	if !strings.Contains(said, "policies=1") {
		t.Errorf("it says %s", said)
	}
	l.expect("audited", true, l.other, l.server, 80)
	l.expect("audited", true, l.client, l.server, 80)
	flows := a.awaitFlows(2)
	for i := range flows {
		f := &flows[i]
		if f.Verdict != policy.Audit || f.Source.Pod != "other" || f.Destination.Pod != "server" || !slices.Equal(f.IsolatedBy, []string{"shop/client-to-server"}) {
			t.Errorf("%+v is not what is audited", f)
		}
	}
	s, err := askStatus(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	if s.Enforcing || s.Mode != modeAudit || s.Audited != 2 || s.Denied != 0 || s.Audit == nil || s.Audit.Copied == 0 || s.Policies != 1 {
		t.Errorf("status %+v, %+v", s, s.Audit)
	}
	var out strings.Builder
	if err := writeStatus(&out, s, "text"); err != nil || !strings.Contains(out.String(), "no: audit, nothing is enforced") ||
		!strings.Contains(out.String(), "packets that may begin a flow were copied") || strings.Contains(out.String(), "iptables") {
		t.Errorf("status says, %v:\n%s", err, out.String())
	}
	a.terminate()
}

// TestAuditNeedsPrivilege: without it the agent says which one.
func TestAuditNeedsPrivilege(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.launch(asNobody(t, l.command("agent", "--mode=audit", "--manifests", l.dir))).demandFailure("CAP_NET_RAW")
}

// TestAuditByAnnotation: an agent that enforces lets pass, and reports, what the
// policies of a namespace deny while it is annotated so, and not longer.
func TestAuditByAnnotation(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		l.serve(l.server, 80)
		l.write("policy.yaml", policyFor("client", "server"))
		cluster, err := os.ReadFile(filepath.Join(l.dir, "cluster.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		annotated := func(mode string) {
			l.write("cluster.yaml", strings.Replace(string(cluster), "{name: shop}", "{name: shop, annotations: {netverdict.io/mode: "+mode+"}}", 1))
		}
		a := l.agent(backend, "--flow-log-fold=0")
		l.expect("enforced", false, l.other, l.server, 80)
		if said := a.after(func() { annotated("audit") }, newState); !strings.Contains(said, "adds=true") {
			t.Errorf("it says %s", said)
		}
		l.expect("audited", true, l.other, l.server, 80)
		if said := a.after(func() { annotated("none") }, newState); !strings.Contains(said, "revokes=true") {
			t.Errorf("it says %s", said)
		}
		a.await(0, `Namespace shop: metadata.annotations.*none.*is neither audit nor enforce`)
		l.expect("enforced again", false, l.other, l.server, 80)
		flows := a.awaitFlows(6)
		audited := slices.DeleteFunc(slices.Clone(flows), func(f flow.Line) bool { return f.Verdict != policy.Audit })
		if len(decided(audited)) != 2 || !slices.Equal(audited[0].IsolatedBy, []string{"shop/client-to-server"}) {
			t.Errorf("%d audited, want one of each family: %v", len(audited), decided(flows))
		}
		a.terminate()
	})
}
