package policy_test

import (
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netverdict/netverdict/policy"
)

// A pod may always talk to its own node. When an address stops being that
// node's, or becomes it, connections change although no row does.
func TestCompareSeesAddressesChangeHands(t *testing.T) {
	t.Parallel()
	pod, moving := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.9")
	deny := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "deny"}}
	q := &policy.Pod{NamespacedName: policy.NamespacedName{Namespace: "x", Name: "q"}, NodeName: "n1", Addrs: []netip.Addr{pod}, Phase: policy.PhaseRunning}
	withNode := &policy.Snapshot{Pods: []*policy.Pod{q}, Policies: []*networkingv1.NetworkPolicy{deny}, Nodes: []*policy.Node{{Name: "n1", Addrs: []netip.Addr{moving}}}}
	r := &policy.Pod{NamespacedName: policy.NamespacedName{Namespace: "y", Name: "r"}, NodeName: "n2", Addrs: []netip.Addr{moving}, Phase: policy.PhaseRunning}
	withPod := &policy.Snapshot{Pods: []*policy.Pod{q, r}, Policies: []*networkingv1.NetworkPolicy{deny}}

	node, other := compile(t, withNode), compile(t, withPod)
	if was, is := node.Decide(moving, pod, policy.TCP, 80).Verdict, other.Decide(moving, pod, policy.TCP, 80).Verdict; was != policy.Allow || is != policy.Deny {
		t.Fatalf("the node's address is judged %v, then as a pod's %v; want allow, then deny", was, is)
	}
	if c := policy.Compare(node, other); !c.Revokes {
		t.Errorf("node to pod: %+v, want a revocation", c)
	}
	if c := policy.Compare(other, node); !c.Adds {
		t.Errorf("pod to node: %+v, want an addition", c)
	}
}
