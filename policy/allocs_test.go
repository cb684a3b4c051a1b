package policy_test

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/policy"
)

// answer is what TestDecideAllocatesNothing checks of a decision, so that it
// measures the paths that it names.
type answer struct {
	Verdict   policy.Verdict
	Direction policy.Direction
	Reason    policy.Reason
}

// Every way through Decide, for every protocol and both families, leaves the
// heap alone: it runs for every first packet of a connection.
func TestDecideAllocatesNothing(t *testing.T) {
	tree := compile(t, smallCluster())
	byPolicyIn := answer{policy.Allow, policy.Ingress, policy.ReasonPolicy}
	byPolicyOut := answer{policy.Allow, policy.Egress, policy.ReasonPolicy}
	denyIn := answer{policy.Deny, policy.Ingress, policy.ReasonDefaultDeny}
	denyOut := answer{policy.Deny, policy.Egress, policy.ReasonDefaultDeny}
	for _, c := range []struct {
		src, dst string
		port     uint16
		want     answer
		noPorts  answer // want of protocols without ports
	}{
		{"monitor", "server", 1, byPolicyIn, byPolicyIn},
		{"client", "server", 80, byPolicyIn, denyOut},
		{"client", "server", 85, byPolicyIn, denyOut}, // inside the port range
		{"client", "server", 91, denyOut, denyOut},    // beyond it
		{"client", "free", 80, denyOut, denyOut},
		{"free", "server", 80, denyIn, denyIn},
		{"monitor", "block", 80, byPolicyOut, byPolicyOut},
		{"monitor", "except", 80, denyOut, denyOut},
		{"monitor", "outside", 80, denyOut, denyOut},
		{"outside", "server", 80, denyIn, denyIn},
		{"client", "remote", 80, denyOut, denyOut},
		{"remote", "server", 80, denyIn, denyIn},
		{"free", "remote", 80, answer{policy.Allow, policy.Egress, policy.ReasonNoPolicy}, answer{policy.Allow, policy.Egress, policy.ReasonNoPolicy}},
		{"outside", "free", 80, answer{policy.Allow, policy.Ingress, policy.ReasonNoPolicy}, answer{policy.Allow, policy.Ingress, policy.ReasonNoPolicy}},
		{"node", "server", 80, answer{policy.Allow, policy.Ingress, policy.ReasonNodeTraffic}, answer{policy.Allow, policy.Ingress, policy.ReasonNodeTraffic}},
		{"server", "server", 80, answer{policy.Allow, policy.Ingress, policy.ReasonSelf}, answer{policy.Allow, policy.Ingress, policy.ReasonSelf}},
		{"unknown", "free", 80, answer{policy.Deny, policy.Egress, policy.ReasonUnknownPod}, answer{policy.Deny, policy.Egress, policy.ReasonUnknownPod}},
		{"remote", "block", 80, answer{policy.Allow, policy.Ingress, policy.ReasonExternal}, answer{policy.Allow, policy.Ingress, policy.ReasonExternal}},
	} {
		for family := range 2 {
			src, dst := places[c.src][family], places[c.dst][family]
			for _, p := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, policy.ICMP, policy.ICMPv6, 47} {
				want := c.want
				if !p.HasPorts() {
					want = c.noPorts
				}
				t.Run(fmt.Sprintf("%s/%s-to-%s:%d/IPv%d", p, c.src, c.dst, c.port, 4+2*family), func(t *testing.T) {
					measureDecide(t, tree, src, dst, p, c.port, want)
				})
			}
		}
	}
}

func measureDecide(t *testing.T, tree *policy.Tree, src, dst netip.Addr, p policy.Protocol, port uint16, want answer) {
	var d policy.Decision
	allocs := testing.AllocsPerRun(100, func() { d = tree.Decide(src, dst, p, port) })
	if got := (answer{d.Verdict, d.Direction, d.Outcome().Reason}); got != want {
		t.Errorf("decided %v, want %v", got, want)
	}
	if allocs != 0 {
		t.Errorf("%v allocations per decision", allocs)
	}
}

// places are the ends of connections, by family: IPv4, IPv6.
var places = map[string][]netip.Addr{
	"client":  ends("10.0.0.1", "fd00::1"),
	"server":  ends("10.0.0.2", "fd00::2"),
	"monitor": ends("10.0.0.3", "fd00::3"),
	"free":    ends("10.0.0.4", "fd00::4"),
	"remote":  ends("10.0.1.1", "fd00:1::1"),
	"unknown": ends("10.0.0.99", "fd00::99"),
	"node":    ends("192.168.0.1", "fd00:92::1"),
	"block":   ends("203.0.113.1", "2001:db8::1"),
	"except":  ends("203.0.113.200", "2001:db8:ffff::1"),
	"outside": ends("198.51.100.1", "2001:db9::1"),
}

func ends(v4, v6 string) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
}

// smallCluster has a pod for each way to be judged: client and server speak on
// ports 80–90, monitor reaches server and a block of addresses on every port,
// nothing isolates free, and remote is on another node.
func smallCluster() *policy.Snapshot {
	s := &policy.Snapshot{
		Nodes: []*policy.Node{{Name: "here", Addrs: places["node"]}},
		Local: func(p *policy.Pod) bool { return p.NodeName == "here" },
		LocalPodCIDRs: []netip.Prefix{
			netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64"),
		},
		Policies: []*networkingv1.NetworkPolicy{
			egress("client", networkingv1.NetworkPolicyEgressRule{To: pods("server"), Ports: ports(80, 90)}),
			egress("monitor", networkingv1.NetworkPolicyEgressRule{To: append(pods("server"),
				block("203.0.113.0/24", "203.0.113.128/25"), block("2001:db8::/32", "2001:db8:ffff::/48"))}),
			ingress("server",
				networkingv1.NetworkPolicyIngressRule{From: pods("client"), Ports: ports(80, 90)},
				networkingv1.NetworkPolicyIngressRule{From: pods("monitor")}),
		},
	}
	for name, node := range map[string]string{
		"client": "here", "server": "here", "monitor": "here", "free": "here", "remote": "there",
	} {
		s.Pods = append(s.Pods, &policy.Pod{
			NamespacedName: policy.NamespacedName{Namespace: "default", Name: name},
			Labels:         map[string]string{"app": name},
			NodeName:       node,
			Addrs:          places[name],
			Phase:          policy.PhaseRunning,
		})
	}
	return s
}

func selector(app string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

func named(app string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "default", Name: app}
}

func egress(app string, rules ...networkingv1.NetworkPolicyEgressRule) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: named(app), Spec: networkingv1.NetworkPolicySpec{
		PodSelector: selector(app),
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		Egress:      rules,
	}}
}

func ingress(app string, rules ...networkingv1.NetworkPolicyIngressRule) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: named(app), Spec: networkingv1.NetworkPolicySpec{
		PodSelector: selector(app),
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		Ingress:     rules,
	}}
}

func pods(app string) []networkingv1.NetworkPolicyPeer {
	sel := selector(app)
	return []networkingv1.NetworkPolicyPeer{{PodSelector: &sel}}
}

func block(cidr, except string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: []string{except}}}
}

// ports is a range of ports, of every protocol that has them.
func ports(first, last int32) (out []networkingv1.NetworkPolicyPort) {
	port := intstr.FromInt32(first)
	for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
		out = append(out, networkingv1.NetworkPolicyPort{Protocol: &p, Port: &port, EndPort: &last})
	}
	return out
}
