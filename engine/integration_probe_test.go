package engine_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/engine/packet/packettest"
	"github.com/netverdict/netverdict/policy"
)

// isolate is a policy that isolates a pod in one direction and allows nothing.
func isolate(direction networkingv1.PolicyType, pod string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("isolate-%s-%s", pod, direction)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: labelled(pod),
			PolicyTypes: []networkingv1.PolicyType{direction},
		},
	}
}

const (
	ingress = networkingv1.PolicyTypeIngress
	egress  = networkingv1.PolicyTypeEgress
)

func labelled(pod string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"app": pod}}
}

// allow lets one pod reach another on ports, or with everything if none are named.
func allow(from, to string, ports ...networkingv1.NetworkPolicyPort) *networkingv1.NetworkPolicy {
	p := isolate(ingress, to)
	p.Name = from + "-to-" + to
	peer := labelled(from)
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &peer}},
		Ports: ports,
	}}
	return p
}

func port(protocol corev1.Protocol, number int) networkingv1.NetworkPolicyPort {
	n := intstr.FromInt(number)
	return networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &n}
}

// probe tries something that policy allows or denies.
type probe struct {
	name string
	want policy.Verdict
	try  func(context.Context) error
}

// demand makes probes at once. Denied means that nothing comes back, not even an error.
func demand(t *testing.T, probes ...probe) {
	t.Helper()
	var wg sync.WaitGroup
	for _, p := range probes {
		wg.Go(func() {
			ctx, cancel := untilSilence()
			if p.want == policy.Allow {
				ctx, cancel = context.WithTimeout(context.Background(), patience)
			}
			defer cancel()
			err := p.try(ctx)
			switch {
			case p.want == policy.Allow && err != nil:
				t.Errorf("%s: want allow: %v", p.name, err)
			case p.want == policy.Deny && err == nil:
				t.Errorf("%s: want deny, but it was answered", p.name)
			case p.want == policy.Deny && !errors.Is(err, context.DeadlineExceeded):
				t.Errorf("%s: want silence: %v", p.name, err)
			}
		})
	}
	wg.Wait()
}

// untilSilence is a context whose deadline is over when nothing has come for silence,
// in steps: if this process does not get the CPU for a while, what waits for an answer
// gets the rest of the steps to try in.
func untilSilence() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		for range silenceSteps {
			select {
			case <-ctx.Done():
				return
			case <-time.After(silence / silenceSteps):
			}
		}
		cancel(context.DeadlineExceeded)
	}()
	return ctx, func() { cancel(nil) }
}

// families calls f for both addresses of a host.
func families(h *netlab.Host, f func(family string, addr netip.Addr)) {
	f("v4", h.Addr4())
	f("v6", h.Addr6())
}

func name(what string, from, to *netlab.Host, family string) string {
	return fmt.Sprintf("%s %s>%s %s", what, from.Name(), to.Name(), family)
}

// http, udp and ping are probes over both families.
func http(want policy.Verdict, from, to *netlab.Host, port uint16) (probes []probe) {
	families(to, func(family string, a netip.Addr) {
		probes = append(probes, probe{name("HTTP", from, to, family), want, func(ctx context.Context) error {
			return answeredBy(to)(from.HTTPGet(ctx, netip.AddrPortFrom(a, port)))
		}})
	})
	return probes
}

func udp(want policy.Verdict, from, to *netlab.Host, port uint16) (probes []probe) {
	families(to, func(family string, a netip.Addr) {
		probes = append(probes, probe{name("UDP", from, to, family), want, func(ctx context.Context) error {
			r, err := from.UDPExchange(ctx, netip.AddrPortFrom(a, port), []byte("hello"))
			return answeredBy(to)(r.Host, err)
		}})
	})
	return probes
}

func answeredBy(h *netlab.Host) func(string, error) error {
	return func(who string, err error) error {
		if err == nil && who != h.Name() {
			return fmt.Errorf("answered by %s", who)
		}
		return err
	}
}

func ping(want policy.Verdict, from, to *netlab.Host) (probes []probe) {
	families(to, func(family string, a netip.Addr) {
		probes = append(probes, probe{name("ping", from, to, family), want, func(ctx context.Context) error {
			return from.Ping(ctx, a)
		}})
	})
	return probes
}

// sctp probes with an INIT chunk. The kernel here has no SCTP sockets, so what
// arrives at the receiver tells.
func sctp(t *testing.T, want policy.Verdict, from, to *netlab.Host, port uint16) (probes []probe) {
	families(to, func(family string, a netip.Addr) {
		packet := sctpInit(t, source(from, a), a, port)
		probes = append(probes, probe{name("SCTP", from, to, family), want, func(ctx context.Context) error {
			return arrives(ctx, from, to, a, packet)
		}})
	})
	return probes
}

// arrives sends a whole packet and waits until it is received unchanged behind
// the IP header.
func arrives(ctx context.Context, from, to *netlab.Host, dst netip.Addr, packet []byte) error {
	capture, err := to.Capture(sameContent(packet))
	if err != nil {
		return err
	}
	defer capture.Close()
	if err := from.SendIP(packet, dst); err != nil {
		return err
	}
	_, err = capture.Next(ctx)
	return err
}

// sameContent recognizes a packet by its source and what follows its IP header.
func sameContent(sent []byte) func([]byte) bool {
	return func(p []byte) bool {
		if len(p) != len(sent) || p[0]>>4 != sent[0]>>4 {
			return false
		}
		if p[0]>>4 == 4 {
			return bytes.Equal(p[12:], sent[12:])
		}
		return bytes.Equal(p[8:], sent[8:])
	}
}

// source is the host's address of the family of dst.
func source(h *netlab.Host, dst netip.Addr) netip.Addr {
	if dst.Is4() {
		return h.Addr4()
	}
	return h.Addr6()
}

func sctpInit(t *testing.T, src, dst netip.Addr, port uint16) []byte {
	return packettest.Build(t, src, dst, layers.IPProtocolSCTP,
		&layers.SCTP{SrcPort: 40000, DstPort: layers.SCTPPort(port)},
		&layers.SCTPInit{
			SCTPChunk:   layers.SCTPChunk{Type: layers.SCTPChunkTypeInit, Length: 20},
			InitiateTag: 0x1234, AdvertisedReceiverWindowCredit: 65535, OutboundStreams: 1, InboundStreams: 1, InitialTSN: 1,
		})
}

func tcpSYN(t *testing.T, src, dst netip.Addr, from, to uint16) []byte {
	tcp := &layers.TCP{SrcPort: layers.TCPPort(from), DstPort: layers.TCPPort(to), SYN: true, Seq: 77, Window: 64240}
	return packettest.Build(t, src, dst, layers.IPProtocolTCP, tcp)
}

func udpDatagram(t *testing.T, src, dst netip.Addr, from, to uint16, payload []byte) []byte {
	udp := &layers.UDP{SrcPort: layers.UDPPort(from), DstPort: layers.UDPPort(to)}
	return packettest.Build(t, src, dst, layers.IPProtocolUDP, udp, gopacket.Payload(payload))
}

// transportAt is where the transport header of a packet without options begins.
func transportAt(p []byte) int {
	if p[0]>>4 == 4 {
		return 20
	}
	return 40
}

// toPort recognizes packets by protocol and destination port.
func toPort(protocol policy.Protocol, port uint16) func([]byte) bool {
	return func(p []byte) bool {
		at := transportAt(p)
		next := p[6]
		if at == 20 {
			next = p[9]
		}
		return next == byte(protocol) && len(p) >= at+4 && binary.BigEndian.Uint16(p[at+2:]) == port
	}
}
