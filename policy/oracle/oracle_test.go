package oracle

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/policy"
)

func TestRowDefaults(t *testing.T) {
	for _, tc := range []struct{ name, spec, egress, ingress string }{
		{"no types, no rules: ingress only", `podSelector: {}`, noPolicy, denied},
		{"no types, egress rules: both", `{podSelector: {}, egress: [{}]}`, byP, denied},
		{"no types, empty egress: ingress only", `{podSelector: {}, egress: []}`, noPolicy, denied},
		{"empty types are absent types", `{podSelector: {}, policyTypes: [], ingress: [{}]}`, noPolicy, byP},
		{"egress only, ingress rules ignored", `{podSelector: {}, policyTypes: [Egress], ingress: [{}]}`, denied, noPolicy},
		{"ingress only, egress rules ignored", `{podSelector: {}, policyTypes: [Ingress], egress: [{}]}`, noPolicy, denied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := world()
			s.Policies = []*networkingv1.NetworkPolicy{np(t, "default/p", tc.spec)}
			check(t, s, "10.0.0.2 10.0.1.1 TCP/80", tc.egress, noPolicy)
			check(t, s, "10.0.1.1 10.0.0.2 TCP/80", noPolicy, tc.ingress)
		})
	}
	s := ingressOnly(t, `[{ports: [{port: 80}]}]`)
	check(t, s, "10.0.0.2 10.0.0.1 TCP/80", noPolicy, byP)
	check(t, s, "10.0.0.2 10.0.0.1 UDP/80", noPolicy, denied)
}

func TestRowEmptyRules(t *testing.T) {
	check(t, ingressOnly(t, `[]`), "10.0.0.2 10.0.0.1 TCP/80", noPolicy, denied)
	for _, all := range []string{`[{}]`, `[{from: [], ports: []}]`} {
		s := ingressOnly(t, all)
		for _, c := range []string{"10.0.0.2 10.0.0.1 TCP/80", "8.8.8.8 10.0.0.1 SCTP/1", "fd00::2 fd00::1 ICMPv6"} {
			if d := ask(t, s, c); describe(d.Ingress) != byP {
				t.Errorf("%s with %s: %s", c, all, describe(d.Ingress))
			}
		}
	}
	s := ingressOnly(t, `[{ports: [{protocol: UDP}]}]`)
	check(t, s, "10.0.0.2 10.0.0.1 UDP/0", noPolicy, byP)
	check(t, s, "10.0.0.2 10.0.0.1 UDP/65535", noPolicy, byP)
	check(t, s, "10.0.0.2 10.0.0.1 TCP/80", noPolicy, denied)
	s = ingressOnly(t, `[{ports: [{}]}]`) // one item, everything defaulted: all of TCP
	check(t, s, "10.0.0.2 10.0.0.1 TCP/7", noPolicy, byP)
	check(t, s, "10.0.0.2 10.0.0.1 UDP/7", noPolicy, denied)
}

func TestRowSelectors(t *testing.T) {
	const fromClient, fromDB, fromOther = "10.0.0.2 10.0.0.1 TCP/80", "10.0.0.3 10.0.0.1 TCP/80", "10.0.1.1 10.0.0.1 TCP/80"
	for _, tc := range []struct{ name, from, client, db, other string }{
		{"pod selector: own namespace only", `{podSelector: {}}`, byP, byP, denied},
		{"pod selector by label", `{podSelector: {matchLabels: {app: client}}}`, byP, denied, denied},
		{"namespace selector alone: all its pods", `{namespaceSelector: {matchLabels: {team: b}}}`, denied, denied, byP},
		{"empty namespace selector: all pods", `{namespaceSelector: {}}`, byP, byP, byP},
		{"both: AND", `{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: db}}}`, denied, byP, denied},
		{"two items: OR", `{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {app: db}}}`, denied, byP, byP},
		{"name label is always there", `{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}`, denied, denied, byP},
		{"NotIn matches objects without the key", `{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [x]}]}}`, byP, byP, denied},
		{"In does not", `{podSelector: {matchExpressions: [{key: tier, operator: In, values: [x]}]}}`, denied, denied, denied},
		{"Exists", `{podSelector: {matchExpressions: [{key: app, operator: Exists}]}}`, byP, byP, denied},
		{"DoesNotExist", `{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}`, denied, denied, denied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := ingressOnly(t, `[{from: [`+tc.from+`]}]`)
			check(t, s, fromClient, noPolicy, tc.client)
			check(t, s, fromDB, noPolicy, tc.db)
			check(t, s, fromOther, noPolicy, tc.other)
			check(t, s, "8.8.8.8 10.0.0.1 TCP/80", external, denied) // no selector picks an external address
		})
	}
}

