package main

import (
	"context"
	"slices"
	"strings"
)

// variant is one way to treat the packets that the node forwards.
type variant struct {
	name string
	what string
	// start puts it in force on the node, and stop ends it.
	start func(ctx context.Context, s *stage) (*running, error)
	// denies: what no policy allows is dropped.
	denies bool
	// only lists the scenarios to measure; nil for all that apply.
	only []string
}

// running is a variant in force.
type running struct {
	pids []int // processes that judge packets
	stop func() error
}

// runs reports whether a scenario applies.
func (v *variant) runs(s *scenario) bool {
	if s.name == "denied-flood" && !v.denies {
		return false
	}
	return v.only == nil || slices.Contains(v.only, s.name)
}

// rates are the scenarios in which designs differ that decide in the kernel.
var rates = []string{"connects", "fresh-udp"}

// variants lists all, the product with what it needs from suite first measured
// against the bounds of the possible.
func (s *suite) all() []variant {
	all := []variant{
		{name: "none", what: "the node forwards, and tracks nothing", start: nothing},
		{name: "conntrack", what: "connection tracking only", start: conntrackOnly},
		{name: "static-drop", what: "one iptables rule drops the denied ports", start: staticDrop, denies: true, only: []string{"denied-flood"}},
		{name: "c-accept-all", what: "new connections through the queue; a C program accepts all", start: cAcceptAll},
		{name: "go-nfqueue-accept-all", what: "the same with go-nfqueue as its examples use it", start: goAcceptAll},
		{name: "netverdict", what: "as installed; 1,000 policies, 10,000 pods", start: s.agent(cluster{10_000, 1_000, 100}), denies: true},
		{name: "netverdict-no-sets", what: "the same, every connection decided in user space, without a bound for one source", start: s.agent(cluster{10_000, 1_000, 100}, "--allow-timeout=0", "--deny-timeout=0", "--ask-limit=0"), denies: true},
	}
	for _, n := range []int{10, 100, 1_000, 10_000} {
		all = append(all,
			variant{name: "netverdict-no-sets-" + itoa(n), what: itoa(n) + " policies select the server; every connection decided in user space",
				start: s.agent(cluster{1_000, 0, n}, "--allow-timeout=0", "--deny-timeout=0", "--ask-limit=0"), only: rates, denies: true},
			variant{name: "iptables-" + itoa(n), what: itoa(n) + " iptables rules, one per allowed peer", start: iptablesRules(n), only: rates},
			variant{name: "nft-map-" + itoa(n), what: "one nft verdict map with " + itoa(n) + " allowed peers", start: nftMap(n), only: rates})
		if n <= 1_000 {
			all = append(all, variant{name: "ipset-" + itoa(n), what: itoa(n) + " iptables rules, each with an ipset of 10 peers", start: ipsetRules(n), only: rates})
		}
	}
	return all
}

// groups name variants that answer one question together.
var groups = map[string]func(name string) bool{
	"cost":  func(name string) bool { return !scales(name) },
	"scale": scales,
}

// scales reports whether a variant's name ends in a number of rules.
func scales(name string) bool {
	last := name[strings.LastIndexByte(name, '-')+1:]
	return strings.Trim(last, "0123456789") == ""
}

func groupNames() []string { return []string{"cost", "scale"} }

func chooseVariants(list string, all []variant) ([]variant, error) {
	if in, ok := groups[list]; ok {
		return slices.DeleteFunc(all, func(v variant) bool { return !in(v.name) }), nil
	}
	return choose("variants", list, all, func(v variant) string { return v.name })
}
