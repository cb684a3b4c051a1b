package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// TestAgentFollowsEdits: what is written into the directory is enforced, also on
// live connections, and explained in the flow log.
func TestAgentFollowsEdits(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		l.serve(l.server, 80)
		a := l.agent(backend)
		l.expect("without a policy", true, l.other, l.server, 80)
		live := l.openEchoes(l.other, l.server)

		said := a.after(func() { l.write("policy.yaml", policyFor("client", "server")) }, newState)
		if !strings.Contains(said, "policies=1") || !strings.Contains(said, "revokes=true") {
			t.Errorf("it says %s", said)
		}
		l.expect("with a policy", true, l.client, l.server, 80)
		l.expect("with a policy", false, l.other, l.server, 80)
		live.demandCut("with a policy")
		demandDenied(t, a, "shop/client-to-server")

		a.after(func() { l.write("policy.yaml", policyFor("other", "server")) }, newState)
		l.expect("with another policy", true, l.other, l.server, 80)
		l.expect("with another policy", false, l.client, l.server, 80)
		live.demandAlive("with another policy")

		said = a.after(func() { l.remove("policy.yaml") }, newState)
		if !strings.Contains(said, "policies=0") {
			t.Errorf("it says %s", said)
		}
		l.expect("when it is gone", true, l.client, l.server, 80)
		a.terminate()
		l.demandNothingLeft("after the end")
	})
}

// demandDenied waits for the record of a denied connection to port 80 that names
// pods and policy.
func demandDenied(t *testing.T, a *agentProcess, isolatedBy string) {
	t.Helper()
	limit := time.After(agentPatience)
	for {
		flows, more := a.flows.since(0)
		for _, f := range flows {
			if f.Verdict == policy.Deny && f.Reason == policy.ReasonDefaultDeny && f.Protocol == policy.TCP &&
				f.Source.Pod == "other" && f.Destination.Pod == "server" && f.Destination.Port == 80 &&
				slices.Equal(f.IsolatedBy, []string{isolatedBy}) {
				return
			}
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("no record of what %s denied among %+v", isolatedBy, flows)
		case <-a.ended:
			t.Fatalf("the agent ended; its records: %+v", flows)
		}
	}
}

// TestAgentLogsEveryConnection: with --flow-log=all each connection has its record,
// also the second of its kind, which the kernel lets pass by itself, and none has
// two.
func TestAgentLogsEveryConnection(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		const each = 10
		l.serve(l.server, 80)
		l.write("policy.yaml", policyFor("client", "server"))
		a := l.agent(backend, "--flow-log=all")
		for range each {
			l.expect("allowed", true, l.client, l.server, 80)
			for _, addr := range l.server.Addrs() {
				ctx, cancel := context.WithTimeout(t.Context(), agentPatience)
				if err := l.client.Ping(ctx, addr); err != nil {
					t.Error(err)
				}
				cancel()
			}
		}
		a.terminate()
		flows, _ := a.flows.since(0)
		count, answered := map[string]int{}, 0
		for _, f := range flows {
			if f.Verdict == policy.Allow && f.Policy == "shop/client-to-server" && f.Source.Pod == "client" && f.Destination.Pod == "server" {
				count[f.Protocol.String()+" "+f.Destination.IP.String()]++
				if f.Cached {
					answered++
				}
			}
		}
		// A client that waits a second for the verdict sends its SYN again.
		again, err := l.client.RepeatedSYNs()
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]int{"TCP 10.1.0.2": each, "TCP fd00:1::2": each, "ICMP 10.1.0.2": each, "ICMPv6 fd00:1::2": each}
		for kind, n := range count {
			if more := n - want[kind]; more < 0 || more > int(again) || more > 0 && !strings.HasPrefix(kind, "TCP") {
				t.Errorf("%d records of %s, want %d: %+v", n, kind, want[kind], flows)
			}
		}
		if len(count) != len(want) {
			t.Errorf("records of %v, want %v: %+v", count, want, flows)
		}
		if answered == 0 {
			t.Error("the kernel has let nothing pass by itself, so this shows nothing")
		}
	})
}

// TestAgentKeepsClosed: with --on-stop=keep-closed what is established goes on
// and nothing new begins, until the next agent takes over.
func TestAgentKeepsClosed(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		l.serve(l.server, 80, 81)
		l.serve(l.other, 80)
		l.write("policy.yaml", policyFor("client", "server"))
		a := l.agent(backend, "--on-stop=keep-closed")
		live := l.openEchoes(l.client, l.server)
		a.terminate()
		if len(l.leftovers()) == 0 {
			t.Error("no rules are left")
		}
		demandUnattended(l, live, "after the stop", false)

		a = l.agent(backend)
		demandEnforced(l, live, "with a new agent")
		a.terminate()
		l.demandNothingLeft("after the new agent")
		live.demandAlive("after the new agent")
		l.expect("after the new agent", true, l.other, l.server, 80)
	})
}

// demandUnattended checks what the kernel does alone.
func demandUnattended(l *agentLab, live *echoes, when string, passes bool) {
	l.t.Helper()
	live.demandAlive(when)
	l.expect(when+", nobody isolated", true, l.server, l.other, 80)
	l.expect(when, passes, l.client, l.server, 81) // not in the allow set
	l.expect(when, passes, l.other, l.server, 81)  // not in the deny set
}

