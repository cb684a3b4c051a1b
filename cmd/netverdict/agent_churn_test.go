package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/bench/netlab/netlabtest"
	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/oracle"
	"github.com/netverdict/netverdict/policy/policytest"
)

// `make promises` sets what we promise: 60 s.
var churnTime = flag.Duration("churn-time", 4*time.Second, "how long TestPolicyChurn changes policies, pods and namespaces, 50 times a second")

const (
	churnEvery = 20 * time.Millisecond
	// churnSettle is how much later than the end of a probe a report of the agent must be
	// that was read before the probe is judged: then all of that time have been.
	churnSettle = 5 * time.Second
	// churnSilence and churnPatience bound a probe that should be denied, and allowed.
	churnSilence  = 300 * time.Millisecond
	churnPatience = 10 * time.Second
	churnRepeat   = time.Second // a datagram, as clients do
	churnMemory   = 20_000      // states
)

// TestPolicyChurn: 50 changes a second of policies, pods and namespaces, by real
// traffic between the addresses concerned. Every flow record must say what the oracle
// says of the state that the record's tree was made of, down to policy and rule; no
// packet that was sent when a state was in force may be judged by an older one; and
// what became of a connection must be what one of the states allows that were in force
// meanwhile.
func TestPolicyChurn(t *testing.T) {
	for i, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			c := newChurnTrial(t, uint64(7+i))
			c.start(churnEvery, *churnTime, "--iptables-backend="+backend)
			c.probe(*churnTime, 8, 5*time.Millisecond)
			c.finish()
			c.report(*churnTime)
		})
	}
}

// moment is when a state was offered to the agent, or was in force.
type moment struct {
	state uint64
	at    int64
}

// churnProbe is one connection and what became of it.
type churnProbe struct {
	flow     policytest.Flow
	from     uint16 // source port
	sent     int64
	ended    int64 // answered, or given up
	answered bool
	repeated bool // its datagram was sent more than once
	patient  bool // it would have waited for churnPatience
}

type churnKey struct {
	protocol policy.Protocol
	src, dst netip.AddrPort
}

// churnTrial is an agent on a node with hosts that have all addresses of the cluster.
type churnTrial struct {
	t     *testing.T
	lab   *agentLab
	hosts []*netlab.Host
	at    map[netip.Addr]*netlab.Host
	seed  uint64
	cmd   *netlab.Cmd
	log   string
	ended chan struct{}

	mu                sync.Mutex
	cluster           *changingCluster
	states            map[uint64]*policy.Snapshot
	newest            *policy.Snapshot
	offered, enforced []moment
	revisions         map[uint64]uint64 // → state
	sent              map[churnKey]int64
	size              churnReport
	reported          int64 // time of the latest report

	pending                   []churnProbe
	records, allowed, denied  int
	wrong, stale              int
	repeated                  int // answered, but not at once, though no state denied it
	probes, answered          int
	leaked, broken            int
	forced                    int // states
	lost                      uint64
	firstOffered, lastOffered int64
}

func newChurnTrial(t *testing.T, seed uint64) *churnTrial {
	t.Helper()
	lab := netlabtest.New(t)
	var err error
	c := &churnTrial{
		t: t, lab: &agentLab{t: t}, seed: seed, cluster: newChangingCluster(seed), at: map[netip.Addr]*netlab.Host{},
		states: map[uint64]*policy.Snapshot{}, revisions: map[uint64]uint64{}, sent: map[churnKey]int64{}, ended: make(chan struct{}),
	}
	if c.lab.node, err = lab.AddNode("node", netlab.NodeOptions{}); err != nil {
		t.Fatal(err)
	}
	addrs := policytest.PodAddrs()
	const hosts = 4 // neighbouring addresses are different hosts'
	for i := range hosts {
		var mine []netip.Addr
		for j := i; j < len(addrs); j += hosts {
			mine = append(mine, addrs[j])
		}
		h, err := c.lab.node.AddHost(fmt.Sprint("pods-", i), mine...)
		if err != nil {
			t.Fatal(err)
		}
		c.hosts = append(c.hosts, h)
		for _, a := range mine {
			c.at[a] = h
		}
		for _, port := range policytest.PortNumbers() {
			if _, err := h.ServeTCP(port); err != nil {
				t.Fatal(err)
			}
			if _, err := h.ServeUDP(port); err != nil {
				t.Fatal(err)
			}
		}
	}
	return c
}

