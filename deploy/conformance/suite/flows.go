//go:build linux

package suite

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"
)

// echoPort is a server of the test's own, which answers as long as one asks.
const echoPort = 7

// echo serves on a pod.
func (t *T) echo(p *peer) {
	s, err := p.host.ServeTCP(echoPort)
	t.must(err)
	t.atEnd(s.Close)
}

// live is a connection that is kept.
type live struct {
	what string
	conn net.Conn
}

func (t *T) dial(from, to *peer, addr netip.Addr) *live {
	l := &live{what: fmt.Sprintf("live connection %s → %s (%s)", from.name, to.name, addr)}
	t.passes(l.what, func(ctx context.Context) error {
		if l.conn != nil {
			l.conn.Close()
		}
		var err error
		l.conn, err = from.host.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, echoPort).String())
		return err
	})
	t.atEnd(l.conn.Close)
	return l
}

// talk sends a byte and wants it back.
func (l *live) talk(patience time.Duration) error {
	if err := l.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := l.conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := l.conn.Read(make([]byte, 64))
	return err
}

// cut demands that a connection stops carrying, soon and for good.
func (t *T) cut(l *live) {
	patience := t.untilDenied()
	deadline := time.Now().Add(patience)
	for {
		err := l.talk(3 * time.Second)
		if errors.Is(err, os.ErrDeadlineExceeded) || isReset(err) {
			return
		}
		t.must(err)
		if time.Now().After(deadline) {
			t.fail("%s still %w after %v", l.what, ErrPasses, patience)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !op.Timeout()
}

func (t *T) lives(l *live) {
	if err := l.talk(10 * time.Second); err != nil {
		t.fail("%s: %w", l.what, err)
	}
}

func establishedFlows(t *T) {
	ns := t.namespace("a")
	server := t.pod(ns, pod{name: "server", node: 1, labels: "app=server"})
	t.echo(server)
	friend := t.pod(ns, pod{name: "friend", node: 2, labels: "app=friend"})
	stranger := t.pod(ns, pod{name: "stranger", node: 2})
	neighbour := t.pod(ns, pod{name: "neighbour", node: 1})
	var kept, lost []*live
	for _, addr := range server.addrs {
		kept = append(kept, t.dial(friend, server, addr))
		lost = append(lost, t.dial(stranger, server, addr), t.dial(neighbour, server, addr))
	}
	for _, l := range append(kept, lost...) {
		t.lives(l)
	}
	t.policy(ns, "friends", fromFriends)
	for _, l := range lost {
		t.cut(l)
	}
	for _, l := range kept {
		t.lives(l)
	}
	// Egress of the client's node, too.
	t.policy(ns, "caged", `
podSelector: {matchLabels: {app: friend}}
policyTypes: [Egress]`)
	for _, l := range kept {
		t.cut(l)
	}
}

func icmp(t *T) {
	ns := t.namespace("a")
	server := t.pod(ns, pod{name: "server", node: 1, labels: "app=server", tcp: []int32{80}, udp: []int32{80}})
	client := t.pod(ns, pod{name: "client", node: 2})
	echo := func(demand func(string, attempt)) {
		pairs(client, server, func(family string, _, dst netip.Addr) { demand(family+" echo", ping(client.host, dst)) })
	}
	echo(t.passes)
	t.policy(ns, "ports", `
podSelector: {matchLabels: {app: server}}
ingress:
- ports: [{protocol: TCP, port: 80}, {protocol: UDP, port: 80, endPort: 81}]`)
	echo(t.blocked)
	t.udpPasses(client, server, 80)
	// Nobody listens on 81: the error belongs to a flow that is allowed.
	pairs(client, server, func(family string, _, dst netip.Addr) {
		t.passes(family+" port unreachable of an allowed flow", refused(client, dst, 81))
	})
	t.policy(ns, "all", `
podSelector: {matchLabels: {app: server}}
ingress:
- from: [{podSelector: {}}]`)
	echo(t.passes)
}

// refused sends a datagram to a port without a server, and wants to be told.
func refused(from *peer, to netip.Addr, port uint16) attempt {
	return func(ctx context.Context) error {
		err := udp(from.host, to, port)(ctx)
		if err == nil {
			return errors.New("somebody answers on a port without a server")
		}
		return verdict(err)
	}
}

func self(t *T) {
	ns := t.namespace("a")
	t.policy(ns, "deny-all", `
podSelector: {}
policyTypes: [Ingress, Egress]`)
	pod1 := t.pod(ns, pod{name: "server", node: 1, labels: "app=server", tcp: []int32{8080}})
	other := t.pod(ns, pod{name: "other", node: 1, tcp: []int32{8080}})
	service := t.service(ns, "server", "app=server", 80, intstr.FromInt32(8080))
	t.tcpBlocked(pod1, other, 8080)
	t.tcpPasses(pod1, pod1, 8080)
	for _, addr := range service {
		t.passes(fmt.Sprintf("TCP server → its own Service %s", addr), tcp(pod1.host, addr, 80))
		t.blocked(fmt.Sprintf("TCP other → Service %s", addr), tcp(other.host, addr, 80))
	}
}

// agentRestart takes the agents away and brings them back. install.yaml keeps the
// rules closed meanwhile: what was not decided waits, what was denied stays denied.
func agentRestart(t *T) {
	ns := t.namespace("a")
	server := t.pod(ns, pod{name: "server", node: 1, labels: "app=server", tcp: []int32{80}})
	t.echo(server)
	friend := t.pod(ns, pod{name: "friend", node: 2, labels: "app=friend"})
	stranger := t.pod(ns, pod{name: "stranger", node: 2})
	t.policy(ns, "friends", fromFriends)
	t.tcpPasses(friend, server, 80)
	t.tcpBlocked(stranger, server, 80)
	var kept []*live
	for _, addr := range server.addrs {
		kept = append(kept, t.dial(friend, server, addr))
	}
	for _, n := range t.rig.Nodes {
		t.must(n.StopAgent())
	}
	t.tcpStaysBlocked(stranger, server, 80)
	for _, l := range kept {
		t.lives(l)
	}
	for _, n := range t.rig.Nodes {
		t.must(n.Restart(t.ctx))
	}
	for _, l := range kept {
		t.lives(l)
	}
	t.tcpPasses(friend, server, 80)
	t.tcpStaysBlocked(stranger, server, 80)
}
