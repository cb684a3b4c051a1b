package engine

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/policy"
)

// The scene: three pods on this node, all in one namespace. The late pod has an
// address of the node's range, but is known only to trees that are told so.
//
//	web  10.1.0.1  fd00:1::1     db  10.1.0.2  fd00:1::2
//	ops  10.1.0.3  fd00:1::3   late  10.1.0.9  fd00:1::9
var (
	web4, web6   = netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")
	db4, db6     = netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:1::2")
	ops4, ops6   = netip.MustParseAddr("10.1.0.3"), netip.MustParseAddr("fd00:1::3")
	late4, late6 = netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("fd00:1::9")
)

// Ports that webToDB opens.
const (
	tcpPort  = 5432
	udpPort  = 53
	sctpPort = 3868
)

func scenePod(name string, addrs ...netip.Addr) *policy.Pod {
	return &policy.Pod{
		NamespacedName: policy.NamespacedName{Namespace: "shop", Name: name},
		Labels:         map[string]string{"app": name},
		NodeName:       "node",
		Addrs:          addrs,
		Phase:          policy.PhaseRunning,
	}
}

func apps(name string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

// isolate is a policy that isolates an app for ingress and allows nothing.
func isolate(app string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "isolate-" + app},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: apps(app),
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		},
	}
}

// allow lets one app reach another on the ports of the scene; ICMP is not among them.
func allow(from, to string) *networkingv1.NetworkPolicy {
	p := isolate(to)
	p.Name = from + "-to-" + to
	peer := apps(from)
	rule := networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &peer}}}
	for protocol, number := range map[corev1.Protocol]int{corev1.ProtocolTCP: tcpPort, corev1.ProtocolUDP: udpPort, corev1.ProtocolSCTP: sctpPort} {
		port := intstr.FromInt(number)
		rule.Ports = append(rule.Ports, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port})
	}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{rule}
	return p
}

func sceneSnapshot(policies ...*networkingv1.NetworkPolicy) *policy.Snapshot {
	return &policy.Snapshot{
		Pods:     []*policy.Pod{scenePod("web", web4, web6), scenePod("db", db4, db6), scenePod("ops", ops4, ops6)},
		Policies: policies,
		LocalPodCIDRs: []netip.Prefix{
			netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64"),
		},
	}
}

func compile(tb testing.TB, s *policy.Snapshot) *policy.Tree {
	tb.Helper()
	tree, err := policy.Compile(s)
	if err != nil {
		tb.Fatal(err)
	}
	return tree
}

// sceneTree is the tree of the scene with some policies.
func sceneTree(tb testing.TB, policies ...*networkingv1.NetworkPolicy) *policy.Tree {
	tb.Helper()
	return compile(tb, sceneSnapshot(policies...))
}

// auditedTree is the tree of the scene where nothing is enforced.
func auditedTree(tb testing.TB, policies ...*networkingv1.NetworkPolicy) *policy.Tree {
	tb.Helper()
	s := sceneSnapshot(policies...)
	s.Namespaces = []*policy.Namespace{{Name: "shop", Audit: true}}
	return compile(tb, s)
}

// lateTree is a tree in which the late pod is known; web may reach it.
func lateTree(tb testing.TB) *policy.Tree {
	tb.Helper()
	s := sceneSnapshot(allow("web", "late"))
	s.Pods = append(s.Pods, scenePod("late", late4, late6))
	return compile(tb, s)
}

const srcPort = 40001

// packetOf is a whole packet of a protocol, from srcPort.
func packetOf(tb testing.TB, src, dst netip.Addr, protocol policy.Protocol, port uint16) []byte {
	tb.Helper()
	return packetFrom(tb, src, dst, protocol, srcPort, port)
}

func packetFrom(tb testing.TB, src, dst netip.Addr, protocol policy.Protocol, from, to uint16) []byte {
	tb.Helper()
	var ip gopacket.SerializableLayer = &layers.IPv4{
		Version: 4, TTL: 64, Protocol: layers.IPProtocol(protocol), SrcIP: src.AsSlice(), DstIP: dst.AsSlice(),
	}
	if src.Is6() {
		ip = &layers.IPv6{
			Version: 6, HopLimit: 64, NextHeader: layers.IPProtocol(protocol), SrcIP: src.AsSlice(), DstIP: dst.AsSlice(),
		}
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, ip, transportOf(protocol, from, to), gopacket.Payload("hello"))
	if err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func transportOf(protocol policy.Protocol, from, to uint16) gopacket.SerializableLayer {
	switch protocol {
	case policy.TCP:
		return &layers.TCP{SrcPort: layers.TCPPort(from), DstPort: layers.TCPPort(to), SYN: true}
	case policy.UDP:
		return &layers.UDP{SrcPort: layers.UDPPort(from), DstPort: layers.UDPPort(to)}
	case policy.SCTP:
		return &layers.SCTP{SrcPort: layers.SCTPPort(from), DstPort: layers.SCTPPort(to)}
	case policy.ICMP:
		return &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0)}
	case policy.ICMPv6:
		return &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}
	}
	return gopacket.Payload(nil)
}

// truncated is a packet that ends, by its own account, inside its TCP header.
func truncated(tb testing.TB) []byte {
	b := packetOf(tb, web4, db4, policy.TCP, tcpPort)[:32]
	b[2], b[3] = 0, 32
	return b
}