// start starts the agent and waits until it enforces something.
func (c *churnTrial) start(every, long time.Duration, args ...string) {
	c.t.Helper()
	c.cmd = c.lab.node.Command(context.Background(), thisBinary(c.t), append([]string{"--flow-log=all"}, args...)...)
	c.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %v %v", asChurned, c.seed, every, long))
	c.log = filepath.Join(c.t.TempDir(), "agent.log")
	log, err := os.Create(c.log)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	out, in, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	defer in.Close()
	c.cmd.Stdout, c.cmd.Stderr = in, log
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		defer close(c.ended)
		defer out.Close()
		c.read(out)
	}()
	c.t.Cleanup(func() {
		c.cmd.Process.Kill()
		<-c.ended
		if c.t.Failed() {
			said, _ := os.ReadFile(c.log)
			c.t.Logf("the agent said, at last:\n%s", said[max(0, len(said)-4000):])
		}
	})
	c.await("an enforced state", func() bool { return len(c.enforced) > 0 })
}

// await waits until something is so.
func (c *churnTrial) await(what string, done func() bool) {
	c.t.Helper()
	for limit := time.Now().Add(3 * agentPatience); ; time.Sleep(10 * time.Millisecond) {
		c.mu.Lock()
		ok := done()
		c.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(limit) {
			c.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (c *churnTrial) read(out *os.File) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r churnReport
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			c.t.Errorf("report %q: %v", lines.Text(), err)
			return
		}
		c.mu.Lock()
		c.take(&r)
		c.mu.Unlock()
	}
}

// take enters a report. c.mu is held.
func (c *churnTrial) take(r *churnReport) {
	c.reported = max(c.reported, r.At)
	switch r.Kind {
	case "offered":
		state, s := c.cluster.next()
		if state != r.State {
			c.t.Errorf("the agent was offered state %d, the test is at %d", r.State, state)
		}
		c.states[state], c.newest = s, s
		delete(c.states, state-churnMemory)
		if len(c.offered) == 0 {
			c.firstOffered = r.At
		}
		c.lastOffered = r.At
		c.offered = trim(append(c.offered, moment{r.State, r.At}))
	case "enforced":
		c.enforced = trim(append(c.enforced, moment{r.State, r.At}))
		c.forced++
	case "record":
		c.judge(r)
	case "lost":
		c.lost += r.Lost
	case "size":
		c.size = *r
	}
}

func trim(m []moment) []moment {
	if len(m) > 2*churnMemory {
		return slices.Clone(m[churnMemory:])
	}
	return m
}

// judge compares a record with the oracle. c.mu is held.
func (c *churnTrial) judge(r *churnReport) {
	s := c.states[r.State]
	if s == nil {
		c.t.Errorf("a record of %v is of state %d, which is long gone or never was", time.Unix(0, r.At), r.State)
		return
	}
	if state, known := c.revisions[r.Revision]; known && state != r.State {
		c.t.Errorf("revision %d is of state %d and of state %d", r.Revision, state, r.State)
	}
	c.revisions[r.Revision] = r.State
	delete(c.revisions, r.Revision-churnMemory)
	c.records++
	want := oracle.Decide(s, r.Src.Addr(), r.Dst.Addr(), r.Protocol, r.Dst.Port())
	if text := decisionText(want); text != r.Decision {
		c.wrong++
		c.t.Errorf("state %d, %v > %v %v: the agent says\n%s\nthe oracle\n%s", r.State, r.Src, r.Dst, r.Protocol, r.Decision, text)
	}
	if want.Verdict == policy.Allow {
		c.allowed++
	} else {
		c.denied++
	}
	sent, known := c.sent[churnKey{r.Protocol, r.Src, r.Dst}]
	if !known {
		return
	}
	if force := c.forceAt(sent); force >= 0 && r.State < c.enforced[force].state {
		c.stale++
		c.t.Errorf("%v > %v %v was sent when state %d was in force, and judged by state %d", r.Src, r.Dst, r.Protocol, c.enforced[force].state, r.State)
	}
}

// forceAt returns the last state that was in force at a time; -1 for none.
func (c *churnTrial) forceAt(at int64) int {
	n, _ := slices.BinarySearchFunc(c.enforced, at+1, func(m moment, at int64) int { return compareInt(m.at, at) })
	return n - 1
}

func compareInt(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// probe sends for some time, by so many clients at once, each of which rests after
// every probe.
func (c *churnTrial) probe(long time.Duration, clients int, rest time.Duration) {
	var wg sync.WaitGroup
	stop := time.Now().Add(long)
	for i := range clients {
		wg.Go(func() {
			rng := policytest.NewRand(c.seed<<16 + uint64(i))
			// Most probes repeat one of a few, half of these from the same port: what the
			// kernel remembers of them must not outlive its state.
			usual := make([]policytest.Flow, 4)
			for n := 0; time.Now().Before(stop); n++ {
				f := &usual[rng.IntN(len(usual))]
				if !f.Src.IsValid() || rng.IntN(20) == 0 {
					*f = c.draw(rng)
				}
				c.one(*f, uint16(20000+i), n%2 == 0)
				time.Sleep(rest)
			}
		})
	}
	var settled sync.WaitGroup
	end := make(chan struct{})
	settled.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(time.Second):
				c.settle()
			}
		}
	})
	wg.Wait()
	close(end)
	settled.Wait()
}

