package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
)

// `make promises` sets what we promise: 20 turns of each kind, at 300 new
// connections a second.
var (
	turns       = flag.Int("turns", 2, "how often an agent follows another in TestAgentsFollowEachOther")
	connectRate = flag.Int("connect-rate", 40, "new connections a second meanwhile")
)

// slow is how long a connection takes at least whose first SYN was lost: TCP sends
// it again after a second.
const slow = 900 * time.Millisecond

// arrivals are new connections at a rate, half of them allowed, half forbidden.
type arrivals struct {
	tried, answered, slow, broken atomic.Int64 // allowed ones
	forbidden, passed             atomic.Int64
	worst                         atomic.Int64 // nanoseconds, of an allowed one

	stop context.CancelFunc
	wg   sync.WaitGroup
}

// arrive begins. Nobody remembers what it was told, so each connection asks. The rate
// is kept also where this process gets the CPU late: then several begin at once.
func (l *agentLab) arrive(port uint16) *arrivals {
	ctx, stop := context.WithCancel(context.Background())
	a := &arrivals{stop: stop}
	a.wg.Go(func() {
		start, each := time.Now(), time.Second/time.Duration(*connectRate)
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Until(start.Add(time.Duration(i+1) * each))):
			}
			to := netip.AddrPortFrom(l.server.Addrs()[i/2%2], port)
			if i%2 == 0 {
				a.wg.Go(func() { a.allowed(l.client, to) })
			} else {
				a.wg.Go(func() { a.denied(l.other, to) })
			}
		}
	})
	return a
}

func (a *arrivals) end() {
	a.stop()
	a.wg.Wait()
}

func (a *arrivals) allowed(from *netlab.Host, to netip.AddrPort) {
	a.tried.Add(1)
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), agentPatience)
	defer cancel()
	if err := connect(ctx, from, to); err != nil {
		a.broken.Add(1)
		return
	}
	took := time.Since(start)
	a.answered.Add(1)
	if took > slow {
		a.slow.Add(1)
	}
	raise(&a.worst, took)
}

// raise keeps the longest time.
func raise(longest *atomic.Int64, took time.Duration) {
	for have := longest.Load(); took > time.Duration(have) && !longest.CompareAndSwap(have, int64(took)); {
		have = longest.Load()
	}
}

// conversations are established connections on which something goes to and fro all
// the time. None may break, whatever happens to agents.
type conversations struct {
	t                          *testing.T
	exchanges, broken, longest atomic.Int64 // longest: nanoseconds that one exchange took
	stop                       context.CancelFunc
	wg                         sync.WaitGroup
}

func (e *echoes) converse() *conversations {
	ctx, stop := context.WithCancel(context.Background())
	c := &conversations{t: e.t, stop: stop}
	for _, conn := range e.conns {
		c.wg.Go(func() { c.talk(ctx, conn) })
	}
	e.t.Cleanup(c.end)
	return c
}

func (c *conversations) talk(ctx context.Context, conn net.Conn) {
	for ctx.Err() == nil {
		start := time.Now()
		if err := echo(conn, agentPatience); err != nil {
			c.broken.Add(1)
			c.t.Errorf("established connection to %s: %v", conn.RemoteAddr(), err)
			return
		}
		raise(&c.longest, time.Since(start))
		c.exchanges.Add(1)
		time.Sleep(5 * time.Millisecond)
	}
}

func (c *conversations) end() {
	c.stop()
	c.wg.Wait()
}

func (a *arrivals) denied(from *netlab.Host, to netip.AddrPort) {
	a.forbidden.Add(1)
	ctx, cancel := untilSilence()
	defer cancel()
	if err := connect(ctx, from, to); err == nil {
		a.passed.Add(1)
	}
}

// connect opens a connection, and ends it without leaving anything in the tables of
// the two hosts.
func connect(ctx context.Context, from *netlab.Host, to netip.AddrPort) error {
	c, err := from.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	return c.(*net.TCPConn).SetLinger(0)
}

// following are the ways in which one agent follows another.
var following = []struct {
	name   string
	flags  []string
	closed bool // nothing forbidden may pass at any time
	lossy  bool // new connections are not answered while there is no agent
	next   func(l *agentLab, now *agentProcess, flags []string) *agentProcess
}{
	{"upgrade", []string{"--on-stop=keep-closed"}, true, false, (*agentLab).upgrade},
	{"upgrade-open", []string{"--on-stop=open"}, true, false, (*agentLab).upgrade},
	{"upgrade-bypass", []string{"--on-stop=keep-closed", "--queue-bypass"}, true, false, (*agentLab).upgrade},
	{"restart", []string{"--on-stop=keep-closed"}, true, true, (*agentLab).restart},
	{"restart-bypass", []string{"--on-stop=keep-closed", "--queue-bypass"}, false, false, (*agentLab).restart},
	{"restart-open", []string{"--on-stop=open"}, false, false, (*agentLab).restart},
	{"kill", []string{"--on-stop=keep-closed"}, true, true, (*agentLab).killAndStart},
	{"kill-bypass", []string{"--on-stop=keep-closed", "--queue-bypass"}, false, true, (*agentLab).killAndStart},
}

