//go:build linux

package kubelet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
)

// AddressesAnnotation on a pod asks for certain addresses, comma separated, as
// cni.projectcalico.org/ipAddrs does: tests of address reuse need it.
const AddressesAnnotation = "conformance.netverdict.io/addresses"

// addresses hands out a node's pod addresses. Like the host-local CNI plugin it
// goes on from the last one, so that an address rests before it is used again.
type addresses struct {
	mu    sync.Mutex
	cidrs []netip.Prefix
	last  []netip.Addr // per CIDR
	taken map[netip.Addr]bool
}

func newAddresses(cidrs []netip.Prefix) *addresses {
	a := &addresses{cidrs: cidrs, taken: map[netip.Addr]bool{}}
	for _, p := range cidrs {
		a.last = append(a.last, p.Addr()) // the first one handed out is .1
	}
	return a
}

// take returns an address of each family, in the order of the node's CIDRs.
func (a *addresses) take(pod *corev1.Pod) ([]netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if wanted := pod.Annotations[AddressesAnnotation]; wanted != "" {
		return a.takeWanted(wanted)
	}
	var out []netip.Addr
	for i := range a.cidrs {
		addr, err := a.next(i)
		if err != nil {
			return nil, err
		}
		out = append(out, addr)
	}
	for i, addr := range out {
		a.taken[addr] = true
		a.last[i] = addr
	}
	return out, nil
}

func (a *addresses) takeWanted(wanted string) ([]netip.Addr, error) {
	var out []netip.Addr
	for text := range strings.SplitSeq(wanted, ",") {
		addr, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", AddressesAnnotation, err)
		}
		if !slices.ContainsFunc(a.cidrs, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return nil, fmt.Errorf("annotation %s: %s is not in the node's pod CIDRs %v", AddressesAnnotation, addr, a.cidrs)
		}
		if a.taken[addr] {
			return nil, fmt.Errorf("annotation %s: %s belongs to another pod", AddressesAnnotation, addr)
		}
		out = append(out, addr)
	}
	for _, addr := range out {
		a.taken[addr] = true
	}
	return out, nil
}

// next finds the free address that follows the last one; the last of an IPv4 range
// is its broadcast address.
func (a *addresses) next(i int) (netip.Addr, error) {
	p, addr := a.cidrs[i], a.last[i]
	for range 1 << 12 {
		addr = addr.Next()
		if !p.Contains(addr) || (addr.Is4() && !p.Contains(addr.Next())) {
			addr = p.Addr().Next()
		}
		if !a.taken[addr] {
			return addr, nil
		}
	}
	return netip.Addr{}, errors.New("no free address in " + p.String())
}

func (a *addresses) release(addrs []netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, addr := range addrs {
		delete(a.taken, addr)
	}
}