// draw chooses a connection between addresses that concern the cluster.
func (c *churnTrial) draw(rng *rand.Rand) policytest.Flow {
	c.mu.Lock()
	now := c.newest
	c.mu.Unlock()
	for {
		f := policytest.RandomFlow(rng, now)
		from, to := c.at[f.Src], c.at[f.Dst]
		if from != nil && to != nil && from != to && (f.Protocol == policy.TCP || f.Protocol == policy.UDP) && slices.Contains(policytest.PortNumbers(), f.Port) {
			return f
		}
	}
}

// one sends one probe, of a live flow from a port that is used again and again.
func (c *churnTrial) one(f policytest.Flow, port uint16, live bool) {
	p := churnProbe{flow: f}
	if live && f.Protocol == policy.UDP {
		p.from = port
	}
	limit := churnSilence
	if p.patient = c.mayPass(f); p.patient {
		limit = churnPatience
	}
	err := c.at[f.Src].Do(func() error { return c.send(&p, limit) })
	if err != nil {
		c.t.Errorf("%v: %v", f, err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending = append(c.pending, p)
}

// mayPass reports whether a probe may be answered, by the state in force or the
// newest.
func (c *churnTrial) mayPass(f policytest.Flow) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	inForce := c.states[c.enforced[len(c.enforced)-1].state]
	return slices.ContainsFunc([]*policy.Snapshot{c.newest, inForce}, func(s *policy.Snapshot) bool {
		return s != nil && oracle.Decide(s, f.Src, f.Dst, f.Protocol, f.Port).Verdict == policy.Allow
	})
}

// sending notes a probe before its first packet leaves.
func (c *churnTrial) sending(p *churnProbe) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.sent = time.Now().UnixNano()
	k := churnKey{p.flow.Protocol, netip.AddrPortFrom(p.flow.Src, p.from), netip.AddrPortFrom(p.flow.Dst, p.flow.Port)}
	if p.from < 30000 { // used again and again: a record may be of an earlier packet
		return
	}
	if len(c.sent) > 100_000 {
		clear(c.sent)
	}
	c.sent[k] = p.sent
}

// send runs in the namespace of the source.
func (c *churnTrial) send(p *churnProbe, limit time.Duration) error {
	defer func() { p.ended = time.Now().UnixNano() }()
	if p.flow.Protocol == policy.TCP {
		return c.connect(p, limit)
	}
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.flow.Dst, p.flow.Port))
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: p.flow.Src.AsSlice(), Port: int(p.from)}, to)
	if errors.Is(err, syscall.EADDRINUSE) {
		conn, err = net.DialUDP("udp", &net.UDPAddr{IP: p.flow.Src.AsSlice()}, to)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	p.from = conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	c.sending(p)
	payload := fmt.Sprintf("#%d#", p.sent)
	answer, sends := make([]byte, 256), 0
	for {
		left := limit - time.Duration(time.Now().UnixNano()-p.sent)
		if left <= 0 {
			return nil
		}
		if sends++; sends > 1 {
			p.repeated = true
		}
		if err := errors.Join(conn.SetDeadline(time.Now().Add(min(left, churnRepeat))), ignoreSilence(write(conn, payload))); err != nil {
			return err
		}
		if err := awaitAnswer(conn, answer, p); err != nil || p.answered {
			return err
		}
	}
}

// awaitAnswer reads until the answer to a probe or the deadline.
func awaitAnswer(conn net.Conn, answer []byte, p *churnProbe) error {
	for {
		n, err := conn.Read(answer)
		if err != nil {
			return ignoreSilence(err)
		}
		if slices.Contains(splitHash(string(answer[:n])), fmt.Sprint(p.sent)) { // and no late answer to an earlier one
			p.answered = true
			return nil
		}
	}
}

func write(c net.Conn, payload string) error {
	_, err := c.Write([]byte(payload))
	return err
}

func splitHash(s string) []string {
	return slices.Collect(func(yield func(string) bool) {
		for at := 0; ; {
			end := at
			for end < len(s) && s[end] != '#' {
				end++
			}
			if !yield(s[at:end]) || end == len(s) {
				return
			}
			at = end + 1
		}
	})
}

// ignoreSilence makes no error of what happens to connections that are denied, also
// by namespaces that want them rejected: a server listens everywhere, so nobody else
// refuses.
func ignoreSilence(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
		return nil
	}
	return err
}