func (l *agentLab) upgrade(now *agentProcess, flags []string) *agentProcess {
	next := l.agent(append(flags, "--replace")...)
	if code := now.exitCode(); code != exitOK {
		l.t.Errorf("the agent that was replaced ends with exit code %d: %v", code, now.err)
	}
	now.await(0, "another agent has taken over")
	return next
}

func (l *agentLab) restart(now *agentProcess, flags []string) *agentProcess {
	now.terminate()
	return l.agent(flags...)
}

func (l *agentLab) killAndStart(now *agentProcess, flags []string) *agentProcess {
	now.kill()
	return l.agent(flags...)
}

// TestAgentsFollowEachOther, while connections come in: nothing forbidden passes
// where we promise that, no allowed one is refused, established ones go on, and at
// an upgrade not a packet is lost for it.
func TestAgentsFollowEachOther(t *testing.T) {
	for _, f := range following {
		t.Run(f.name, func(t *testing.T) {
			eachIptablesInTurn(t, func(t *testing.T, l *agentLab, backend string) {
				server, err := l.server.ServeTCP(0)
				if err != nil {
					t.Fatal(err)
				}
				l.write("policy.yaml", policyFor("client", "server"))
				flags := append([]string{backend, "--node-name=node-1", "--allow-timeout=0", "--deny-timeout=0"}, f.flags...)
				now := l.agent(flags...)
				live := l.openEchoes(l.client, l.server)
				talking := live.converse()
				a := l.arrive(server.Port)
				for range *turns {
					time.Sleep(500 * time.Millisecond)
					now = f.next(l, now, flags)
				}
				time.Sleep(500 * time.Millisecond)
				a.end()
				talking.end()
				t.Logf("%s: %d turns: allowed %d, broken %d, first packet lost %d, slowest %v; forbidden %d, passed %d; established %d, broken %d, exchanges on them %d, longest %v",
					f.name, *turns, a.tried.Load(), a.broken.Load(), a.slow.Load(), time.Duration(a.worst.Load()).Round(time.Millisecond),
					a.forbidden.Load(), a.passed.Load(), len(live.conns), talking.broken.Load(), talking.exchanges.Load(),
					time.Duration(talking.longest.Load()).Round(time.Millisecond))
				if a.broken.Load() > 0 || a.tried.Load() == 0 {
					t.Errorf("%d of %d allowed connections were broken", a.broken.Load(), a.tried.Load())
				}
				if f.closed && a.passed.Load() > 0 {
					t.Errorf("%d forbidden connections passed", a.passed.Load())
				}
				if now.terminate(); strings.Contains(strings.Join(f.flags, " "), "keep-closed") {
					return
				}
				l.demandNothingLeft("in the end")
			})
		})
	}
}

// eachIptablesInTurn is eachIptables for tests that load the machine.
func eachIptablesInTurn(t *testing.T, test func(t *testing.T, l *agentLab, backend string)) {
	t.Helper()
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) { test(t, newAgentLab(t), "--iptables-backend="+backend) })
	}
}

// TestSecondAgent: without --replace a second agent says why it cannot start, and
// the first goes on.
func TestSecondAgent(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		l.serve(l.server, 80)
		l.write("policy.yaml", policyFor("client", "server"))
		first := l.agent(backend)
		second := l.launch(l.command("agent", "--manifests", l.dir, backend, "--queue-num=9000"))
		second.demandFailure("another agent owns the rules of this network namespace", "--replace")
		l.expect("with one agent", true, l.client, l.server, 80)
		l.expect("with one agent", false, l.other, l.server, 80)
		first.terminate()
		l.demandNothingLeft("in the end")
	})
}

// TestHandoverFails: the agent that is to take over dies half-way, or is told to
// stop; the first one goes on, and follows edits.
func TestHandoverFails(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		l.serve(l.server, 80)
		l.write("policy.yaml", policyFor("client", "server"))
		first := l.agent(backend)
		// What asks for the turn, and never takes it.
		l.inNode("ipset", "create", "netverdict-handover", "hash:net")
		first.await(0, "another agent is taking over")
		l.expect("meanwhile", true, l.client, l.server, 80)
		l.expect("meanwhile", false, l.other, l.server, 80)
		first.await(0, "this one goes on")
		first.after(func() { l.write("policy.yaml", policyFor("other", "server")) }, newState)
		l.expect("afterwards", true, l.other, l.server, 80)
		l.expect("afterwards", false, l.client, l.server, 80)
		first.terminate()
		l.demandNothingLeft("in the end")
	})
}

