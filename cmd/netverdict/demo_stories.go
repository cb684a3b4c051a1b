package main

import (
	"net/netip"
	"slices"
)

// demoStories are the stories in the order in which they are told.
func demoStories() []story {
	return []story{threeApps(), environments(), egress(), overIPv6(), metricsStory()}
}

func threeApps() story {
	return story{
		key:   "a",
		title: "Three pods: deny everything, then open one path while the agent runs",
		steps: []step{{
			title:     "default deny in both directions",
			manifests: []string{"three-apps/cluster.yaml", "three-apps/default-deny.yaml"},
			checks: []check{
				tcp("apps/app1", "apps/app2", 80).noEgress("apps/default-deny"),
				tcp("apps/app1", "apps/app3", 80).noEgress("apps/default-deny"),
				tcp("apps/app2", "apps/app1", 80).noEgress("apps/default-deny"),
				tcp("apps/app2", "apps/app3", 80).noEgress("apps/default-deny"),
				tcp("apps/app3", "apps/app1", 80).noEgress("apps/default-deny"),
				tcp("apps/app3", "apps/app2", 80).noEgress("apps/default-deny"),
			},
		}, {
			title:     "app1 may connect to app3, port 80",
			manifests: []string{"three-apps/app1-to-app3.yaml"},
			checks:    onePathOpen(),
		}},
	}
}

func onePathOpen() []check {
	return []check{
		tcp("apps/app1", "apps/app2", 80).noEgress("apps/app1-to-app3", "apps/default-deny"),
		tcp("apps/app1", "apps/app3", 80).allowed(),
		tcp("apps/app1", "apps/app3", 8080).noEgress("apps/app1-to-app3", "apps/default-deny"),
		tcp("apps/app2", "apps/app1", 80).noEgress("apps/default-deny"),
		tcp("apps/app2", "apps/app3", 80).noEgress("apps/default-deny"),
		tcp("apps/app3", "apps/app1", 80).noEgress("apps/default-deny"),
		tcp("apps/app3", "apps/app2", 80).noEgress("apps/default-deny"),
	}
}

func environments() story {
	return story{
		key:   "b",
		title: "Namespaces: production may reach staging, staging may not reach production",
		steps: []step{{
			manifests: []string{"environments/cluster.yaml", "environments/policies.yaml"},
			checks:    environmentsApart(),
		}},
	}
}

func environmentsApart() []check {
	return []check{
		tcp("production/shop", "production/web", 80).allowed(),
		tcp("production/web", "production/shop", 8080).allowed(),
		tcp("production/shop", "staging/web", 80).allowed(),
		tcp("production/web", "staging/tester", 80).allowed(),
		tcp("production/shop", "staging/tester", 8080).noIngress("staging/from-production"),
		tcp("production/web", "staging/web", 8080).noIngress("staging/from-production", "staging/web-from-tester"),
		tcp("staging/web", "production/web", 80).noIngress("production/only-production"),
		tcp("staging/tester", "production/shop", 80).noIngress("production/only-production"),
		tcp("staging/tester", "staging/web", 8080).allowed(),
		tcp("staging/tester", "staging/web", 80).noIngress("staging/from-production", "staging/web-from-tester"),
		tcp("staging/web", "staging/tester", 80).noIngress("staging/from-production"),
	}
}

func egress() story {
	return story{
		key:     "c",
		title:   "Egress: nothing but DNS, and one network with an exception and a port range",
		outside: externalServers(),
		steps: []step{{
			manifests: []string{"egress/cluster.yaml", "egress/policies.yaml"},
			checks:    egressLimited(),
		}},
	}
}

// externalServers have addresses of the ranges for documentation (RFC 5737, RFC 3849).
func externalServers() []outsider {
	return []outsider{
		{"bank", "in the allowed network", addrs("203.0.113.10", "2001:db8:b::10")},
		{"bank-staff", "in its exception", addrs("203.0.113.200", "2001:db8:b:0:8000::200")},
		{"elsewhere", "in another network", addrs("198.51.100.7", "2001:db8:e::7")},
	}
}

func addrs(v4, v6 string) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
}

func egressLimited() []check {
	ofCart := []string{"shop/allow-dns", "shop/cart-to-bank", "shop/deny-egress"}
	ofHelper := []string{"shop/allow-dns", "shop/deny-egress"}
	return []check{
		udp("shop/cart", "kube-system/coredns-1", 53).allowed(),
		tcp("shop/cart", "kube-system/coredns-2", 53).allowed(),
		tcp("shop/cart", "kube-system/coredns-1", 9153).noEgress(ofCart...),
		udp("shop/cart", "kube-system/metrics", 53).noEgress(ofCart...),
		// Its labels are those of the DNS pods; its namespace is not.
		udp("shop/cart", "shop/helper", 53).noEgress(ofCart...),
		tcp("shop/cart", "bank", 8000).allowed(),
		tcp("shop/cart", "bank", 8010).allowed(),
		tcp("shop/cart", "bank", 7999).noEgress(ofCart...),
		tcp("shop/cart", "bank", 8011).noEgress(ofCart...),
		tcp("shop/cart", "bank-staff", 8000).noEgress(ofCart...),
		tcp("shop/cart", "elsewhere", 8000).noEgress(ofCart...),
		udp("shop/helper", "kube-system/coredns-2", 53).allowed(),
		tcp("shop/helper", "bank", 8000).noEgress(ofHelper...),
		// Only egress is isolated: the shop may be reached.
		tcp("elsewhere", "shop/cart", 80).allowed(),
	}
}

// overIPv6 tells a, b and c again, in one cluster.
func overIPv6() story {
	return story{
		key:      "d",
		title:    "The same over IPv6: the policies of a, b and c together",
		overIPv6: true,
		outside:  externalServers(),
		steps: []step{{
			manifests: []string{
				"three-apps/cluster.yaml", "three-apps/default-deny.yaml", "three-apps/app1-to-app3.yaml",
				"environments/cluster.yaml", "environments/policies.yaml",
				"egress/cluster.yaml", "egress/policies.yaml",
			},
			checks: slices.Concat(onePathOpen(), environmentsApart(), egressLimited()),
		}},
	}
}

func metricsStory() story {
	return story{
		key:   "e",
		title: "UDP: measurements from agents only, by port and port range",
		steps: []step{{
			manifests: []string{"metrics/cluster.yaml", "metrics/policies.yaml"},
			checks: []check{
				udp("metrics/agent-1", "metrics/collector", 8125).allowed(),
				udp("metrics/agent-2", "metrics/collector", 8125).allowed(),
				udp("metrics/agent-1", "metrics/collector", 9000).allowed(),
				udp("metrics/agent-2", "metrics/collector", 9009).allowed(),
				udp("metrics/agent-1", "metrics/collector", 9010).noIngress("metrics/collector"),
				udp("metrics/agent-1", "metrics/collector", 514).noIngress("metrics/collector"),
				tcp("metrics/agent-1", "metrics/collector", 8125).noIngress("metrics/collector"),
				udp("metrics/visitor", "metrics/collector", 8125).noEgress("metrics/visitor"),
				tcp("metrics/visitor", "metrics/collector", 8125).noIngress("metrics/collector"),
				tcp("metrics/visitor", "metrics/agent-1", 80).allowed(),
				udp("metrics/collector", "metrics/agent-1", 8125).allowed(),
			},
		}},
	}
}

// outsiderAt finds the outsider that has an address.
func (s *story) outsiderAt(a netip.Addr) (name string, ok bool) {
	for _, o := range s.outside {
		if slices.Contains(o.addrs, a) {
			return o.name, true
		}
	}
	return "", false
}
