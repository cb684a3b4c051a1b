//go:build linux

// Package conntrack tells which connections begin, as the kernel's connection
// tracking sees them: also those that it let pass by itself, and about which no
// worker was asked.
//
// The kernel sends an event when the first packet of a connection has passed all
// hooks, so a connection that was denied has none. An event carries the connection
// mark, by which verdicts are recognized, and both directions' addresses: what is
// behind a Service shows in those of the reply.
package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/policy"
)

// bufferSize is the socket's receive buffer, in bytes: some 20,000 events.
const bufferSize = 8 << 20

// newGroup is the bit of NFNLGRP_CONNTRACK_NEW, the first group of
// linux/netfilter/nfnetlink_compat.h.
const newGroup = 1 << 0

const (
	// eventsSwitch is 0 where the administrator has turned events off, and missing
	// where the kernel has none though it has connection tracking.
	eventsSwitch = "/proc/sys/net/netfilter/nf_conntrack_events"
	tableSize    = "/proc/sys/net/netfilter/nf_conntrack_max"
)

// Connection is one that begins, with the destination that it reaches: after
// destination NAT, before source NAT, as the rules and workers see it.
type Connection struct {
	Src, Dst           netip.Addr
	SrcPort, DstPort   uint16 // host byte order; 0 for protocols without ports
	Protocol           policy.Protocol
	ICMPType, ICMPCode uint8  // ICMP and ICMPv6 only
	Mark               uint32 // the connection mark
}

// Listener receives the events of the network namespace in which it was opened.
type Listener struct {
	conn    *netlink.Conn
	drops   uint32 // of the socket, as far as they were reported
	stopped atomic.Bool
}

// Supported says why new connections cannot be listened to, or nil.
func Supported() error {
	l, err := Open()
	if err != nil {
		return err
	}
	return l.conn.Close()
}

// Open starts to receive: connections that begin after it returns are not missed.
// Run must follow. Needs CAP_NET_ADMIN.
func Open() (*Listener, error) {
	if err := checkEvents(); err != nil {
		return nil, fmt.Errorf("listen to new connections: %w", err)
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: newGroup})
	if err != nil {
		return nil, fmt.Errorf("listen to new connections: %w (need CAP_NET_ADMIN and the module nf_conntrack_netlink, kernel option CONFIG_NF_CT_NETLINK)", err)
	}
	l := &Listener{conn: conn}
	if err := errors.Join(conn.SetReadBuffer(bufferSize), conn.SetOption(netlink.NoENOBUFS, true)); err != nil {
		return nil, errors.Join(fmt.Errorf("listen to new connections: set up the socket: %w", err), conn.Close())
	}
	return l, nil
}

func checkEvents() error {
	text, err := os.ReadFile(eventsSwitch)
	if err == nil && strings.TrimSpace(string(text)) == "0" {
		return errors.New("events of connection tracking are turned off (sysctl net.netfilter.nf_conntrack_events=2 turns them on)")
	}
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(tableSize); err == nil {
			return errors.New("this kernel has no events of connection tracking (kernel option CONFIG_NF_CONNTRACK_EVENTS)")
		}
	}
	return nil
}

// Run hands on what begins until Stop is called; then it returns nil when it has
// handed on what had begun before. lost says that so many events were not received,
// or not understood: of all connections of the namespace, so fewer of ours.
func (l *Listener) Run(begins func(*Connection), lost func(n uint64)) error {
	tell := func(messages []netlink.Message) {
		for _, m := range messages {
			c, ok, err := parse(m)
			if err != nil {
				lost(1)
			}
			if ok {
				begins(&c)
			}
		}
		if n := l.dropped(); n > 0 {
			lost(n)
		}
	}
	for {
		messages, err := l.conn.Receive()
		switch {
		case l.stopped.Load():
			tell(messages)
			return errors.Join(l.drain(tell), l.conn.Close())
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			return errors.Join(fmt.Errorf("receive new connections: %w", err), l.conn.Close())
		}
		tell(messages)
	}
}

// Stop ends Run.
func (l *Listener) Stop() error {
	l.stopped.Store(true)
	return l.conn.SetReadDeadline(time.Unix(1, 0)) // long ago: Receive returns
}

// drain reads what the socket has received, without waiting for more.
func (l *Listener) drain(tell func([]netlink.Message)) error {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	return raw.Control(func(fd uintptr) {
		for {
			n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if err != nil {
				return // EAGAIN: that was all
			}
			messages, err := syscall.ParseNetlinkMessage(buf[:n])
			if err != nil {
				continue
			}
			for _, m := range messages {
				tell([]netlink.Message{{
					Header: netlink.Header{Type: netlink.HeaderType(m.Header.Type), Flags: netlink.HeaderFlags(m.Header.Flags)},
					Data:   m.Data,
				}})
			}
		}
	})
}

// parse reads an event; ok is false if it is not of a new connection.
func parse(m netlink.Message) (c Connection, ok bool, err error) {
	var e conntrack.Event
	if err := e.Unmarshal(m); err != nil {
		return c, false, err
	}
	if e.Type != conntrack.EventNew || e.Flow == nil {
		return c, false, nil
	}
	return connectionOf(e.Flow), true, nil
}

func connectionOf(f *conntrack.Flow) Connection {
	there, back := &f.TupleOrig, &f.TupleReply
	c := Connection{
		Src: there.IP.SourceAddress.Unmap(), Dst: back.IP.SourceAddress.Unmap(),
		Protocol: policy.Protocol(there.Proto.Protocol), Mark: f.Mark,
	}
	if there.Proto.ICMPv4 || there.Proto.ICMPv6 {
		c.ICMPType, c.ICMPCode = there.Proto.ICMPType, there.Proto.ICMPCode
		return c
	}
	if c.Protocol.HasPorts() {
		c.SrcPort, c.DstPort = there.Proto.SourcePort, back.Proto.SourcePort
	}
	return c
}
