package main

import (
	"embed"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/netverdict/netverdict/policy"
)

// demoManifests are the objects of all stories: ordinary YAML, also for people
// who look for an example to copy.
//
//go:embed demo
var demoManifests embed.FS

// story is one act of the demo: a small cluster, and what must become of
// requests in it.
type story struct {
	key      string // for --story
	title    string
	overIPv6 bool // ask over IPv6; everything is dual stack in every story
	outside  []outsider
	steps    []step
}

// outsider is a host that is no pod.
type outsider struct {
	name  string
	about string
	addrs []netip.Addr
}

// step adds manifests while the agent runs, then asks.
type step struct {
	title     string
	manifests []string // files below demo/
	checks    []check
}

// check is one cell of the connectivity table: a request and what must become
// of it. The expectation is written by hand, never computed.
type check struct {
	from, to string // "namespace/pod", or the name of an outsider
	protocol policy.Protocol
	port     uint16
	want     expectation
}

// expectation is what must become of a request. A denial must also be found in
// the flow log, with the direction and the policies that isolate the pod.
type expectation struct {
	verdict    policy.Verdict
	direction  policy.Direction
	isolatedBy []string // "namespace/name", sorted
}

func tcp(from, to string, port uint16) check {
	return check{from: from, to: to, protocol: policy.TCP, port: port}
}

func udp(from, to string, port uint16) check {
	return check{from: from, to: to, protocol: policy.UDP, port: port}
}

func (c check) allowed() check {
	c.want = expectation{verdict: policy.Allow}
	return c
}

// noEgress expects that the source's policies deny.
func (c check) noEgress(isolatedBy ...string) check {
	c.want = expectation{policy.Deny, policy.Egress, isolatedBy}
	return c
}

// noIngress expects that the destination's policies deny.
func (c check) noIngress(isolatedBy ...string) check {
	c.want = expectation{policy.Deny, policy.Ingress, isolatedBy}
	return c
}

// target names the asked end as the tables and the flow log do.
func (c check) target() string { return fmt.Sprintf("%s:%d/%s", c.to, c.port, c.protocol) }

// chooseStories returns the stories with these keys, in the order of all; all
// of them if no key is given.
func chooseStories(all []story, keys []string) ([]story, error) {
	if len(keys) == 0 {
		return all, nil
	}
	for _, k := range keys {
		if !slices.ContainsFunc(all, func(s story) bool { return s.key == k }) {
			return nil, fmt.Errorf("--story %q: want some of %s", k, storyKeys(all))
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(s story) bool { return !slices.Contains(keys, s.key) }), nil
}

func storyKeys(all []story) string {
	var keys []string
	for _, s := range all {
		keys = append(keys, s.key)
	}
	return strings.Join(keys, ",")
}

// writeManifests puts a step's files into dir. Each appears complete or not at
// all, because the agent watches dir.
func (s step) writeManifests(dir string) error {
	for _, name := range s.manifests {
		data, err := demoManifests.ReadFile("demo/" + name)
		if err != nil {
			return fmt.Errorf("embedded manifest: %w", err)
		}
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "-"))
		hidden := filepath.Join(dir, ".new")
		if err := os.WriteFile(hidden, data, 0o644); err != nil {
			return fmt.Errorf("write manifest: %w", err)
		}
		if err := os.Rename(hidden, file); err != nil {
			return fmt.Errorf("write manifest: %w", err)
		}
	}
	return nil
}
