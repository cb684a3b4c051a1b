package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/kube"
	"github.com/netverdict/netverdict/policy"
)

// stage is the running cluster of one story:
//
//	manifests/ ──▶ agent process ──▶ flow records, messages
//	    │             │ in the node's network namespace
//	    ▼             ▼
//	pods' hosts ─── node ─── outsiders' hosts
//
// One node routes between them all, so every request meets the agent's rules.
type stage struct {
	story *story
	dir   string // of manifests
	lab   *netlab.Lab
	node  *netlab.Node
	hosts map[string]*netlab.Host // by "namespace/pod" or outsider's name
	agent *demoAgent              // nil before the first step

	snapshot *policy.Snapshot // what the manifests say now
}

// openStage makes the network of a story; its first step starts the agent.
func openStage(s *story, named bool) (*stage, error) {
	lab, err := netlab.New(netlab.Options{Name: "demo" + s.key, Named: named})
	if err != nil {
		return nil, err
	}
	st := &stage{story: s, lab: lab, hosts: map[string]*netlab.Host{}}
	if err := st.build(); err != nil {
		return nil, errors.Join(err, st.close())
	}
	return st, nil
}

func (st *stage) build() (err error) {
	if st.dir, err = os.MkdirTemp("", "netverdict-demo-"+st.story.key+"-"); err != nil {
		return fmt.Errorf("make a directory for manifests: %w", err)
	}
	if err := st.write(0); err != nil {
		return err
	}
	if st.node, err = st.lab.AddNode("node", netlab.NodeOptions{}); err != nil {
		return err
	}
	for _, p := range st.snapshot.Pods {
		if err := st.addHost(p.String(), p.Addrs); err != nil {
			return err
		}
	}
	for _, o := range st.story.outside {
		if err := st.addHost(o.name, o.addrs); err != nil {
			return err
		}
	}
	return st.serve()
}

func (st *stage) addHost(name string, addrs []netip.Addr) (err error) {
	st.hosts[name], err = st.node.AddHost(name, addrs...)
	return err
}

// serve starts a server for every request of the story, also for those that
// must not get there: only the policies stand between.
func (st *stage) serve() error {
	type service struct {
		host     string
		protocol policy.Protocol
		port     uint16
	}
	done := map[service]bool{}
	for _, s := range st.story.steps {
		for _, c := range s.checks {
			service := service{c.to, c.protocol, c.port}
			if done[service] {
				continue
			}
			done[service] = true
			if err := st.serveOne(c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (st *stage) serveOne(c check) error {
	host, ok := st.hosts[c.to]
	if !ok {
		return fmt.Errorf("story %s: %s is neither a pod nor an outsider", st.story.key, c.to)
	}
	serve := host.ServeHTTP
	if c.protocol == policy.UDP {
		serve = host.ServeUDP
	}
	if _, err := serve(c.port); err != nil {
		return fmt.Errorf("serve %s: %w", c.target(), err)
	}
	return nil
}

// enforce brings the policies of the n-th step into force: of the first by
// starting an agent, of the others by editing the manifests under it. It returns
// the policies that are new.
func (st *stage) enforce(ctx context.Context, n int, start startFunc) (added []*networkingv1.NetworkPolicy, err error) {
	seen := 0 // of the agent's messages
	if n == 0 {
		added = st.snapshot.Policies
		st.agent, err = start(st.node, st.dir)
	} else {
		before := st.snapshot.Policies
		seen = st.agent.messages.length()
		err = st.write(n)
		added = newPolicies(before, st.snapshot.Policies)
	}
	if err != nil {
		return nil, err
	}
	tree, err := policy.Compile(st.snapshot)
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", st.dir, err)
	}
	return added, st.agent.awaitState(ctx, seen, tree.Stats().Policies)
}

// startFunc starts an agent on a node.
type startFunc func(node *netlab.Node, manifests string) (*demoAgent, error)

// write adds the manifests of the n-th step, and loads all as the agent does.
func (st *stage) write(n int) error {
	if err := st.story.steps[n].writeManifests(st.dir); err != nil {
		return err
	}
	snapshot, _, err := kube.Load(st.dir, kube.Options{})
	if err != nil {
		return err
	}
	st.snapshot = snapshot
	return nil
}

// newPolicies returns the policies in after that are not in before.
func newPolicies(before, after []*networkingv1.NetworkPolicy) []*networkingv1.NetworkPolicy {
	return slices.DeleteFunc(slices.Clone(after), func(p *networkingv1.NetworkPolicy) bool {
		return slices.ContainsFunc(before, func(o *networkingv1.NetworkPolicy) bool {
			return o.Namespace == p.Namespace && o.Name == p.Name
		})
	})
}

// name says who is at an end of a flow.
func (st *stage) name(e flow.Endpoint) string {
	if e.Pod != "" {
		return e.Namespace + "/" + e.Pod
	}
	if name, ok := st.story.outsiderAt(e.IP); ok {
		return name
	}
	return e.IP.String()
}

// example is an HTTP request for people to repeat.
func (st *stage) example() (from *netlab.Host, url string) {
	for _, c := range st.story.steps[len(st.story.steps)-1].checks {
		if c.protocol == policy.TCP && c.want.verdict == policy.Allow {
			return st.hosts[c.from], fmt.Sprintf("http://%s/", netip.AddrPortFrom(st.address(c.to), c.port))
		}
	}
	return st.node.Host, fmt.Sprintf("http://%s/", st.address(st.story.steps[0].checks[0].to))
}

// close ends the agent and removes the network and the manifests.
func (st *stage) close() error {
	var err error
	if st.agent != nil {
		err = st.agent.stop()
	}
	err = errors.Join(err, st.lab.Close())
	if st.dir != "" {
		err = errors.Join(err, os.RemoveAll(st.dir))
	}
	return err
}
