// Package queuetest gives tests of the packet path real packets: network
// namespaces with a rule that queues, and a UDP sender that is faster than what
// it measures. It needs root and fails the test without it.
//
// The namespaces have no names: the kernel removes them, their interfaces and
// their rules when the test process ends, however it ends.
package queuetest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Port is the UDP port (discard) that the rules of this package queue.
const Port = 9

// Namespace is a network namespace whose loopback interface is up.
type Namespace struct {
	tb     testing.TB
	handle netns.NsHandle
}

// New makes a namespace that lives until the test ends.
func New(tb testing.TB) *Namespace {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("network namespaces need root: run this test as root")
	}
	n := &Namespace{tb: tb, handle: netns.None()}
	err := onThread(func() (err error) {
		if n.handle, err = netns.New(); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		return linkUp("lo")
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { n.handle.Close() })
	return n
}

// Do runs f on a thread of its own inside the namespace and fails the test with
// its error. Sockets that f opens stay in the namespace.
func (n *Namespace) Do(f func() error) {
	n.tb.Helper()
	if err := n.Try(f); err != nil {
		n.tb.Fatal(err)
	}
}

// Try is Do for those who want the error.
func (n *Namespace) Try(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.handle); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a locked thread, which ends with it: nobody else ever runs
// in a namespace that f entered.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// Exec runs a command in the namespace.
func (n *Namespace) Exec(name string, args ...string) {
	n.tb.Helper()
	n.Do(func() error {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
		}
		return nil
	})
}

// QueueUDP makes iptables and ip6tables send locally made UDP packets for Port
// to a queue, but those with a mark other than zero pass.
func (n *Namespace) QueueUDP(num uint16) {
	n.tb.Helper()
	for _, tables := range []string{"iptables", "ip6tables"} {
		n.Exec(tables, "-w", "-A", "OUTPUT", "-p", "udp", "--dport", fmt.Sprint(Port),
			"-m", "mark", "--mark", "0", "-j", "NFQUEUE", "--queue-num", fmt.Sprint(num))
	}
}

// Discard drops the UDP packets for Port that the namespace receives, before
// anything answers that nobody listens.
func (n *Namespace) Discard() {
	n.tb.Helper()
	n.Exec("iptables", "-w", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "--dport", fmt.Sprint(Port), "-j", "DROP")
}

// Connect joins two namespaces by a veth pair, 10.77.0.1/24 in n and 10.77.0.2/24
// in peer, with fixed neighbour entries: no packet but the test's travels on it.
func (n *Namespace) Connect(peer *Namespace) {
	n.tb.Helper()
	n.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "veth0"
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     attrs,
			PeerName:      "veth0",
			PeerNamespace: netlink.NsFd(peer.handle),
		})
	})
	here, there := n.address("10.77.0.1"), peer.address("10.77.0.2")
	n.neighbour("10.77.0.2", there)
	peer.neighbour("10.77.0.1", here)
}

// address gives veth0 an IPv4 address, sets it up and returns its MAC address.
func (n *Namespace) address(ip string) (mac net.HardwareAddr) {
	n.Do(func() error {
		link, err := netlink.LinkByName("veth0")
		if err != nil {
			return err
		}
		mac = link.Attrs().HardwareAddr
		addr, err := netlink.ParseAddr(ip + "/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
		return linkUp("veth0")
	})
	return mac
}

func (n *Namespace) neighbour(ip string, mac net.HardwareAddr) {
	n.Do(func() error {
		link, err := netlink.LinkByName("veth0")
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex:    link.Attrs().Index,
			State:        netlink.NUD_PERMANENT,
			IP:           net.ParseIP(ip),
			HardwareAddr: mac,
		})
	})
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}
