package policy_test

import (
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netverdict/netverdict/policy"
)

var (
	auditSrc = netip.MustParseAddr("10.0.0.1")
	auditDst = netip.MustParseAddr("10.0.0.2")
	unknown  = netip.MustParseAddr("10.0.0.3")
)

// deniedTwice is a pod in namespace src that may send nothing and one in dst that
// may get nothing; the namespaces are audited or not. 10.0.0.3 is an unknown pod's.
func deniedTwice(srcAudited, dstAudited bool) *policy.Snapshot {
	pod := func(namespace string, a netip.Addr) *policy.Pod {
		return &policy.Pod{
			NamespacedName: policy.NamespacedName{Namespace: namespace, Name: "pod"},
			Addrs:          []netip.Addr{a}, Phase: policy.PhaseRunning,
		}
	}
	nothing := func(namespace string, kind networkingv1.PolicyType) *networkingv1.NetworkPolicy {
		return &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "nothing"},
			Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{kind}},
		}
	}
	return &policy.Snapshot{
		Namespaces: []*policy.Namespace{{Name: "src", Audit: srcAudited}, {Name: "dst", Audit: dstAudited}},
		Pods:       []*policy.Pod{pod("src", auditSrc), pod("dst", auditDst)},
		Policies: []*networkingv1.NetworkPolicy{
			nothing("src", networkingv1.PolicyTypeEgress), nothing("dst", networkingv1.PolicyTypeIngress),
		},
		LocalPodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
	}
}

// TestAudit: a denial counts unless its own end is audited.
func TestAudit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		src, dst  bool // audited
		want      policy.Verdict
		direction policy.Direction
	}{
		{false, false, policy.Deny, policy.Egress},
		{true, false, policy.Deny, policy.Ingress},
		{false, true, policy.Deny, policy.Egress},
		{true, true, policy.Audit, policy.Egress},
	} {
		d := compile(t, deniedTwice(c.src, c.dst)).Decide(auditSrc, auditDst, policy.TCP, 80)
		if d.Reported() != c.want || d.Direction != c.direction || d.Audit != (c.want == policy.Audit) {
			t.Errorf("audited %t, %t: %+v, want %v by %v", c.src, c.dst, d, c.want, c.direction)
		}
		if (d.Verdict == policy.Deny) != (c.want == policy.Deny) {
			t.Errorf("audited %t, %t: the packet gets %v", c.src, c.dst, d.Verdict)
		}
		if d.Egress.Verdict != policy.Deny || d.Ingress.Verdict != policy.Deny || d.Egress.Audit != c.src || d.Ingress.Audit != c.dst {
			t.Errorf("audited %t, %t: egress %+v, ingress %+v", c.src, c.dst, d.Egress, d.Ingress)
		}
	}
}

// TestAuditOfOneEnd: the other end has no say.
func TestAuditOfOneEnd(t *testing.T) {
	t.Parallel()
	tree := compile(t, deniedTwice(true, true))
	outside := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		src, dst  netip.Addr
		direction policy.Direction
	}{{auditSrc, outside, policy.Egress}, {outside, auditDst, policy.Ingress}} {
		if d := tree.Decide(c.src, c.dst, policy.UDP, 53); !d.Audit || d.Direction != c.direction || d.Outcome().Reason != policy.ReasonDefaultDeny {
			t.Errorf("%v to %v: %+v, want audited, by %v", c.src, c.dst, d, c.direction)
		}
	}
}

// TestUnknownPodIsNotAudited: it is no policy that denies it.
func TestUnknownPodIsNotAudited(t *testing.T) {
	t.Parallel()
	tree := compile(t, deniedTwice(true, true))
	if d := tree.Decide(auditSrc, unknown, policy.TCP, 80); d.Verdict != policy.Deny || d.Audit || d.Direction != policy.Ingress {
		t.Errorf("to an unknown pod: %+v, want deny by ingress", d)
	}
	if d := tree.Decide(unknown, auditDst, policy.TCP, 80); d.Verdict != policy.Deny || d.Audit || d.Direction != policy.Egress {
		t.Errorf("from an unknown pod: %+v, want deny by egress", d)
	}
}

// TestCompareSeesAudit: what becomes of connections when a namespace is enforced,
// audited, or free of policies.
func TestCompareSeesAudit(t *testing.T) {
	t.Parallel()
	without := deniedTwice(false, false)
	without.Policies = nil
	free, enforced, audited := compile(t, without), compile(t, deniedTwice(false, false)), compile(t, deniedTwice(true, true))
	for _, c := range []struct {
		name          string
		before, after *policy.Tree
		want          policy.Change
	}{
		{"audited to enforced", audited, enforced, policy.Change{Revokes: true}},
		{"enforced to audited", enforced, audited, policy.Change{Adds: true}},
		{"free to audited", free, audited, policy.Change{Audits: true}},
		{"audited to free", audited, free, policy.Change{}},
		{"audited to audited", audited, compile(t, deniedTwice(true, true)), policy.Change{}},
		{"free to enforced", free, enforced, policy.Change{Revokes: true}},
	} {
		if got := policy.Compare(c.before, c.after); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}
