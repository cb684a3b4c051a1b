//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is a network namespace with addresses: a pod behind a Node, or the node
// itself. Its methods may be called concurrently; after Remove or Lab.Close
// they fail with an error that wraps net.ErrClosed.
type Host struct {
	name  string
	lab   *Lab
	addrs []netip.Addr
	ns    *space
	file  string // in /run/netns; empty if not named
	// router is the namespace at the other end of eth0: the node of a pod, the
	// fabric of a node, nil for the fabric. ifname is the link's name there.
	router *Host
	ifname string
	node   *Node // set on pods only

	// nl acts on this namespace while open. It must not be used afterwards: a
	// closed handle acts on the calling thread's namespace. Guarded by lab.mu.
	nl *netlink.Handle

	ctx    context.Context // done when the host goes away
	cancel context.CancelFunc

	mu      sync.Mutex
	gone    bool
	closers map[io.Closer]struct{} // servers and captures
	cmds    map[*Cmd]struct{}      // started and not yet waited for
}

// newHost makes a namespace with lo up and no link. l.mu is held, except in New.
func (l *Lab) newHost(name string, extra []setting) (*Host, error) {
	if err := checkHostName(name); err != nil {
		return nil, err
	}
	if _, taken := l.names[kernelName(name)]; taken {
		return nil, fmt.Errorf("host %s: the name is in use", name)
	}
	ns, err := newSpace()
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	h := &Host{name: name, lab: l, ns: ns, closers: map[io.Closer]struct{}{}, cmds: map[*Cmd]struct{}{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	l.names[kernelName(name)] = struct{}{}
	if err := h.setUp(extra); err != nil {
		return nil, errors.Join(fmt.Errorf("host %s: %w", name, err), releaseAll([]*Host{h}))
	}
	return h, nil
}

func (h *Host) setUp(extra []setting) error {
	err := h.ns.do(func() (err error) {
		if err := applySysctls(slices.Concat(hostSysctls, extra)); err != nil {
			return err
		}
		h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return err
	}
	lo, err := h.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := h.nl.LinkSetUp(lo); err != nil {
		return privilegeError("set lo up", err)
	}
	if !h.lab.opts.Named {
		return nil
	}
	file := namePrefix(h.lab.opts.Name) + kernelName(h.name)
	if err := mountName(h.ns, file); err != nil {
		return err
	}
	h.file = file
	return nil
}

// Name returns the name given to AddHost or AddNode. The host's servers answer with it.
func (h *Host) Name() string { return h.name }

// Addrs returns the host's addresses in the order given.
func (h *Host) Addrs() []netip.Addr { return slices.Clone(h.addrs) }

// Addr4 returns the first IPv4 address, or the zero Addr.
func (h *Host) Addr4() netip.Addr { return first(h.addrs, netip.Addr.Is4) }

// Addr6 returns the first IPv6 address, or the zero Addr.
func (h *Host) Addr6() netip.Addr { return first(h.addrs, netip.Addr.Is6) }

func first(addrs []netip.Addr, is func(netip.Addr) bool) netip.Addr {
	if i := slices.IndexFunc(addrs, is); i >= 0 {
		return addrs[i]
	}
	return netip.Addr{}
}

// Interface returns the name of the link to this host in its node's namespace
// (for a node: in the fabric's). The host's own end is always eth0.
func (h *Host) Interface() string { return h.ifname }

// Path returns a file that nsenter(1) --net= and setns(2) accept, valid until
// the host goes away: below /run/netns if named, else in this process's /proc.
func (h *Host) Path() string {
	if h.file != "" {
		return h.file
	}
	return procPath(h.ns)
}

// Do runs fn with its OS thread in the host's namespace and returns its error.
// Sockets and processes that fn makes belong to the namespace for good.
// Goroutines that fn starts do not run in it. In fn, read /proc/thread-self/net
// instead of /proc/net, which shows the main thread's namespace. fn runs on a
// goroutine of its own: a panic continues in the caller as a *PanicError.
func (h *Host) Do(fn func() error) error { return h.ns.do(fn) }

// attach ties c to the host's life: Remove and Close close it.
func (h *Host) attach(c io.Closer) error {
	h.mu.Lock()
	gone := h.gone
	if !gone {
		h.closers[c] = struct{}{}
	}
	h.mu.Unlock()
	if gone {
		c.Close()
		return h.removed()
	}
	return nil
}

func (h *Host) removed() error { return fmt.Errorf("host %s was removed: %w", h.name, net.ErrClosed) }

func (h *Host) detach(c io.Closer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.closers, c)
}

// Remove kills the host's processes, stops its servers and removes its
// namespace and link. When it returns, its addresses and name are free again.
// Removing a removed host does nothing. Nodes have their own Remove.
func (h *Host) Remove() error {
	h.lab.mu.Lock()
	defer h.lab.mu.Unlock()
	if h.lab.closing || h.node == nil || !slices.Contains(h.node.hosts, h) {
		return nil
	}
	h.node.hosts = slices.DeleteFunc(h.node.hosts, func(o *Host) bool { return o == h })
	return errors.Join(h.unlink(), releaseAll([]*Host{h}))
}

// releaseAll ends hosts: servers first, then processes, then namespaces. It
// takes many at once because finding processes walks all of /proc. The lab's
// mu is held.
func releaseAll(hosts []*Host) error {
	inodes := make(map[uint64]bool)
	for _, h := range hosts {
		h.stop()
		inodes[h.ns.inode] = true
	}
	for _, h := range hosts {
		h.killCommands()
	}
	err := killProcesses(inodes, kernelPatience)
	for _, h := range hosts {
		h.reapCommands()
		err = errors.Join(err, h.release())
	}
	return err
}

// stop refuses new servers and commands and ends the present servers.
func (h *Host) stop() {
	h.mu.Lock()
	h.gone = true
	closers := h.closers
	h.closers = map[io.Closer]struct{}{}
	h.mu.Unlock()
	h.cancel()
	for c := range closers {
		c.Close()
	}
}

func (h *Host) release() error {
	var err error
	if h.file != "" {
		err = unmountName(h.file)
	}
	if h.nl != nil {
		h.nl.Close()
		h.nl = nil
	}
	h.lab.unclaim(h.addrs)
	delete(h.lab.names, kernelName(h.name))
	return errors.Join(err, h.ns.close())
}