func demandEnforced(l *agentLab, live *echoes, when string) {
	l.t.Helper()
	live.demandAlive(when)
	for _, port := range []uint16{80, 81} {
		l.expect(when, true, l.client, l.server, port)
		l.expect(when, false, l.other, l.server, port)
	}
}

// TestAgentKilled: kill -9 leaves the node closed (or open for those who chose
// --queue-bypass); established connections do not notice; a new agent adopts
// what it finds.
func TestAgentKilled(t *testing.T) {
	for _, bypass := range []bool{false, true} {
		t.Run(fmt.Sprintf("bypass=%t", bypass), func(t *testing.T) {
			eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
				args := []string{backend, fmt.Sprintf("--queue-bypass=%t", bypass)}
				l.serve(l.server, 80, 81)
				l.serve(l.other, 80)
				l.write("policy.yaml", policyFor("client", "server"))
				a := l.agent(args...)
				live := l.openEchoes(l.client, l.server)
				l.expect("before", false, l.other, l.server, 80)
				a.kill()
				demandUnattended(l, live, "after kill -9", bypass)

				a = l.agent(args...)
				demandEnforced(l, live, "with a new agent")
				a.after(func() { l.write("policy.yaml", policyFor("other", "server")) }, newState)
				live.demandCut("after an edit")
				l.expect("after an edit", true, l.other, l.server, 80)
				a.terminate()
				l.demandNothingLeft("after the end")
			})
		})
	}
}

// TestCleanup removes what a killed agent left, and nothing beside one that runs.
func TestCleanup(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		l.serve(l.server, 80)
		l.write("policy.yaml", policyFor("client", "server"))
		a := l.agent(backend)
		if out, err := l.command("cleanup").CombinedOutput(); err == nil || !strings.Contains(string(out), "an agent enforces on this host") {
			t.Errorf("cleanup beside an agent says %q: %v", out, err)
		}
		l.expect("after cleanup was refused", false, l.other, l.server, 80)
		a.kill()
		l.expect("after kill -9", false, l.other, l.server, 80)
		for _, want := range []string{"removed", "nothing to remove"} {
			out, err := l.command("cleanup").Output()
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("cleanup says %q, want %q: %v", out, want, err)
			}
		}
		l.demandNothingLeft("after cleanup")
		l.expect("after cleanup", true, l.other, l.server, 80)
	})
}

// TestAgentSurvivesEdits that cannot be used: each is reported with the file's
// name, and the last good policies stay in force.
func TestAgentSurvivesEdits(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.serve(l.server, 80)
	l.write("policy.yaml", policyFor("client", "server"))
	a := l.agent()
	enforced := func(when string) {
		t.Helper()
		l.expect(when, true, l.client, l.server, 80)
		l.expect(when, false, l.other, l.server, 80)
	}
	for name, content := range map[string]string{
		"unknown-field.yaml": strings.Replace(policyFor("other", "server"), "ingress:", "ingres:", 1),
		"bad-cidr.yaml":      strings.Replace(policyFor("other", "server"), "podSelector: {matchLabels: {app: other}}", "ipBlock: {cidr: 10.0.0.0/33}", 1),
		"no-yaml.yaml":       "{{{{ \x00\x01",
	} {
		said := a.after(func() { l.write(name, content) }, `level=ERROR`)
		if !strings.Contains(said, name) || !strings.Contains(said, "the last good policies stay in force") {
			t.Errorf("about %s it says %s", name, said)
		}
		enforced("beside " + name)
		a.after(func() { l.remove(name) }, newState)
	}
	a.after(func() {
		l.write("empty.yaml", "")
		l.write("more.yaml", policyFor("client", "other"))
	}, newState+" policies=2")
	enforced("beside a 0-byte manifest")
	// The same from the start.
	a.terminate()
	a = l.agent()
	enforced("an agent that starts beside a 0-byte manifest")
	a.terminate()
}

// TestAgentBrokenFromTheStart: an agent does not start on manifests that it
// cannot use, and touches nothing.
func TestAgentBrokenFromTheStart(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.write("policy.yaml", strings.Replace(policyFor("client", "server"), "ingress:", "ingres:", 1))
	l.launch(l.command("agent", "--manifests", l.dir)).demandFailure("policy.yaml", "ingres")
	l.demandNothingLeft("after the attempt")
}

// TestAgentBadRuleFlags: what the rules cannot be made of is said in words of the
// flags' own. Not a script: should one be accepted, it must not be in the root
// namespace.
func TestAgentBadRuleFlags(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	for _, c := range []struct{ flags, want string }{
		{"--ipv4=false --ipv6=false", "neither IPv4 nor IPv6"},
		{"--queue-num=65535 --queues=2", "two ranges of 2 queues.*must end below 61440"},
		{"--allow-timeout=1500ms", "allow timeout 1.5s: want whole seconds"},
		{"--deny-timeout=-1s", "deny timeout -1s: want whole seconds"},
		{"--mark-mask=0x7", "packet marks: mark mask 0x7 has 3 bits: want at least 5"},
		{"--connmark-mask=0x7", "connection marks: mark mask 0x7 has 3 bits: want at least 5"},
		{"--worker-nice=-21", "nice -21: want -20 to 19"},
	} {
		args := append([]string{"agent", "--manifests", l.dir}, strings.Fields(c.flags)...)
		l.launch(l.command(args...)).demandFailure(c.want)
	}
	l.demandNothingLeft("after refused flags")
}

