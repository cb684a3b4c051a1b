package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/bench/netlab"
)

// `make promises` sets what we promise. Otherwise the machine may be slow, and busy with
// other tests: some connection must get through.
var (
	floodTime = flag.Duration("flood-time", 2*time.Second, "how long TestFlood measures, behind its first second")
	floodCPU  = flag.Float64("flood-cpu", 0, "per cent of a core that the agent may use meanwhile; 0: any")
	floodKeep = flag.Float64("flood-keep", 0, "per cent of its connections that another pod must keep meanwhile, and none may fail; 0: any")
)

// flood is a sender of SYNs as fast as it can, in a pod.
type flood struct {
	sent atomic.Int64
	stop atomic.Bool
	done chan error
}

// startFlood sends to ports and addresses that next chooses, for the i-th packet.
func startFlood(from *netlab.Host, next func(i uint32) netip.AddrPort) *flood {
	f := &flood{done: make(chan error, 1)}
	go func() { f.done <- from.Do(func() error { return f.run(from.Addr4(), next) }) }()
	return f
}

func (f *flood) run(src netip.Addr, next func(uint32) netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := uint32(0); !f.stop.Load(); i++ {
		to := next(i)
		sa := &unix.SockaddrInet4{Addr: to.Addr().As4()}
		if err := unix.Sendto(fd, syn4(src, to, uint16(i)), 0, sa); err != nil && err != unix.ENOBUFS {
			return err
		}
		f.sent.Add(1)
	}
	return nil
}

func (f *flood) end() error {
	f.stop.Store(true)
	return <-f.done
}

// syn4 is a TCP SYN; the kernel fills in the checksum of the IP header.
func syn4(src netip.Addr, to netip.AddrPort, sport uint16) []byte {
	p := make([]byte, 40)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(p[2:], 40)
	s, d := src.As4(), to.Addr().As4()
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	binary.BigEndian.PutUint16(p[20:], sport|1024)
	binary.BigEndian.PutUint16(p[22:], to.Port())
	p[32], p[33] = 5<<4, 2
	binary.BigEndian.PutUint16(p[34:], 64240)
	var sum uint32
	pseudo := append(append(append([]byte{}, p[12:20]...), 0, unix.IPPROTO_TCP, 0, 20), p[20:40]...)
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[36:], ^uint16(sum))
	return p
}

// floods are what a pod may try that policy denies.
var floods = []struct {
	name    string
	flags   []string
	promise bool // what it may cost
	next    func(to netip.Addr) func(uint32) netip.AddrPort
}{
	{"1000-tuples", nil, true, func(to netip.Addr) func(uint32) netip.AddrPort {
		return func(i uint32) netip.AddrPort { return netip.AddrPortFrom(to, uint16(1000+i%1000)) }
	}},
	{"1M-tuples", nil, true, millionTuples},
	// Without a limit the deny set fills up, and what it does not take is denied again
	// and again in user space.
	{"1M-tuples-no-limit", []string{"--ask-limit=0"}, false, millionTuples},
	{"random-tuples", nil, true, func(netip.Addr) func(uint32) netip.AddrPort {
		return func(uint32) netip.AddrPort {
			r := rand.Uint32()
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 8 + byte(r>>24&7), byte(r >> 16)}), uint16(r))
		}
	}},
}

// millionTuples are 16 addresses × 64 Ki ports, each again and again.
func millionTuples(netip.Addr) func(uint32) netip.AddrPort {
	return func(i uint32) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 9, byte(i >> 16 & 15)}), uint16(i))
	}
}

// TestFlood: one pod sends SYNs that are denied as fast as it can. The agent has
// little to do with it, and another pod's connections, of which each is asked about,
// go on.
func TestFlood(t *testing.T) {
	for _, f := range floods {
		t.Run(f.name, func(t *testing.T) {
			eachIptablesInTurn(t, func(t *testing.T, l *agentLab, backend string) {
				server, err := l.server.ServeTCP(0)
				if err != nil {
					t.Fatal(err)
				}
				l.write("policy.yaml", policyFor("client", "server")+denyEgress("other"))
				l.inNode("ip", "route", "add", "10.1.8.0/21", "via", l.server.Addr4().String()) // where the flood would go
				// Allowed verdicts are not remembered: each connection asks.
				a := l.agent(append(f.flags, backend, "--node-name=node-1", "--allow-timeout=0", "--flow-log=none")...)
				quiet := l.connectFor(*floodTime, server.Port)
				flood := startFlood(l.other, f.next(l.server.Addr4()))
				time.Sleep(time.Second)
				before, start, sent := cpuTime(t, a), time.Now(), flood.sent.Load()
				during := l.connectFor(*floodTime, server.Port)
				took := time.Since(start)
				cpu := 100 * float64(cpuTime(t, a)-before) / float64(took)
				rate := float64(flood.sent.Load()-sent) / took.Seconds()
				if err := flood.end(); err != nil {
					t.Fatal(err)
				}
				kept := 100 * float64(during.prompt) / float64(max(quiet.prompt, 1))
				t.Logf("flood of %s, %s: %.0f SYN/s denied; agent %.1f%% of a core; another pod's connections answered promptly: %d of %d, %d of %d without the flood (%.0f%%); deny set %s entries",
					f.name, backend, rate, cpu, during.prompt, during.tried, quiet.prompt, quiet.tried, kept, l.entries("netverdict4-deny-b"))
				if during.failed == during.tried {
					t.Errorf("none of another pod's %d connections is answered", during.tried)
				}
				if f.promise && *floodCPU > 0 && cpu > *floodCPU {
					t.Errorf("the agent used %.1f%% of a core, want at most %.1f%%", cpu, *floodCPU)
				}
				if f.promise && *floodKeep > 0 && (kept < *floodKeep || during.failed > 0) {
					t.Errorf("another pod keeps %.0f%% of its connections, want %.0f%%; %d failed", kept, *floodKeep, during.failed)
				}
				a.terminate()
				l.demandNothingLeft("in the end")
			})
		})
	}
}

func denyEgress(app string) string {
	return fmt.Sprintf(`---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: no-egress-%[1]s, namespace: shop}
spec:
  podSelector: {matchLabels: {app: %[1]s}}
  policyTypes: [Egress]
`, app)
}

// connected counts connections of the client to the server.
type connected struct{ tried, prompt, failed int }

// connectFor opens connections at the rate of -connect-rate.
func (l *agentLab) connectFor(d time.Duration, port uint16) (c connected) {
	a := l.arrive(port)
	time.Sleep(d)
	a.end()
	answered, slow := int(a.answered.Load()), int(a.slow.Load())
	return connected{int(a.tried.Load()), answered - slow, int(a.broken.Load())}
}

// cpuTime is what the agent's process has used so far, verdicts that it wrote and
// the way of their packets included.
func cpuTime(t *testing.T, a *agentProcess) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(after) // from the third on, proc_pid_stat(5)
	var ticks int
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ
}

// entries is how many there are in a set.
func (l *agentLab) entries(set string) string {
	for line := range strings.Lines(l.output("ipset", "list", "-t", set)) {
		if n, ok := strings.CutPrefix(line, "Number of entries: "); ok {
			return strings.TrimSpace(n)
		}
	}
	return "unknown"
}
