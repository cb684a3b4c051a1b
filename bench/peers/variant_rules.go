package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// nothing leaves the node as it is: nobody asks for connection tracking there.
func nothing(context.Context, *stage) (*running, error) {
	return &running{stop: func() error { return nil }}, nil
}

// conntrackOnly makes the kernel track connections and do nothing with them.
func conntrackOnly(ctx context.Context, s *stage) (*running, error) {
	return s.mangle(ctx, "-A POSTROUTING -m conntrack --ctstate NEW")
}

// staticDrop is what an administrator writes against a flood.
func staticDrop(ctx context.Context, s *stage) (*running, error) {
	return s.mangle(ctx, fmt.Sprintf("-A POSTROUTING -d %v -p tcp --dport %d: -j DROP", serverAddr, deniedPort), "-A POSTROUTING -m conntrack --ctstate NEW")
}

// queueNew sends the packets of connections that are not established to a queue.
const queueNew = "-A POSTROUTING -m conntrack --ctstate NEW -j NFQUEUE --queue-num 0"

// mangle puts rules into the node's table mangle, in one transaction.
func (s *stage) mangle(ctx context.Context, rules ...string) (*running, error) {
	text := "*mangle\n" + strings.Join(rules, "\n") + "\nCOMMIT\n"
	if err := s.feed(ctx, s.node.Host, []byte(text), "iptables-restore", "-w", "--noflush"); err != nil {
		return nil, err
	}
	return &running{stop: func() error {
		return s.feed(context.WithoutCancel(ctx), s.node.Host, []byte("*mangle\n:PEERS - [0:0]\n-F POSTROUTING\n-F PEERS\n-X PEERS\nCOMMIT\n"), "iptables-restore", "-w", "--noflush")
	}}, nil
}

// peers yields n addresses that are allowed, the client last: the order in which
// a linear list takes longest, as for the newest of many policies.
func peers(n int) (addrs []netip.Addr) {
	for i := range n - 1 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 100, byte(i >> 8), byte(i)}))
	}
	return append(addrs, clientAddr)
}

// guard lets established connections pass, and sends what goes to the server to
// the chain PEERS, whose end drops.
func guard(rules ...string) []string {
	return append(append([]string{
		":PEERS - [0:0]",
		"-A POSTROUTING -m conntrack --ctstate ESTABLISHED -j RETURN",
		fmt.Sprintf("-A POSTROUTING -d %v -j PEERS", serverAddr),
	}, rules...), "-A PEERS -j DROP")
}

// iptablesRules is how agents write policies that put a rule for each peer.
func iptablesRules(n int) func(context.Context, *stage) (*running, error) {
	return func(ctx context.Context, s *stage) (*running, error) {
		var rules []string
		for _, a := range peers(n) {
			rules = append(rules, fmt.Sprintf("-A PEERS -s %v -j ACCEPT", a))
		}
		return s.mangle(ctx, guard(rules...)...)
	}
}

const setSize = 10 // peers of one policy

// ipsetRules is how agents write policies that put the peers of each policy
// into an ipset.
func ipsetRules(n int) func(context.Context, *stage) (*running, error) {
	return func(ctx context.Context, s *stage) (*running, error) {
		all := peers(n * setSize)
		var sets strings.Builder
		var rules []string
		for i := range n {
			fmt.Fprintf(&sets, "create p%d hash:ip\n", i)
			for _, a := range all[i*setSize : (i+1)*setSize] {
				fmt.Fprintf(&sets, "add p%d %v\n", i, a)
			}
			rules = append(rules, fmt.Sprintf("-A PEERS -m set --match-set p%d src -j ACCEPT", i))
		}
		if err := s.feed(ctx, s.node.Host, []byte(sets.String()), "ipset", "restore"); err != nil {
			return nil, err
		}
		r, err := s.mangle(ctx, guard(rules...)...)
		if err != nil {
			return nil, err
		}
		clear := r.stop
		r.stop = func() error {
			if err := clear(); err != nil {
				return err
			}
			return s.destroySets(context.WithoutCancel(ctx))
		}
		return r, nil
	}
}

// nftMap is how an agent for nftables alone can do it: one look-up.
func nftMap(n int) func(context.Context, *stage) (*running, error) {
	return func(ctx context.Context, s *stage) (*running, error) {
		var elements []string
		for _, a := range peers(n) {
			elements = append(elements, fmt.Sprintf("%v . %v : accept", a, serverAddr))
		}
		text := fmt.Sprintf(`table ip peers {
	map verdicts { type ipv4_addr . ipv4_addr : verdict; elements = { %s } }
	chain postrouting {
		type filter hook postrouting priority mangle
		ct state established accept
		ip daddr != %v accept
		ip saddr . ip daddr vmap @verdicts
		drop
	}
}
`, strings.Join(elements, ", "), serverAddr)
		if err := s.feed(ctx, s.node.Host, []byte(text), "nft", "-f", "-"); err != nil {
			return nil, err
		}
		return &running{stop: func() error {
			return s.exec(context.WithoutCancel(ctx), s.node.Host, "nft", "delete", "table", "ip", "peers")
		}}, nil
	}
}

// destroySets destroys every set of the node. Deleted rules let go of theirs a
// moment later, in the background.
func (s *stage) destroySets(ctx context.Context) (err error) {
	for range 50 {
		if err = s.exec(ctx, s.node.Host, "ipset", "destroy"); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}
