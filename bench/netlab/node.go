//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// NodeOptions configures a node. The zero value suits a lab of one node.
type NodeOptions struct {
	// Addrs are the node's own addresses, on its uplink eth0. If empty, the
	// n-th node of the lab gets 172.31.255.n and fd6e:7600::n.
	Addrs []netip.Addr
	// PodCIDRs are the ranges of the hosts behind the node. Connect needs them;
	// if set, AddHost refuses addresses outside, and packets to addresses
	// inside that no host owns are answered with ICMP unreachable.
	PodCIDRs []netip.Prefix
}

// Node is a namespace that forwards between its hosts and the fabric. Its own
// methods from Host (Do, Command, HTTPGet …) act as the node's host network.
type Node struct {
	*Host
	podCIDRs []netip.Prefix

	// Guarded by lab.mu.
	connected bool
	hosts     []*Host
	services  int // Services ever added; numbers their chains
}

// AddNode makes a node with an uplink to the fabric. It reaches no other node
// before Connect.
func (l *Lab) AddNode(name string, opts NodeOptions) (*Node, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return nil, err
	}
	l.nodeCount++
	addrs := slices.Clone(opts.Addrs)
	if len(addrs) == 0 {
		addrs = defaultNodeAddrs(l.nodeCount)
	}
	for _, p := range opts.PodCIDRs {
		if !p.IsValid() || p != p.Masked() {
			return nil, fmt.Errorf("node %s: pod CIDR %s: want a prefix without host bits", name, p)
		}
	}
	h, err := l.newLinkedHost(l.fabric, name, routerSysctls, addrs)
	if err != nil {
		return nil, fmt.Errorf("add node %s: %w", name, err)
	}
	n := &Node{Host: h, podCIDRs: slices.Clone(opts.PodCIDRs)}
	l.nodes = append(l.nodes, n)
	for _, p := range n.podCIDRs {
		if err := h.addUnreachable(p); err != nil {
			return nil, errors.Join(fmt.Errorf("add node %s: %w", name, err), n.removeLocked())
		}
	}
	return n, nil
}

func defaultNodeAddrs(n int) []netip.Addr {
	hi, lo := byte(n>>8), byte(n)
	return []netip.Addr{
		netip.AddrFrom4([4]byte{172, 31, 255 - hi, lo}),
		netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x6e, 2: 0x76, 14: hi, 15: lo}),
	}
}

// newLinkedHost makes a host with addrs behind router. l.mu is held.
func (l *Lab) newLinkedHost(router *Host, name string, extra []setting, addrs []netip.Addr) (*Host, error) {
	h, err := l.newHost(name, extra)
	if err != nil {
		return nil, err
	}
	if err := l.claim(h, addrs); err != nil {
		return nil, errors.Join(err, releaseAll([]*Host{h}))
	}
	h.addrs = slices.Clone(addrs)
	if err := h.link(router); err != nil {
		return nil, errors.Join(err, h.unlink(), releaseAll([]*Host{h}))
	}
	return h, nil
}

// AddHost makes a host (pod) behind the node with one or more addresses.
func (n *Node) AddHost(name string, addrs ...netip.Addr) (*Host, error) {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	if err := n.canAdd(addrs); err != nil {
		return nil, fmt.Errorf("add host %s to node %s: %w", name, n.name, err)
	}
	h, err := n.lab.newLinkedHost(n.Host, name, nil, addrs)
	if err != nil {
		return nil, fmt.Errorf("add host %s to node %s: %w", name, n.name, err)
	}
	if _, err := h.routeTo(); err != nil {
		return nil, errors.Join(fmt.Errorf("add host %s to node %s: %w", name, n.name, err), h.unlink(), releaseAll([]*Host{h}))
	}
	h.node = n
	n.hosts = append(n.hosts, h)
	return h, nil
}

func (n *Node) canAdd(addrs []netip.Addr) error {
	if err := n.lab.usable(); err != nil {
		return err
	}
	if !slices.Contains(n.lab.nodes, n) {
		return errors.New("the node was removed")
	}
	if len(addrs) == 0 {
		return errors.New("a host needs at least one address")
	}
	for _, a := range addrs {
		if !n.routes(a) && (n.connected || len(n.podCIDRs) > 0) {
			return fmt.Errorf("address %s is outside the node's pod CIDRs %v", a, n.podCIDRs)
		}
	}
	return nil
}

func (n *Node) routes(a netip.Addr) bool {
	return slices.ContainsFunc(n.podCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Hosts returns the hosts behind the node in the order they were added.
func (n *Node) Hosts() []*Host {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	return slices.Clone(n.hosts)
}

// PodCIDRs returns the ranges given in NodeOptions.
func (n *Node) PodCIDRs() []netip.Prefix { return slices.Clone(n.podCIDRs) }

// Connect joins nodes to the lab's fabric: connected nodes, and the hosts
// behind them, reach each other. It may be called again for more nodes.
func (l *Lab) Connect(nodes ...*Node) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	for _, n := range nodes {
		if n.connected {
			continue
		}
		if err := n.connect(); err != nil {
			return fmt.Errorf("connect node %s: %w", n.name, err)
		}
	}
	return nil
}

func (n *Node) connect() error {
	if !slices.Contains(n.lab.nodes, n) {
		return errors.New("the node was removed")
	}
	for _, h := range n.hosts {
		for _, a := range h.addrs {
			if !n.routes(a) {
				return fmt.Errorf("host %s has %s, outside the node's pod CIDRs %v: set NodeOptions.PodCIDRs", h.name, a, n.podCIDRs)
			}
		}
	}
	if err := n.announce(); err != nil {
		return err
	}
	n.connected = true
	return nil
}

// Remove removes the node with all hosts behind it. Other nodes stay.
func (n *Node) Remove() error {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	if n.lab.closing || !slices.Contains(n.lab.nodes, n) {
		return nil
	}
	return n.removeLocked()
}

func (n *Node) removeLocked() error {
	n.lab.nodes = slices.DeleteFunc(n.lab.nodes, func(o *Node) bool { return o == n })
	hosts := append(n.hosts, n.Host)
	n.hosts = nil
	return errors.Join(n.unlink(), releaseAll(hosts))
}
