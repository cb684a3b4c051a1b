package audit_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/bench/netlab/netlabtest"
	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/engine/audit"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/flow/flowtest"
	"github.com/netverdict/netverdict/policy"
)

// patience bounds every wait for something that must happen.
const patience = time.Minute

// network is one node with pods in network namespaces, and an auditor on it.
//
//	client 10.1.0.1 fd00:1::1 ─┐
//	server 10.1.0.2 fd00:1::2 ─┼─ node ── fabric ── outside 192.0.2.9
//	other  10.1.0.3 fd00:1::3 ─┘
type network struct {
	t                     *testing.T
	lab                   *netlab.Lab
	node                  *netlab.Node
	client, server, other *netlab.Host
	late                  *netlab.Host // not known to the first tree

	auditor *audit.Auditor
	flows   *flowLog
	stop    func() error
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	lab := netlabtest.New(t)
	var err error
	n := &network{t: t, lab: lab, flows: &flowLog{}}
	if n.node, err = lab.AddNode("node", netlab.NodeOptions{}); err != nil {
		t.Fatal(err)
	}
	for i, h := range []**netlab.Host{&n.client, &n.server, &n.other, &n.late} {
		number := byte(i + 1)
		name := []string{"client", "server", "other", "late"}[i]
		if *h, err = n.node.AddHost(name, netip.AddrFrom4([4]byte{10, 1, 0, number}), netip.MustParseAddr(fmt.Sprintf("fd00:1::%d", number))); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// tree has policies: only the client may reach the server, and perhaps more.
func (n *network) tree(late bool, more ...*networkingv1.NetworkPolicy) *policy.Tree {
	n.t.Helper()
	s := &policy.Snapshot{
		Policies:      append(more, toServer()),
		Nodes:         []*policy.Node{{Name: "node", Addrs: n.node.Addrs()}},
		LocalPodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")},
	}
	for _, h := range n.node.Hosts() {
		if h == n.late && !late {
			continue
		}
		s.Pods = append(s.Pods, &policy.Pod{
			NamespacedName: policy.NamespacedName{Namespace: "shop", Name: h.Name()}, Labels: map[string]string{"app": h.Name()},
			NodeName: "node", Addrs: h.Addrs(), Phase: policy.PhaseRunning,
		})
	}
	tree, err := policy.Compile(s)
	if err != nil {
		n.t.Fatal(err)
	}
	return tree
}

func toServer() *networkingv1.NetworkPolicy {
	app := func(name string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
	}
	client, late := app("client"), app("late")
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "to-server"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: app("server"),
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &client}, {PodSelector: &late}}}},
		},
	}
}

// isolate keeps an app from sending anything.
func isolate(app string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "isolate-" + app},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		},
	}
}