func (c *churnTrial) connect(p *churnProbe, limit time.Duration) error {
	d := net.Dialer{Timeout: limit, KeepAlive: -1, LocalAddr: &net.TCPAddr{IP: p.flow.Src.AsSlice()}}
	d.Control = func(_, _ string, raw syscall.RawConn) error {
		c.sending(p) // its port is not known yet, so its records are not looked for
		return nil
	}
	p.from = 1
	conn, err := d.Dial("tcp", netip.AddrPortFrom(p.flow.Dst, p.flow.Port).String())
	if err != nil {
		return ignoreSilence(err)
	}
	defer conn.Close()
	p.answered = true
	return conn.(*net.TCPConn).SetLinger(0)
}

// settle judges the probes that ended long enough ago.
func (c *churnTrial) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.reported - int64(churnSettle)
	var later []churnProbe
	for i := range c.pending {
		if p := &c.pending[i]; p.ended >= before {
			later = append(later, *p)
		} else {
			c.settleOne(p)
		}
	}
	c.pending = later
}

// settleOne wants what became of a probe to be what a state says that was in force, or
// was about to be, between its begin and its end.
func (c *churnTrial) settleOne(p *churnProbe) {
	first := c.forceAt(p.sent)
	if first < 0 {
		return
	}
	var may, mayNot bool
	for i := first; i < len(c.enforced); i++ {
		m := c.enforced[i]
		if i > first && c.offeredAt(m.state) > p.ended {
			break
		}
		s := c.states[m.state]
		if s == nil {
			return
		}
		verdict := oracle.Decide(s, p.flow.Src, p.flow.Dst, p.flow.Protocol, p.flow.Port).Verdict
		may, mayNot = may || verdict == policy.Allow, mayNot || verdict == policy.Deny
	}
	c.probes++
	if p.answered {
		c.answered++
	}
	if p.answered && p.repeated && !mayNot {
		c.repeated++
	}
	switch {
	case p.answered && !may:
		c.leaked++
		c.t.Errorf("%v from port %d was answered, %v after it was sent, although no state from %d on allows it", p.flow, p.from, time.Duration(p.ended-p.sent), c.enforced[first].state)
	case !p.answered && !mayNot && p.patient: // or this test was told late that it may pass
		c.broken++
		c.t.Errorf("%v from port %d was not answered within %v, although no state from %d on denies it", p.flow, p.from, time.Duration(p.ended-p.sent), c.enforced[first].state)
	}
}

func (c *churnTrial) offeredAt(state uint64) int64 {
	n, known := slices.BinarySearchFunc(c.offered, state, func(m moment, state uint64) int { return compareInt(int64(m.state), int64(state)) })
	if !known {
		return 0
	}
	return c.offered[n].at
}

// finish waits until the last state is in force, judges what is left, and ends the
// agent. Where a slow machine has sent too little, it sends more to the last state.
func (c *churnTrial) finish() {
	c.t.Helper()
	c.await("the last state to be in force", func() bool {
		return c.enforced[len(c.enforced)-1].state == c.offered[len(c.offered)-1].state
	})
	c.settleAll()
	for limit := time.Now().Add(agentPatience); c.little() && time.Now().Before(limit); c.settleAll() {
		c.probe(time.Second, 8, 5*time.Millisecond)
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	select {
	case <-c.ended:
	case <-time.After(agentPatience):
		c.t.Fatal("the agent does not end")
	}
	if err := c.cmd.Wait(); err != nil {
		c.t.Errorf("the agent: %v", err)
	}
	c.lab.demandNothingLeft("in the end")
}

func (c *churnTrial) report(long time.Duration) {
	c.t.Helper()
	rate := float64(c.cluster.mutated-1) / (time.Duration(c.lastOffered - c.firstOffered).Seconds())
	c.t.Logf("%v of churn: %d changes (%.1f a second), %d states enforced; %d flow records, %d allow and %d deny: wrong %d, judged by an older state %d, lost %d; %d connections, %d answered: leaked %d, broken %d, answered only when repeated %d",
		long, c.cluster.mutated-1, rate, c.forced, c.records, c.allowed, c.denied, c.wrong, c.stale, c.lost, c.probes, c.answered, c.leaked, c.broken, c.repeated)
	if c.little() {
		c.t.Error("too little happened to mean anything")
	}
}

// settleAll judges all probes, once the agent has reported what there was meanwhile.
func (c *churnTrial) settleAll() {
	c.t.Helper()
	end := time.Now().UnixNano()
	c.await("the agent's reports", func() bool { return c.reported > end+int64(churnSettle) })
	c.settle()
}

// little reports whether some kind of thing has not happened.
func (c *churnTrial) little() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.records == 0 || c.allowed == 0 || c.denied == 0 || c.answered == 0 || c.answered == c.probes
}