func (l *agentLab) inNode(name string, args ...string) { l.output(name, args...) }

// output runs a command on the node.
func (l *agentLab) output(name string, args ...string) string {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), agentPatience)
	defer cancel()
	out, err := l.node.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// TestStandby: an agent that was replaced waits, answers status, and goes on when the
// other is gone; asked to stop while it waits, it leaves the other's rules alone.
func TestStandby(t *testing.T) {
	l := newAgentLab(t)
	l.serve(l.server, 80)
	l.write("policy.yaml", policyFor("client", "server"))
	socket := filepath.Join(t.TempDir(), "first.sock")
	flags := []string{"--on-stop=open", "--replace", "--on-replaced=standby", "--metrics-address=127.0.0.1:8052"}
	health := "unix:" + filepath.Join(t.TempDir(), "health.sock")
	first := l.agent(append(flags, "--status-socket="+socket, "--health-address="+health)...)
	second := l.agent(flags...)
	first.await(0, "waits for its end")
	for deadline := time.Now().Add(agentPatience); ; time.Sleep(10 * time.Millisecond) {
		s, err := askStatus(context.Background(), socket)
		if err == nil && !s.Enforcing && s.Problem != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("status in standby: %+v, %v", s, err)
		}
	}
	if code, said, _ := probed("healthz", "--health-address", health); code != exitOK {
		t.Errorf("healthz in standby: exit code %d, %q", code, said)
	}
	if code, said, _ := probed("readyz", "--health-address", health); code != exitNo || !strings.Contains(said, errReplaced.Error()) {
		t.Errorf("readyz in standby: exit code %d, %q", code, said)
	}
	since := first.messages.length()
	second.kill()
	first.await(since, "msg=enforcing")
	l.expect("after the second was killed", true, l.client, l.server, 80)
	l.expect("after the second was killed", false, l.other, l.server, 80)
	third := l.agent(flags...)
	first.await(since, "waits for its end")
	first.terminate()
	l.expect("after the first has left", true, l.client, l.server, 80)
	l.expect("after the first has left", false, l.other, l.server, 80)
	third.terminate()
	l.demandNothingLeft("in the end")
}

// TestUpgradeAfterUpgrade: an agent that has taken over is taken over from.
func TestUpgradeAfterUpgrade(t *testing.T) {
	l := newAgentLab(t)
	l.serve(l.server, 80)
	l.write("policy.yaml", policyFor("client", "server"))
	dir := t.TempDir()
	health := func(i int) string { return fmt.Sprintf("--health-address=unix:%s/health-%d.sock", dir, i) }
	flags := []string{"--replace", "--on-replaced=standby", "--metrics-address=127.0.0.1:8052",
		"--hubble-socket=" + dir + "/hubble.sock", "--status-socket=" + dir + "/agent.sock"}
	old := l.agent(append(flags, health(0))...)
	for i := range 3 {
		next := l.agent(append(flags, health(i+1))...)
		old.await(0, "waits for its end")
		for _, flag := range []string{"metrics-address", "hubble-socket", "status-socket"} {
			next.await(0, "listens on it now.*--"+flag)
		}
		for deadline := time.Now().Add(agentPatience); ; time.Sleep(20 * time.Millisecond) {
			code, said, problem := probed("readyz", health(i))
			if code == exitNo && strings.Contains(said, errReplaced.Error()) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("readyz of agent %d in standby: exit code %d, %q, %q", i, code, said, problem)
			}
		}
		old.terminate()
		l.expect("after an upgrade", true, l.client, l.server, 80)
		l.expect("after an upgrade", false, l.other, l.server, 80)
		old = next
	}
	old.terminate()
	l.demandNothingLeft("in the end")
}

// TestStopDoesNotWaitForTheLock of iptables, which somebody holds: the agent ends
// soon, with an error, and what it enforced stays.
func TestStopDoesNotWaitForTheLock(t *testing.T) {
	l := newAgentLab(t)
	l.write("policy.yaml", policyFor("client", "server"))
	lock, err := os.Create(filepath.Join(t.TempDir(), "xtables.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	cmd := l.command("agent", "--manifests", l.dir, "--iptables-backend=legacy")
	cmd.Env = append(cmd.Env, "XTABLES_LOCKFILE="+lock.Name())
	a := l.launch(cmd)
	a.await(0, "msg=enforcing")
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	l.write("policy.yaml", policyFor("other", "server")) // it is waiting by now, or soon
	time.Sleep(500 * time.Millisecond)
	start := time.Now()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := a.exitCode(); code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
	// Each command may take 4 s now; one that knew of no hurry waits for the lock for 25.
	if took := time.Since(start); took > 22*time.Second {
		t.Errorf("it ended after %v", took)
	}
	if len(l.leftovers()) == 0 {
		t.Error("nothing is left, although the lock was held")
	}
}