// start audits until the test ends.
func (n *network) start(first *policy.Tree, tweak func(*audit.Config)) {
	n.t.Helper()
	cfg := audit.Config{
		Collector: flow.NewCollector(n.flows), RingSize: 1024, Log: flow.All, Flows: 4096, PolicyLimit: 10,
		DenyTimeout: 30 * time.Second, HoldLimit: 16, HoldTime: time.Minute,
	}
	if tweak != nil {
		tweak(&cfg)
	}
	err := n.node.Do(func() (err error) {
		cfg.Socket, err = audit.Open()
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	if n.auditor, err = audit.New(cfg); err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.auditor.Apply(first); !errors.Is(err, engine.ErrNotRunning) {
		n.t.Errorf("Apply before Run: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- n.auditor.Run(ctx, first, func() { close(ready) }) }()
	n.stop = sync.OnceValue(func() error {
		cancel()
		err := <-ended
		cfg.Socket.Close()
		flush, done := context.WithTimeout(context.Background(), patience)
		defer done()
		return errors.Join(err, cfg.Collector.Close(flush))
	})
	n.t.Cleanup(func() {
		if err := n.stop(); err != nil {
			n.t.Errorf("the auditor: %v", err)
		}
	})
	select {
	case <-ready:
	case <-time.After(patience):
		n.t.Fatal("the auditor is not ready")
	}
}

// serve starts HTTP and UDP servers on every pod.
func (n *network) serve(port uint16) {
	n.t.Helper()
	for _, h := range append(n.node.Hosts(), n.node.Host) {
		if _, err := h.ServeHTTP(port); err != nil {
			n.t.Fatal(err)
		}
		if _, err := h.ServeUDP(port); err != nil {
			n.t.Fatal(err)
		}
	}
}

// reach makes a request of each protocol over each family; all must be answered.
func (n *network) reach(from, to *netlab.Host, port uint16) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, a := range to.Addrs() {
		if _, err := from.HTTPGet(ctx, netip.AddrPortFrom(a, port)); err != nil {
			n.t.Errorf("HTTP %s > %s: %v", from.Name(), a, err)
		}
		if _, err := from.UDPExchange(ctx, netip.AddrPortFrom(a, port), []byte("hello")); err != nil {
			n.t.Errorf("UDP %s > %s: %v", from.Name(), a, err)
		}
		if err := from.Ping(ctx, a); err != nil {
			n.t.Errorf("ping %s > %s: %v", from.Name(), a, err)
		}
	}
}

// reached are the reports of reach.
func reached(verdict policy.Verdict, from, to *netlab.Host, port uint16) (all []string) {
	for i, a := range to.Addrs() {
		src := from.Addrs()[i]
		icmp := policy.ICMP
		if a.Is6() {
			icmp = policy.ICMPv6
		}
		all = append(all, report(verdict, policy.TCP, src, a, port), report(verdict, policy.UDP, src, a, port), report(verdict, icmp, src, a, 0))
	}
	return all
}

func report(v policy.Verdict, p policy.Protocol, src, dst netip.Addr, port uint16) string {
	return fmt.Sprintf("%v %v %v>%v:%d", v, p, src, dst, port)
}

// flowLog keeps every record.
type flowLog struct{ flowtest.Sink }

func (l *flowLog) reports() (all []string) {
	for _, r := range l.Records() {
		all = append(all, report(r.Decision.Reported(), r.Protocol, r.Src, r.Dst, r.DstPort))
	}
	return all
}

// demand ends the audit, and wants exactly these reports.
func (n *network) demand(want ...[]string) {
	n.t.Helper()
	n.await("all reports", func() bool { return len(n.flows.reports()) >= len(slices.Concat(want...)) })
	if err := n.stop(); err != nil {
		n.t.Error(err)
	}
	got, all := n.flows.reports(), slices.Concat(want...)
	slices.Sort(got)
	slices.Sort(all)
	if diff := cmp.Diff(all, got); diff != "" {
		n.t.Errorf("reports (-want +got):\n%s", diff)
	}
	if c := n.auditor.Copies(); c.KernelDropped != 0 || c.Copied == 0 {
		n.t.Errorf("copies: %+v", c)
	}
}

// awaitReports waits for so many reports: what is still to be judged when a tree is
// applied is judged by the new one.
func (n *network) awaitReports(least int) {
	n.t.Helper()
	n.await(fmt.Sprintf("%d reports", least), func() bool { return len(n.flows.reports()) >= least })
}

// settle waits until all that has been sent is judged: until a datagram that is sent
// behind it has been reported, as which it is returned.
func (n *network) settle() []string {
	n.t.Helper()
	const port = 81
	if _, err := n.server.ServeUDP(port); err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := n.other.UDPExchange(ctx, netip.AddrPortFrom(n.server.Addr4(), port), []byte("last")); err != nil {
		n.t.Fatal(err)
	}
	last := report(policy.Audit, policy.UDP, n.other.Addr4(), n.server.Addr4(), port)
	n.await("the last datagram's report", func() bool { return slices.Contains(n.flows.reports(), last) })
	return []string{last}
}

func (n *network) await(what string, cond func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Errorf("waited %v for: %s", patience, what)
			return
		}
	}
}

// TestLive: real flows of each protocol and family are judged once, by their first
// packet, and none of their replies; all of them pass.
func TestLive(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.serve(80)
	n.start(n.tree(false, isolate("client")), nil)
	n.reach(n.client, n.server, 80) // egress would deny
	n.reach(n.other, n.server, 80)  // ingress would
	n.reach(n.server, n.other, 80)  // nobody is asked
	n.reach(n.node.Host, n.server, 80)
	n.reach(n.client, n.node.Host, 80)
	n.demand(reached(policy.Audit, n.client, n.server, 80), reached(policy.Audit, n.other, n.server, 80))
	for _, r := range n.flows.Records() {
		if r.Decision.Verdict != policy.Allow || !r.Decision.Audit || r.Decision.Outcome().Reason != policy.ReasonDefaultDeny || r.Revision != 1 {
			t.Errorf("%+v", r)
		}
	}
	hits := n.auditor.PolicyHits()
	if len(hits) != 2 || hits[0].Count != 6 || hits[1].Count != 6 || hits[0].Verdict != policy.Audit {
		t.Errorf("hits %+v", hits)
	}
	if s := n.auditor.Stats(); s.Decided(policy.Audit) != 12 || s.Decided(policy.Deny) != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestServices: what is judged is the pod behind the address, and the pod before
// masquerading, also when a pod reaches itself.
func TestServices(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.serve(80)
	backend := netip.AddrPortFrom(n.server.Addr4(), 80)
	vip := netip.MustParseAddr("10.96.0.10")
	for _, proto := range []string{"tcp", "udp"} {
		if _, err := n.node.AddService(vip, 8080, proto, backend); err != nil {
			t.Fatal(err)
		}
	}
	// As kube-proxy does with --masquerade-all.
	n.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-d", "10.1.0.2", "-j", "MASQUERADE")
	n.start(n.tree(false), nil)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	to := netip.AddrPortFrom(vip, 8080)
	for _, h := range []*netlab.Host{n.other, n.client, n.server} {
		if _, err := h.HTTPGet(ctx, to); err != nil {
			t.Errorf("HTTP from %s: %v", h.Name(), err)
		}
		if h == n.server {
			continue
		}
		reply, err := h.UDPExchange(ctx, to, []byte("hello"))
		if err != nil {
			t.Errorf("UDP from %s: %v", h.Name(), err)
		} else if !slices.Contains(n.node.Addrs(), reply.Remote.Addr()) {
			t.Errorf("the server saw %v: nothing was masqueraded", reply.Remote)
		}
	}
	n.demand([]string{
		report(policy.Audit, policy.TCP, n.other.Addr4(), n.server.Addr4(), 80), report(policy.Audit, policy.UDP, n.other.Addr4(), n.server.Addr4(), 80),
		report(policy.Allow, policy.TCP, n.client.Addr4(), n.server.Addr4(), 80), report(policy.Allow, policy.UDP, n.client.Addr4(), n.server.Addr4(), 80),
		report(policy.Allow, policy.TCP, n.server.Addr4(), n.server.Addr4(), 80),
	})
}

// run runs a command on the node.
func (n *network) run(name string, args ...string) {
	n.t.Helper()
	if out, err := n.node.Command(context.Background(), name, args...).CombinedOutput(); err != nil {
		var exit *exec.ExitError
		n.t.Fatalf("%s %s: %v (%t): %s", name, strings.Join(args, " "), err, errors.As(err, &exit), out)
	}
}

// TestApplied: a new tree judges what comes next, and asks again about UDP flows
// that live, and about kinds that were remembered.
func TestApplied(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.serve(80)
	n.start(n.tree(false), func(c *audit.Config) { c.AllowTimeout, c.DenyTimeout = time.Hour, time.Hour })
	n.reach(n.client, n.server, 80)
	n.reach(n.client, n.server, 80) // the log wants each that is allowed
	n.awaitReports(12)
	change, err := n.auditor.Apply(n.tree(false, isolate("client")))
	if err != nil || !change.Revokes {
		t.Errorf("change %+v: %v", change, err)
	}
	n.reach(n.client, n.server, 80)
	n.reach(n.client, n.server, 80) // remembered
	last := n.settle()
	change, err = n.auditor.Apply(n.tree(false))
	if err != nil || !change.Adds {
		t.Errorf("change %+v: %v", change, err)
	}
	n.reach(n.client, n.server, 80)
	once := reached(policy.Allow, n.client, n.server, 80)
	n.demand(once, once, reached(policy.Audit, n.client, n.server, 80), last, once)
	if tree, serial := n.auditor.Tree(); tree == nil || serial != 3 {
		t.Errorf("serial %d", serial)
	}
}

// TestRemembered: a log of denials is told once of each kind that would be denied,
// and of what is allowed not at all.
func TestRemembered(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.serve(80)
	n.start(n.tree(false), func(c *audit.Config) { c.Log, c.AllowTimeout, c.DenyTimeout = flow.Denied, time.Hour, time.Hour })
	for range 3 {
		n.reach(n.client, n.server, 80)
		n.reach(n.other, n.server, 80)
	}
	last := n.settle()
	if s := n.auditor.Stats(); s.Decided(policy.Allow) != 6 || s.Decided(policy.Audit) != 6+1 {
		t.Errorf("decisions %+v", s.Decisions)
	}
	n.demand(reached(policy.Audit, n.other, n.server, 80), last)
}

// TestLatePod: a flow of a pod that is not known yet is judged when it is, and
// after some time without it.
func TestLatePod(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.serve(80)
	n.start(n.tree(false), nil)
	n.reach(n.late, n.server, 80)
	n.await("flows on hold", func() bool { return n.auditor.Stats().HeldNow == 6 })
	if _, err := n.auditor.Apply(n.tree(true)); err != nil {
		t.Fatal(err)
	}
	n.demand(reached(policy.Allow, n.late, n.server, 80))
}

func TestLatePodStaysUnknown(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.serve(80)
	n.start(n.tree(false), func(c *audit.Config) { c.HoldTime = 300 * time.Millisecond })
	n.reach(n.late, n.server, 80)
	n.demand(reached(policy.Audit, n.late, n.server, 80))
	if s := n.auditor.Stats(); s.HoldExpired != 6 || s.HeldNow != 0 {
		t.Errorf("stats %+v", s)
	}
}
