package hook

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// lab is a client and a server with a router between them, which has the hook
// and a judge. The client's addresses are pod4 and pod6.
type lab struct {
	t                      *testing.T
	client, router, server *namespace
	hook                   *Hook
	judge                  *judge
}

var (
	server4 = netip.MustParseAddr("10.2.0.2")
	server6 = netip.MustParseAddr("fd02::2")
)

const serverPort = 9000

// judge answers every packet in the queue with the same verdict.
type judge struct {
	marks   Marks
	verdict atomic.Uint32
	epoch   atomic.Uint32
	asked   atomic.Int64
	gate    atomic.Pointer[chan struct{}] // closed when it may answer; nil: at once
}

func (j *judge) Handle(p *queue.Packet) queue.Answer {
	j.asked.Add(1)
	if gate := j.gate.Load(); gate != nil {
		<-*gate
	}
	mark := j.marks.Verdict(p.Mark, policy.Verdict(j.verdict.Load()), j.epoch.Load())
	return queue.Answer{Action: queue.Repeat, SetMark: true, Mark: mark}
}

func (j *judge) BatchEnd() {}

// says sets the verdict and the epoch of what follows, and forgets the count.
func (j *judge) says(v policy.Verdict, epoch uint32) {
	j.verdict.Store(uint32(v))
	j.epoch.Store(epoch)
	j.asked.Store(0)
}

func newLab(t *testing.T, cfg Config) *lab {
	l := &lab{t: t, client: newNamespace(t), router: newNamespace(t), server: newNamespace(t)}
	l.link(l.client, "client", "10.1.0", "fd01")
	l.link(l.server, "server", "10.2.0", "fd02")
	l.router.run(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	l.hook = l.router.open(t, cfg)
	l.judge = &judge{marks: l.hook.Marks()}
	l.startJudge(cfg.QueueNum)
	if err := l.hook.Install(Policed{Egress: []netip.Addr{pod4, pod6}}); err != nil {
		t.Fatal(err)
	}
	l.judge.says(policy.Allow, l.hook.Epoch())
	return l
}

// link joins a host to the router; the router has the address that ends in 1.
func (l *lab) link(host *namespace, name, net4, net6 string) {
	l.router.in(l.t, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name},
			PeerName:  "eth0", PeerNamespace: netlink.NsFd(host.file.Fd()),
		})
	})
	l.router.run(l.t, fmt.Sprintf("ip addr add %s.1/24 dev %s; ip addr add %s::1/64 dev %s nodad; ip link set %s up", net4, name, net6, name, name))
	host.run(l.t, fmt.Sprintf("ip addr add %s.2/24 dev eth0; ip addr add %s::2/64 dev eth0 nodad; ip link set eth0 up; ip route add default via %s.1; ip route add default via %s::1",
		net4, net6, net4, net6))
}

func (l *lab) startJudge(num uint16) {
	var q *queue.Queue
	l.router.in(l.t, func() (err error) {
		q, err = queue.Open(queue.Config{Num: num})
		return err
	})
	done := make(chan error, 1)
	go func() { done <- q.Run(context.Background(), l.judge) }()
	l.t.Cleanup(func() {
		q.Close()
		if err := <-done; err != nil {
			l.t.Errorf("queue: %v", err)
		}
	})
}

// udp opens a UDP socket in a namespace.
func (l *lab) udp(n *namespace, at string) *net.UDPConn {
	l.t.Helper()
	var conn *net.UDPConn
	n.in(l.t, func() error {
		addr, err := net.ResolveUDPAddr("udp", at)
		if err != nil {
			return err
		}
		conn, err = net.ListenUDP("udp", addr)
		return err
	})
	l.t.Cleanup(func() { conn.Close() })
	return conn
}

// expectArrival sends a datagram to an address, where it is received or not.
func (l *lab) expectArrival(when string, from, to *net.UDPConn, at netip.AddrPort, want bool) {
	l.t.Helper()
	if _, err := from.WriteToUDPAddrPort([]byte("hello"), at); err != nil && !refused(err) {
		l.t.Fatal(err)
	}
	l.expect(when, l.received(to, want), want)
}

// patience bounds every wait for something that must happen, on a machine that is slow
// and busy; silence is how long nothing must come to be called dropped.
const (
	patience = time.Minute
	silence  = 400 * time.Millisecond
)

// received reports whether a datagram comes, which is waited for longer if it should.
func (l *lab) received(at *net.UDPConn, expected bool) bool {
	limit := silence
	if expected {
		limit = patience
	}
	at.SetReadDeadline(time.Now().Add(limit))
	_, _, err := at.ReadFromUDPAddrPort(make([]byte, 16))
	return err == nil
}

// eventually waits for what is about to happen, and reports whether it has.
func eventually(cond func() bool) bool {
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// refused is an ICMP error about an earlier datagram.
func refused(err error) bool { return strings.Contains(err.Error(), "connection refused") }

func port(c *net.UDPConn) uint16 { return c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// count is how many packets a kind of rule has matched.
func (l *lab) count(p Purpose) uint64 {
	l.t.Helper()
	c, err := l.hook.Counters()
	if err != nil {
		l.t.Fatal(err)
	}
	return c[p].Packets
}

func (l *lab) expectAsked(when string, want int64) {
	l.t.Helper()
	eventually(func() bool { return l.judge.asked.Load() >= want })
	if got := l.judge.asked.Load(); got != want {
		l.t.Errorf("%s: asked about %d packets, want %d", when, got, want)
	}
}

func (l *lab) expect(when string, got, want bool) {
	l.t.Helper()
	if got != want {
		l.t.Errorf("%s: arrives %v, want %v\n%s", when, got, want, l.router.run(l.t, "conntrack -L 2>&1; ipset list 2>&1"))
	}
}

func (l *lab) switchTo(revokes, adds bool) {
	l.t.Helper()
	if err := l.hook.Switch(revokes, adds); err != nil {
		l.t.Fatal(err)
	}
	if err := l.hook.Finish(); err != nil {
		l.t.Fatal(err)
	}
}
