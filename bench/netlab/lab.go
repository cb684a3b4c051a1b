//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// Options configures a lab. The zero value is a nameless lab.
type Options struct {
	// Name is part of the names in /run/netns when Named is set: letters and
	// digits, "lab" if empty. Two labs that run at once must differ in it.
	Name string
	// Named makes every namespace visible as /run/netns/nv-<Name>-<host>, with
	// "." for each "/" in the host's name.
	Named bool
}

// Lab is a set of namespaces. Its methods may be called concurrently.
type Lab struct {
	opts     Options
	nameLock net.Listener // held while Named files may exist; nil if not Named
	spawner  *spawner
	fabric   *Host

	// mu serialises changes of the topology, and guards what follows.
	mu        sync.Mutex
	closing   bool
	nodes     []*Node
	nodeCount int                 // nodes ever added; numbers default addresses
	linkCount int                 // links ever made; numbers their router ends
	names     map[string]struct{} // kernel names in use
	addrs     map[netip.Addr]*Host

	closeOnce sync.Once
	closeErr  error
	closed    chan struct{} // closed at the end of Close
}

// New starts an empty lab. It fails with the fix in the message when the
// process may not create namespaces or the kernel has no IPv6.
func New(opts Options) (*Lab, error) {
	if opts.Name == "" {
		opts.Name = "lab"
	}
	if err := checkLabName(opts.Name); err != nil {
		return nil, err
	}
	l := &Lab{
		opts:    opts,
		spawner: startSpawner(),
		names:   make(map[string]struct{}),
		addrs:   make(map[netip.Addr]*Host),
		closed:  make(chan struct{}),
	}
	if err := l.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start lab %s: %w", opts.Name, err), l.Close())
	}
	return l, nil
}

func (l *Lab) start() (err error) {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return fmt.Errorf("the lab is dual stack, and this kernel has IPv6 off (see ipv6.disable in /proc/cmdline): %w", err)
	}
	if l.opts.Named {
		if l.nameLock, err = lockName(l.opts.Name); err != nil {
			return err
		}
		if err = removeStale(l.opts.Name); err != nil {
			return err
		}
	}
	l.fabric, err = l.newHost("fabric", routerSysctls)
	return err
}

// Close kills every process in the lab's namespaces, stops the servers and
// removes the namespaces. It may be called more than once and from any
// goroutine; later calls wait for the first and return its error.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() {
		l.closeErr = l.shutdown()
		close(l.closed)
	})
	return l.closeErr
}

func (l *Lab) shutdown() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closing = true
	err := releaseAll(l.hostsLocked())
	l.spawner.stop()
	if l.nameLock != nil {
		err = errors.Join(err, l.nameLock.Close())
	}
	return err
}

func (l *Lab) hostsLocked() []*Host {
	var all []*Host
	for _, n := range l.nodes {
		all = append(all, n.hosts...)
		all = append(all, n.Host)
	}
	if l.fabric != nil {
		all = append(all, l.fabric)
	}
	return all
}

// CloseOnSignal closes the lab when SIGINT, SIGTERM or SIGHUP arrives, and
// then lets the signal do what it would have done: end the process, unless the
// program handles it elsewhere too. It returns at once and stops watching when
// ctx is done or the lab is closed. Programs that end on signals by themselves
// need only a deferred Close.
func (l *Lab) CloseOnSignal(ctx context.Context) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		defer signal.Stop(ch)
		select {
		case <-ctx.Done():
		case <-l.closed:
		case sig := <-ch:
			if err := l.Close(); err != nil {
				fmt.Fprintf(os.Stderr, "close lab %s: %v\n", l.opts.Name, err)
			}
			signal.Stop(ch)
			_ = unix.Kill(unix.Getpid(), sig.(unix.Signal)) // a signal to oneself cannot be refused
		}
	}()
}

// usable tells whether the topology may still change. l.mu is held.
func (l *Lab) usable() error {
	if l.closing {
		return fmt.Errorf("lab %s: %w", l.opts.Name, net.ErrClosed)
	}
	return nil
}

// claim reserves addresses for h, all or none. l.mu is held.
func (l *Lab) claim(h *Host, addrs []netip.Addr) error {
	for i, a := range addrs {
		if err := checkAddr(a); err != nil {
			l.unclaim(addrs[:i])
			return err
		}
		if owner := l.addrs[a]; owner != nil {
			l.unclaim(addrs[:i])
			return fmt.Errorf("address %s belongs to %s already: remove that first", a, owner.name)
		}
		l.addrs[a] = h
	}
	return nil
}

func (l *Lab) unclaim(addrs []netip.Addr) {
	for _, a := range addrs {
		delete(l.addrs, a)
	}
}

func checkAddr(a netip.Addr) error {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() {
		return fmt.Errorf("address %q: want a plain IPv4 or IPv6 unicast address that is not link-local", a)
	}
	return nil
}
