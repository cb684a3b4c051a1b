package main

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/bench/netlab"
)

// refused demands that connections over each family are refused.
func (l *agentLab) refused(when string, from, to *netlab.Host, port uint16) {
	l.t.Helper()
	for _, a := range to.Addrs() {
		ctx, cancel := context.WithTimeout(context.Background(), agentPatience)
		_, err := from.HTTPGet(ctx, netip.AddrPortFrom(a, port))
		cancel()
		if !errors.Is(err, unix.ECONNREFUSED) {
			l.t.Errorf("%s: %s > %s port %d: %v, want it refused", when, from.Name(), a, port, err)
		}
	}
}

const (
	namespaceSilent = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {netverdict.io/deny: drop}}\n"
	namespaceLoud   = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {netverdict.io/deny: reject}}\n"
	namespacePlain  = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
)

// pods are the cluster's manifests without the namespace.
func (l *agentLab) pods() (manifests string) {
	for _, h := range []*netlab.Host{l.client, l.server, l.other} {
		manifests += podManifest(h.Name(), h.Addr4(), h.Addr6())
	}
	return manifests
}

// TestAgentRejects by its flag, and by what a namespace says while it runs.
func TestAgentRejects(t *testing.T) {
	eachIptables(t, func(t *testing.T, l *agentLab, backend string) {
		l.serve(l.server, 80)
		l.write("policy.yaml", policyFor("client", "server"))
		a := l.agent("--node-name=node-1", "--deny=reject", backend)
		l.expect("with --deny=reject", true, l.client, l.server, 80)
		l.refused("with --deny=reject", l.other, l.server, 80)
		for _, step := range []struct {
			namespace string
			silent    bool
		}{{namespaceSilent, true}, {namespaceLoud, false}, {namespaceSilent, true}, {namespacePlain, false}} {
			a.after(func() { l.write("cluster.yaml", step.namespace+l.pods()) }, newState)
			if step.silent {
				l.expect("silent namespace", false, l.other, l.server, 80)
			} else {
				l.refused("rejecting", l.other, l.server, 80)
			}
		}
		a.terminate()
		l.demandNothingLeft("after the end")
	})
}
