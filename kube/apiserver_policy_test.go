package kube

import (
	"net/netip"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/netverdict/netverdict/policy"
)

// storedPolicies are what old clusters may keep and a 1.36 API server would refuse
// in a new object. The pod "web" is the one asked about, 10.0.0.1 and 192.0.2.1
// are who connects to its port 80.
var storedPolicies = []struct {
	name   string
	spec   string
	notice string // part of the notices; empty: none
	inside policy.Verdict
	abroad policy.Verdict
}{
	{
		name:   "valid",
		spec:   `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}`,
		inside: policy.Deny, abroad: policy.Allow,
	}, {
		name:   "host bits",
		spec:   `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.7/24}}]}]}`,
		notice: "is read as 192.0.2.0/24",
		inside: policy.Deny, abroad: policy.Allow,
	}, {
		name:   "leading zeros",
		spec:   `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.000.002.000/24}}]}]}`,
		notice: "enforced as older servers read it",
		inside: policy.Deny, abroad: policy.Allow,
	}, {
		name:   "IPv4-mapped exception",
		spec:   `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: ["::ffff:192.0.2.0/120"]}}]}]}`,
		notice: "spec.ingress[0].from[0]: ipBlock: ::ffff:192.0.2.0/120 is an IPv4-mapped IPv6 range",
		inside: policy.Deny, abroad: policy.Deny,
	}, {
		name:   "only peer broken",
		spec:   `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]}`,
		notice: "left out, so it allows nothing",
		inside: policy.Deny, abroad: policy.Deny,
	}, {
		name:   "one of two peers broken",
		spec:   `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: nonsense}}, {podSelector: {}}]}]}`,
		notice: "spec.ingress[0].from[0]",
		inside: policy.Allow, abroad: policy.Deny,
	}, {
		name:   "only port broken",
		spec:   `{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 79}]}]}`,
		notice: "spec.ingress[0].ports[0]",
		inside: policy.Deny, abroad: policy.Deny,
	}, {
		name:   "unknown protocol beside a good port",
		spec:   `{podSelector: {}, ingress: [{ports: [{protocol: QUIC, port: 80}, {port: 80}]}]}`,
		notice: "spec.ingress[0].ports[0]",
		inside: policy.Allow, abroad: policy.Allow,
	}, {
		name:   "empty peer",
		spec:   `{podSelector: {}, ingress: [{from: [{}]}]}`,
		notice: "must specify a peer",
		inside: policy.Deny, abroad: policy.Deny,
	}, {
		name:   "block and selector in one peer",
		spec:   `{podSelector: {}, ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 0.0.0.0/0}}]}]}`,
		notice: "both ipBlock and a selector",
		inside: policy.Deny, abroad: policy.Deny,
	}, {
		name:   "unknown operator in the target",
		spec:   `{podSelector: {matchExpressions: [{key: app, operator: Matches, values: [x]}]}, ingress: [{}]}`,
		notice: "every pod of the namespace is isolated",
		inside: policy.Deny, abroad: policy.Deny,
	}, {
		name:   "target with a value no label can have",
		spec:   `{podSelector: {matchLabels: {app: "not/a/value"}}}`,
		notice: "enforced as older servers read it",
		inside: policy.Allow, abroad: policy.Allow,
	}, {
		name:   "target that excludes such a value",
		spec:   `{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: ["not/a/value"]}]}}`,
		notice: "enforced as older servers read it",
		inside: policy.Deny, abroad: policy.Deny,
	}, {
		name:   "peer with such a value among others",
		spec:   `{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: ["not/a/value", client]}]}}]}]}`,
		notice: "enforced as older servers read it",
		inside: policy.Allow, abroad: policy.Deny,
	}, {
		name:   "peer with only such a value",
		spec:   `{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: ["not/a/value"]}]}}]}]}`,
		notice: "enforced as older servers read it",
		inside: policy.Deny, abroad: policy.Deny,
	},
}

func TestStoredPoliciesFailClosed(t *testing.T) {
	t.Parallel()
	for _, c := range storedPolicies {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "old"}}
			if err := yaml.UnmarshalStrict([]byte(c.spec), &np.Spec); err != nil {
				t.Fatal(err)
			}
			r := policyRow(np)
			var notices []string
			for _, n := range r.notices {
				notices = append(notices, n.String())
			}
			text := strings.Join(notices, "\n")
			if (c.notice == "") != (text == "") || !strings.Contains(text, c.notice) {
				t.Errorf("notices %q, want %q", text, c.notice)
			}
			tree := compileShop(t, r.value)
			for from, want := range map[string]policy.Verdict{"10.0.0.1": c.inside, "192.0.2.1": c.abroad} {
				got := tree.Decide(netip.MustParseAddr(from), netip.MustParseAddr("10.0.0.2"), policy.TCP, 80).Verdict
				if got != want {
					t.Errorf("from %s: %v, want %v", from, got, want)
				}
			}
		})
	}
}

func compileShop(t *testing.T, np *networkingv1.NetworkPolicy) *policy.Tree {
	t.Helper()
	pod := func(name, addr string) *policy.Pod {
		return &policy.Pod{
			NamespacedName: policy.NamespacedName{Namespace: "shop", Name: name}, Labels: map[string]string{"app": name},
			Addrs: []netip.Addr{netip.MustParseAddr(addr)}, Phase: policy.PhaseRunning,
		}
	}
	tree, err := policy.Compile(&policy.Snapshot{
		Pods:     []*policy.Pod{pod("client", "10.0.0.1"), pod("web", "10.0.0.2")},
		Policies: []*networkingv1.NetworkPolicy{np},
	})
	if err != nil {
		t.Fatalf("the mended policy does not compile: %v", err)
	}
	return tree
}
