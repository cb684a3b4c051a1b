package hook

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/policy"
)

// Flow is a live connection, in the direction and with the addresses in which its
// first packet would be judged: after DNAT, before SNAT.
type Flow struct {
	Src, Dst netip.Addr
	Protocol policy.Protocol
	Port     uint16 // destination port, 0 for protocols without
	// Cut: it is marked as denied, which drops its replies.
	Cut bool
}

// Fate is what becomes of a live connection.
type Fate uint8

const (
	// Leave changes nothing.
	Leave Fate = iota
	// Cut marks it as denied: its replies are dropped, and its packets judged.
	Cut
	// Free forgets what is known of it: its replies pass, and its packets are
	// judged, if policies are about them.
	Free
)

// Scope says which connections a Review is about. The zero value is all of them.
type Scope struct {
	// Addrs, if not empty, are addresses of which the connection has one at an end.
	Addrs []netip.Addr
	// Denied leaves out those that are not marked as denied.
	Denied bool
}

// Reviewed counts connections.
type Reviewed struct{ Seen, Cut, Freed int }

// Review walks the connection table, asks about each connection and does what
// judge says. Connections from or to the node itself are left out, as their
// packets are never asked about, and so are those that a conntrack helper
// expected: they live and die with their parent.
//
// It may run beside all other calls. What it writes is not bound to a generation:
// who changes the tree meanwhile must review again.
func (h *Hook) Review(s Scope, judge func(*Flow) Fate) (r Reviewed, err error) {
	err = h.ns.do(func() error {
		v := review{connmarks: connmarks{marks: h.stacks[0].conn}, scope: s, judge: judge, counts: &r, local: &bart.Lite{}}
		if len(h.stacks) == 1 {
			v.family = h.stacks[0].family
		}
		if err := v.run(); err != nil {
			return fmt.Errorf("review the live connections: %w", err)
		}
		return nil
	})
	return r, err
}

// review is a walk through the connection table.
type review struct {
	connmarks
	scope  Scope
	judge  func(*Flow) Fate
	local  *bart.Lite
	counts *Reviewed
}

func (v *review) run() error {
	for _, f := range [...]family{ipv4, ipv6} {
		if err := addLocalAddrs(v.local, f); err != nil {
			return err
		}
	}
	filters, err := v.filters()
	if err != nil {
		return err
	}
	for _, f := range filters {
		c := connmarks{family: f.family, marks: v.marks}
		if err := c.walk(f.attrs, v.decide); err != nil {
			return err
		}
	}
	return nil
}

// filter is a walk through the table, as the kernel is asked for it.
type filter struct {
	family family
	attrs  attributes
}

// fewConnections is up to how many it is quicker to read them all than to let the
// kernel search the table twice for an address.
const fewConnections = 4096

func (v *review) filters() ([]filter, error) {
	if v.scope.Denied {
		return []filter{{v.family, v.carrying(policy.Deny)}}, nil
	}
	count, err := countConnections()
	if err != nil || len(v.scope.Addrs) == 0 || count < fewConnections {
		return []filter{{family: v.family}}, err
	}
	var fs []filter
	for _, a := range v.scope.Addrs {
		fs = append(fs, filter{familyOf(a), withSource(ctaTupleOrig, a)}, filter{familyOf(a), withSource(ctaTupleReply, a)})
	}
	return fs, nil
}

// concerns reports whether a connection has one of the addresses at an end. The
// kernel may have filtered by that, but before Linux 5.8 it does not.
func (v *review) concerns(f *Flow) bool {
	return len(v.scope.Addrs) == 0 || slices.Contains(v.scope.Addrs, f.Src) || slices.Contains(v.scope.Addrs, f.Dst)
}

func (v *review) decide(f *tracked) Fate {
	flow, ok := v.flow(f)
	if !ok || v.scope.Denied && !flow.Cut || !v.concerns(&flow) {
		return Leave
	}
	v.counts.Seen++
	fate := v.judge(&flow)
	switch fate {
	case Cut:
		v.counts.Cut++
	case Free:
		v.counts.Freed++
	}
	return fate
}

// flow returns false for connections that are not ours to judge.
func (v *review) flow(f *tracked) (flow Flow, ok bool) {
	src, okSrc := netip.AddrFromSlice(f.src.addr)
	dst, okDst := netip.AddrFromSlice(f.dst.addr)
	if !okSrc || !okDst || f.child || v.local.Lookup(src) || v.local.Lookup(dst) {
		return Flow{}, false
	}
	return Flow{
		Src: src, Dst: dst, Protocol: policy.Protocol(f.protocol), Port: f.dst.port,
		Cut: v.verdict(f.mark) == policy.Deny,
	}, true
}

// withSource asks for the connections with a source address in one direction
// (ctnetlink_alloc_filter, since Linux 5.8).
func withSource(direction uint16, a netip.Addr) attributes {
	a = a.Unmap()
	src, flags := uint16(ctaIPv4Src), uint16(ctaFilterOrigFlags)
	if a.Is6() {
		src = ctaIPv6Src
	}
	orig, reply := uint32(ctaFilterSrc), uint32(0)
	if direction == ctaTupleReply {
		orig, reply = reply, orig
	}
	ip := attributes{}.with(ctaTupleIP|unix.NLA_F_NESTED, attributes{}.with(src, a.AsSlice()))
	return attributes{}.with(direction|unix.NLA_F_NESTED, ip).
		with(ctaFilter|unix.NLA_F_NESTED, attributes{}.with(flags, native32(orig)).with(ctaFilterReplyFlags, native32(reply)))
}

// addLocalAddrs adds the node's own addresses, as the addrtype match sees them: it
// asks the routing table too.
func addLocalAddrs(to *bart.Lite, f family) error {
	routes, err := netlink.RouteListFiltered(int(f.af()), &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL},
		netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	if err != nil {
		return fmt.Errorf("list the node's own addresses: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			ones, _ := r.Dst.Mask.Size()
			to.Insert(netip.PrefixFrom(a.Unmap(), ones))
		}
	}
	return nil
}

// countConnections returns how many connections the namespace tracks.
func countConnections() (n uint32, err error) {
	conn, err := dialNfnetlink()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.close()) }()
	err = conn.execute(ctGetStats, unix.NLM_F_ACK, unix.AF_UNSPEC, nil, func(attrs []byte) error {
		eachAttribute(attrs, func(typ uint16, data []byte) {
			if typ == ctaStatsGlobalEntries && len(data) == 4 {
				n = binary.BigEndian.Uint32(data)
			}
		})
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("count the connections: %w", err)
	}
	return n, nil
}

const (
	ctGetStats            = unix.NFNL_SUBSYS_CTNETLINK<<8 | 5 // IPCTNL_MSG_CT_GET_STATS
	ctaStatsGlobalEntries = 1
)