func TestNamespaceWithoutObject(t *testing.T) {
	s := ingressOnly(t, `[{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}]}]`)
	s.Namespaces = nil
	check(t, s, "10.0.1.1 10.0.0.1 TCP/80", noPolicy, byP)
	s.Namespaces = []*policy.Namespace{{Name: "other", Labels: map[string]string{"kubernetes.io/metadata.name": "lie"}}}
	check(t, s, "10.0.1.1 10.0.0.1 TCP/80", noPolicy, byP)
}

func TestRowIsolationPerDirectionAndAdditive(t *testing.T) {
	s := world()
	s.Policies = []*networkingv1.NetworkPolicy{
		np(t, "default/z", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}`),
		np(t, "default/a", `{podSelector: {}, policyTypes: [Egress]}`),
		np(t, "default/m", `{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{ports: [{port: 1}]}, {ports: [{port: 80}]}, {}]}`),
		np(t, "other/deny", `{podSelector: {}}`), // other namespace: never about default's pods
	}
	d := check(t, s, "10.0.0.2 10.0.0.1 TCP/80", "allow policy default/z#0", "allow policy default/m#1")
	wantDirection(t, d, policy.Ingress)
	d = check(t, s, "10.0.0.2 10.0.0.3 TCP/80", "deny default-deny default/a,default/z", noPolicy)
	wantDirection(t, d, policy.Egress)
	d = check(t, s, "10.0.0.1 10.0.1.1 TCP/80", "deny default-deny default/a,default/z", "deny default-deny other/deny")
	wantDirection(t, d, policy.Egress)
	d = check(t, s, "8.8.8.8 10.0.1.1 TCP/80", external, "deny default-deny other/deny")
	wantDirection(t, d, policy.Ingress)
}

func wantDirection(t *testing.T, d policy.Decision, want policy.Direction) {
	t.Helper()
	if d.Direction != want {
		t.Errorf("direction is %s, want %s", d.Direction, want)
	}
}

func TestAllowedDirection(t *testing.T) {
	s := world()
	wantDirection(t, check(t, s, "10.0.0.2 10.0.0.1 TCP/80", noPolicy, noPolicy), policy.Ingress)
	wantDirection(t, check(t, s, "10.0.0.2 8.8.8.8 TCP/80", noPolicy, external), policy.Egress)
	wantDirection(t, check(t, s, "8.8.8.8 9.9.9.9 TCP/80", external, external), policy.Ingress)
	wantDirection(t, check(t, s, "192.168.0.1 10.0.0.1 TCP/80", nodeTraffic, nodeTraffic), policy.Ingress)
}

func TestRowIPBlock(t *testing.T) {
	s := ingressOnly(t, `
- from: [{ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24, 172.17.2.128/25]}}]
- from: [{ipBlock: {cidr: 172.17.1.7/32}}]
- from: [{ipBlock: {cidr: 10.0.0.77/30}}]
- from: [{ipBlock: {cidr: 10.0.0.0/30}}]
- from: [{ipBlock: {cidr: "2001:db8::/32", except: ["2001:db8:1::/48"]}}]`)
	for source, want := range map[string]string{
		"172.16.255.255": denied, "172.17.0.0": byP, "172.17.0.255": byP,
		"172.17.1.0": denied, "172.17.1.255": denied, "172.17.2.0": byP, "172.17.2.127": byP, "172.17.2.128": denied,
		"172.17.3.0": byP, "172.17.255.255": byP, "172.18.0.0": denied,
		"172.17.1.7": "allow policy default/p#1",                                          // a hole is not a deny
		"10.0.0.76":  "allow policy default/p#2", "10.0.0.79": "allow policy default/p#2", // host bits do not count
		"10.0.0.80":   denied,
		"2001:db8::1": "allow policy default/p#4", "2001:db8:1::1": denied, "2001:db9::": denied,
	} {
		dst := "10.0.0.1"
		if strings.Contains(source, ":") {
			dst = "fd00::1"
		}
		check(t, s, source+" "+dst+" TCP/80", external, want)
	}
	check(t, s, "10.0.0.2 10.0.0.1 TCP/80", noPolicy, "allow policy default/p#3") // matches pods too
	check(t, s, "192.168.0.2 10.0.0.1 TCP/80", nodeTraffic, denied)               // another node is just an address
	v4 := ingressOnly(t, `[{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]`)
	check(t, v4, "1.2.3.4 10.0.0.1 TCP/80", external, byP)
	check(t, v4, "fd00::2 fd00::1 TCP/80", noPolicy, denied)
}

func TestRowNamedPort(t *testing.T) {
	s := ingressOnly(t, `[{ports: [{port: http}, {port: dns, protocol: UDP}, {port: nowhere}]}]`)
	for c, want := range map[string]string{
		"TCP/8080": byP, "TCP/8081": byP, "TCP/80": denied, "UDP/8080": denied, "UDP/53": byP, "TCP/53": denied,
	} {
		check(t, s, "10.0.0.2 10.0.0.1 "+c, noPolicy, want)
	}
	s.Policies = []*networkingv1.NetworkPolicy{np(t, "default/p", `
podSelector: {matchLabels: {app: client}}
policyTypes: [Egress]
egress: [{ports: [{port: http}]}]`)}
	check(t, s, "10.0.0.2 10.0.1.1 TCP/80", byP, noPolicy) // the destination's number, not the source's
	check(t, s, "10.0.0.2 10.0.1.1 TCP/8080", denied, noPolicy)
	check(t, s, "10.0.0.2 10.0.0.1 TCP/8080", byP, noPolicy)
	check(t, s, "10.0.0.2 10.0.0.3 TCP/8080", denied, noPolicy)
	check(t, s, "10.0.0.2 8.8.8.8 TCP/80", denied, external)
	s.Pods = append(s.Pods, hostNetworkPod())
	check(t, s, "10.0.0.2 192.168.0.2 TCP/80", denied, nodeTraffic)
}

// hostNetworkPod runs on node-2, has web's label and names its port http.
func hostNetworkPod() *policy.Pod {
	p := pod("default/host", "app=web", "node-2", "192.168.0.2").withPorts(
		policy.ContainerPort{Name: "http", Protocol: policy.TCP, Port: 80})
	p.HostNetwork = true
	return p
}

func TestRowEndPortAndProtocols(t *testing.T) {
	s := ingressOnly(t, `[{ports: [{port: 32000, endPort: 32768, protocol: UDP}, {port: 65535, endPort: 65535, protocol: SCTP}]}]`)
	for c, want := range map[string]string{
		"UDP/31999": denied, "UDP/32000": byP, "UDP/32768": byP, "UDP/32769": denied,
		"TCP/32000": denied, "SCTP/32000": denied, "SCTP/65535": byP, "SCTP/65534": denied,
		"ICMP": denied, "ICMPv6": denied, "47": denied,
	} {
		check(t, s, "10.0.0.2 10.0.0.1 "+c, noPolicy, want)
	}
	all := ingressOnly(t, `[{ports: [{port: 1, endPort: 65535}]}, {from: [{podSelector: {matchLabels: {app: db}}}]}]`)
	check(t, all, "10.0.0.2 10.0.0.1 ICMP", noPolicy, denied)
	check(t, all, "10.0.0.3 10.0.0.1 ICMP", noPolicy, "allow policy default/p#1")
	check(t, all, "10.0.0.3 10.0.0.1 132/80", noPolicy, "allow policy default/p#1")
}

func TestRowNodeAndSelf(t *testing.T) {
	s := world()
	s.Policies = []*networkingv1.NetworkPolicy{np(t, "default/p", `{podSelector: {}, policyTypes: [Ingress, Egress]}`)}
	check(t, s, "192.168.0.1 10.0.0.1 TCP/80", nodeTraffic, nodeTraffic)
	check(t, s, "10.0.0.1 192.168.0.1 TCP/80", nodeTraffic, nodeTraffic)
	check(t, s, "192.168.0.2 10.0.0.1 TCP/80", nodeTraffic, denied)
	check(t, s, "10.0.0.1 192.168.0.2 TCP/80", denied, nodeTraffic)
	check(t, s, "192.168.0.1 192.168.0.2 TCP/80", nodeTraffic, nodeTraffic)
	check(t, s, "10.0.0.1 10.0.0.1 TCP/80", self, self)
	check(t, s, "fd00::1 fd00::1 ICMPv6", self, self)
	check(t, s, "8.8.8.8 8.8.8.8 TCP/80", external, external)

	s.Pods[0].NodeName = "" // not scheduled: no node is its own
	s.Nodes[0].Name = ""
	check(t, s, "192.168.0.1 10.0.0.1 TCP/80", nodeTraffic, denied)
}

func TestRowHostNetwork(t *testing.T) {
	s := ingressOnly(t, `[{from: [{podSelector: {}}]}, {from: [{ipBlock: {cidr: 192.168.9.0/24}}]}]`)
	host := hostNetworkPod()
	host.Addrs = []netip.Addr{addr("192.168.9.9")}
	s.Pods = append(s.Pods, host)
	check(t, s, "192.168.9.9 10.0.0.1 TCP/80", nodeTraffic, "allow policy default/p#1")
	check(t, s, "10.0.0.2 192.168.9.9 TCP/80", noPolicy, nodeTraffic) // its label selects, but it is no pod
	check(t, s, "192.168.9.9 10.0.1.1 TCP/80", nodeTraffic, nodeTraffic)

	s = ingressOnly(t, `[]`) // a node known only through status.hostIPs of a pod
	s.Nodes = nil
	s.Pods[1].HostAddrs = []netip.Addr{addr("192.168.7.7")}
	check(t, s, "192.168.7.7 10.0.0.1 TCP/80", nodeTraffic, nodeTraffic)
	s.Pods[1].NodeName = ""
	check(t, s, "192.168.7.7 10.0.0.1 TCP/80", external, denied)

	s = ingressOnly(t, `[{from: [{podSelector: {}}]}]`) // an ordinary pod beats a node's claim
	s.Nodes[0].Addrs = append(s.Nodes[0].Addrs, addr("10.0.0.2"))
	check(t, s, "10.0.0.2 10.0.0.1 TCP/80", noPolicy, byP)
}

func TestRowPhasesAndClaims(t *testing.T) {
	old, young := time.Unix(1000, 0), time.Unix(2000, 0)
	type claim struct {
		name    string
		phase   policy.Phase
		created time.Time
	}
	for _, tc := range []struct {
		name   string
		a, b   claim // both claim 10.0.0.9; "yes" is selected by the policy
		winner string
	}{
		{"ended holds nothing", claim{"no", policy.PhaseEnded, young}, claim{"yes", policy.PhasePending, old}, "yes"},
		{"running beats younger pending", claim{"no", policy.PhasePending, young}, claim{"yes", policy.PhaseRunning, old}, "yes"},
		{"younger wins", claim{"yes", policy.PhaseRunning, young}, claim{"no", policy.PhaseRunning, old}, "yes"},
		{"smaller name wins", claim{"yes", policy.PhaseRunning, old}, claim{"no", policy.PhaseRunning, old}, "no"},
		{"nobody", claim{"no", policy.PhaseEnded, old}, claim{"yes", policy.PhaseEnded, old}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, order := range [][]claim{{tc.a, tc.b}, {tc.b, tc.a}} {
				s := ingressOnly(t, `[{from: [{podSelector: {matchLabels: {claim: "yes"}}}]}, {from: [{podSelector: {matchLabels: {claim: "no"}}}]}]`)
				for _, c := range order {
					p := pod("default/"+c.name, "claim="+c.name, "node-1", "10.0.0.9").Pod
					p.Phase, p.Created = c.phase, c.created
					s.Pods = append(s.Pods, p)
				}
				switch tc.winner {
				case "yes":
					check(t, s, "10.0.0.9 10.0.0.1 TCP/80", noPolicy, "allow policy default/p#0")
				case "no":
					check(t, s, "10.0.0.9 10.0.0.1 TCP/80", noPolicy, "allow policy default/p#1")
				default:
					check(t, s, "10.0.0.9 10.0.0.1 TCP/80", external, denied)
				}
			}
		})
	}
}

func TestRowDualStack(t *testing.T) {
	s := ingressOnly(t, `[{from: [{ipBlock: {cidr: "fd00::/64"}}]}]`)
	check(t, s, "fd00::2 fd00::1 TCP/80", noPolicy, byP)
	check(t, s, "10.0.0.2 10.0.0.1 TCP/80", noPolicy, denied) // the address in use decides
	s = ingressOnly(t, `[{from: [{podSelector: {}}]}]`)
	check(t, s, "fd00::2 fd00::1 TCP/80", noPolicy, byP)
	check(t, s, "10.0.0.2 10.0.0.1 TCP/80", noPolicy, byP)
}

func TestRowLocalAndUnknown(t *testing.T) {
	s := ingressOnly(t, `[{from: [{ipBlock: {cidr: 10.0.0.8/29}}]}]`)
	s.Policies = append(s.Policies, np(t, "other/p", `podSelector: {}`))
	s.Local = func(p *policy.Pod) bool { return p.NodeName == "node-1" }
	s.LocalPodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.5/24"), netip.MustParsePrefix("192.168.0.0/24")}
	check(t, s, "10.0.0.2 10.0.1.1 TCP/80", noPolicy, notLocal) // other/p is node-2's business
	check(t, s, "10.0.1.1 10.0.0.1 TCP/80", notLocal, denied)
	check(t, s, "10.0.1.1 10.0.1.1 TCP/80", self, self)
	check(t, s, "10.0.0.9 10.0.0.1 TCP/80", "deny unknown-pod", byP)
	check(t, s, "10.0.0.2 10.0.0.200 TCP/80", noPolicy, "deny unknown-pod")
	check(t, s, "192.168.0.2 10.0.1.1 TCP/80", nodeTraffic, nodeTraffic) // a node's address is never unknown
	s.UnknownPod = policy.Allow
	check(t, s, "10.0.0.2 10.0.0.200 TCP/80", noPolicy, "allow unknown-pod")
	s.LocalPodCIDRs = nil
	check(t, s, "10.0.0.2 10.0.0.200 TCP/80", noPolicy, external)
}