// TestAgentManyPeers: a policy of 2,000 peers loads and means what it says.
func TestAgentManyPeers(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.serve(l.server, 80)
	var b strings.Builder
	b.WriteString(strings.SplitAfter(policyFor("nobody", "server"), "ingress:\n")[0] + "  - from:\n")
	for i := range 1998 {
		fmt.Fprintf(&b, "    - ipBlock: {cidr: 198.18.%d.%d/32}\n", i/250, i%250)
	}
	for _, addr := range l.client.Addrs() {
		fmt.Fprintf(&b, "    - ipBlock: {cidr: %s/%d}\n", addr, addr.BitLen())
	}
	l.write("policy.yaml", b.String())
	a := l.agent()
	l.expect("2,000 peers", true, l.client, l.server, 80)
	l.expect("2,000 peers", false, l.other, l.server, 80)
	a.terminate()
}

// TestAgentEnforcesItsOwnNode and no other's pods.
func TestAgentEnforcesItsOwnNode(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.serve(l.server, 80)
	l.write("policy.yaml", policyFor("client", "server"))
	for node, allowed := range map[string]bool{"node-1": false, "node-2": true} {
		a := l.agent("--node-name", node)
		l.expect("the agent of "+node, allowed, l.other, l.server, 80)
		a.terminate()
	}
}

// TestAgentSeveralQueues: whichever CPU a packet is on, its queue has a worker.
func TestAgentSeveralQueues(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	ports := []uint16{80, 81, 82, 83, 84, 85, 86, 87}
	l.serve(l.server, ports...)
	l.write("policy.yaml", policyFor("client", "server"))
	a := l.agent("--queues=3", "--queue-num=200")
	var probes sync.WaitGroup
	for _, port := range ports {
		probes.Go(func() { l.expect("three queues", true, l.client, l.server, port) })
		probes.Go(func() { l.expect("three queues", false, l.other, l.server, port) })
	}
	probes.Wait()
	a.terminate()
	l.demandNothingLeft("after the end")
}

// TestAgentOutlivesItsReader: when nobody reads the flow log any more, the agent
// says so once and goes on enforcing.
func TestAgentOutlivesItsReader(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.serve(l.server, 80, 81)
	l.write("policy.yaml", policyFor("client", "server"))
	a := l.agent()
	a.after(func() {
		a.stdout.Close()
		l.expect("without a reader", false, l.other, l.server, 80)
	}, `level=ERROR.*flow log`)
	l.expect("without a reader", false, l.other, l.server, 81)
	l.expect("without a reader", true, l.client, l.server, 80)
	a.terminate()
}

// TestAgentQueueTaken: an agent whose queue number another program has takes the
// next one, and if that is taken too it says which it cannot have.
func TestAgentQueueTaken(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.serve(l.server, 80)
	l.write("policy.yaml", policyFor("client", "server"))
	l.reserve(77)
	a := l.agent("--queue-num=77")
	l.expect("with the other queue", true, l.client, l.server, 80)
	l.expect("with the other queue", false, l.other, l.server, 80)
	a.terminate()
	l.reserve(78)
	l.launch(l.command("agent", "--manifests", l.dir, "--queue-num=77")).
		demandFailure("queue 77.*taken", "queue 78.*taken", "choose another queue number")
	l.demandNothingLeft("after both agents")
}

// reserve takes a queue number on the node until the test ends.
func (l *agentLab) reserve(num uint16) {
	l.t.Helper()
	err := l.node.Do(func() error {
		r, err := queue.Reserve(num)
		if err == nil {
			l.t.Cleanup(func() { _ = r.Release() })
		}
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// TestAgentNeedsPrivilege: without it the agent says which one, and how to get it.
func TestAgentNeedsPrivilege(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.launch(asNobody(t, l.command("agent", "--manifests", l.dir))).
		demandFailure("CAP_NET_ADMIN", "uid 65534", "run as root")
}

// asNobody runs a command as nobody, with a copy of this binary where nobody may
// run it.
func asNobody(t *testing.T, cmd *netlab.Cmd) *netlab.Cmd {
	t.Helper()
	dir, err := os.MkdirTemp("", "netverdict-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, err := os.ReadFile(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = filepath.Join(dir, "netverdict")
	if err := os.WriteFile(cmd.Path, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	return cmd
}

// TestAgentNeedsIptables: when the command is missing, the package is named.
func TestAgentNeedsIptables(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	cmd := l.command("agent", "--manifests", l.dir)
	cmd.Env = append(cmd.Env, "PATH="+t.TempDir())
	l.launch(cmd).demandFailure("iptables.*not found", "install the package iptables")
}
