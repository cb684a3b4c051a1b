package engine_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/netverdict/netverdict/bench/netlab"
)

// TestDNSPair sends what a resolver sends, A and AAAA from one socket without waiting,
// through a Service with one backend and with two, and wants both answers every
// time: also when every first packet visits user space, so that both queries are in
// the queue together (https://github.com/kubernetes-sigs/kind/issues/3713).
func TestDNSPair(t *testing.T) {
	for name, remembers := range map[string]time.Duration{"every pair is asked about": 0, "kinds are remembered": time.Minute} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, n *network) { n.dnsPairs(remembers) })
		})
	}
}

const dnsRounds = 150

func (n *network) dnsPairs(remembers time.Duration) {
	n.serve(53)
	dns := port(corev1.ProtocolUDP, 53)
	n.startWith(func(o *options) { o.hook.AllowTimeout = remembers }, allow("client", "server", dns), allow("client", "other", dns))
	targets := n.dnsServices()
	for _, to := range targets {
		for round := range dnsRounds {
			if err := dnsPair(n.client, to, round); err != nil {
				n.t.Errorf("%v, round %d of %d: %v", to, round, dnsRounds, err)
				return
			}
		}
	}
	pairs := uint64(len(targets) * dnsRounds)
	n.t.Logf("%d pairs of queries, all answered; user space saw %d packets", pairs, n.queued())
	if remembers == 0 && n.queued() <= pairs {
		n.t.Errorf("user space saw %d packets of %d pairs: never were both in the queue", n.queued(), pairs)
	}
	if remembers != 0 && n.queued() > pairs/4 {
		n.t.Errorf("user space saw %d packets of %d pairs, though kinds are remembered", n.queued(), pairs)
	}
}

// dnsServices are of both families, with one backend and with two.
func (n *network) dnsServices() (vips []netip.AddrPort) {
	n.t.Helper()
	for i, hosts := range [][]*netlab.Host{{n.server}, {n.server, n.other}} {
		for _, six := range []bool{false, true} {
			vip := netip.MustParseAddr(fmt.Sprintf("10.96.0.%d", 53+i))
			if six {
				vip = netip.MustParseAddr(fmt.Sprintf("fd00:96::%d", 53+i))
			}
			var backends []netip.AddrPort
			for _, h := range hosts {
				backends = append(backends, netip.AddrPortFrom(source(h, vip), 53))
			}
			if _, err := n.node.AddService(vip, 53, "udp", backends...); err != nil {
				n.t.Fatal(err)
			}
			vips = append(vips, netip.AddrPortFrom(vip, 53))
		}
	}
	return vips
}

// dnsPair sends two queries from a new socket and takes both answers, in any order.
func dnsPair(from *netlab.Host, to netip.AddrPort, round int) error {
	c, err := from.ListenPacket("udp", netip.AddrPortFrom(source(from, to.Addr()), 0).String())
	if err != nil {
		return err
	}
	defer c.Close()
	queries := []string{fmt.Sprintf("A %d", round), fmt.Sprintf("AAAA %d", round)}
	var sending sync.WaitGroup
	errs := make([]error, len(queries))
	for i, q := range queries {
		sending.Go(func() { _, errs[i] = c.WriteTo([]byte(q), net.UDPAddrFromAddrPort(to)) })
	}
	sending.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	buf := make([]byte, 512)
	for len(queries) > 0 {
		size, who, err := c.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("no answer to %q: %w", queries, err)
		}
		if got := who.(*net.UDPAddr).AddrPort(); netip.AddrPortFrom(got.Addr().Unmap(), got.Port()) != to {
			return fmt.Errorf("answered by %v", who)
		}
		_, echo, _ := strings.Cut(string(buf[:size]), "\n")
		at := slices.Index(queries, echo)
		if at < 0 {
			return fmt.Errorf("answered %q, asked %q", buf[:size], queries)
		}
		queries = slices.Delete(queries, at, at+1)
	}
	return nil
}
