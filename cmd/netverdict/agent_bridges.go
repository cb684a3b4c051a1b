package main

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/engine/podlinks"
	"github.com/netverdict/netverdict/policy"
)

// bridges are those that pods of this node share. Frames on them are not routed: pods
// reach each other by addresses that no policy can be about, and, if the kernel does
// not show such frames to the rules, whatever policies say.
type bridges struct {
	mu    sync.Mutex // one update at a time
	found atomic.Pointer[[]podlinks.Bridge]
	apart atomic.Bool   // the rules keep pods on them apart
	again chan struct{} // look for bridges
}

// watchBridges keeps the rules' set of bridges up to date until ctx ends.
func (a *agent) watchBridges(ctx context.Context, e judge) error {
	a.keepUp(ctx, keepApart, a.bridges.again, func() error { return a.updateBridges(e) })
	return nil
}

const keepApart = "keep the pods of one bridge apart"

// followBridges does at once what a new tree changes: the first policy that isolates a
// pod of this node, and the end of the last one. The first pod may come with the
// bridge.
func (a *agent) followBridges(e judge, t *policy.Tree) {
	switch found := a.bridges.found.Load(); {
	case found == nil: // nothing is enforced yet, or only audited
	case isolates(t) != a.bridges.apart.Load():
		a.warn(keepApart, a.updateBridges(e))
	case len(*found) == 0:
		select {
		case a.bridges.again <- struct{}{}:
		default:
		}
	}
}

// updateBridges looks for bridges, and has the rules keep their pods apart if the tree
// in force isolates any.
func (a *agent) updateBridges(e judge) error {
	a.bridges.mu.Lock()
	defer a.bridges.mu.Unlock()
	if e, ok := e.(*engine.Engine); ok && e.Passed() {
		return nil // the set is another agent's, who may know a newer tree
	}
	t, _ := e.Tree()
	found, err := podlinks.Bridges(t.LocalPodCIDRs(), slices.Collect(t.Locals()))
	if err != nil {
		return err
	}
	if old := a.bridges.found.Swap(&found); old == nil || !slices.Equal(*old, found) {
		a.noteUnseen(found)
	}
	apart := isolates(t)
	var names []string
	if apart {
		for _, b := range found {
			names = append(names, b.Name)
		}
	}
	if err := a.rules.SetBridges(names); err != nil {
		return err
	}
	a.bridges.apart.Store(apart)
	return nil
}

// isolates reports whether a tree isolates some pod of this node. As long as there is
// none, what pods do among each other is nobody's business.
func isolates(t *policy.Tree) bool {
	for _, d := range policy.Directions {
		for range t.Policed(d) {
			return true
		}
	}
	return false
}

// noteUnseen reports bridges on which nothing is enforced.
func (a *agent) noteUnseen(found []podlinks.Bridge) {
	for _, sysctl := range unseenSysctls(found, a.options.hook.IPv4, a.options.hook.IPv6) {
		a.log.Error("pods on one bridge reach each other WHATEVER POLICIES SAY: the kernel does not show their packets to the rules (load the module br_netfilter and set the sysctl to 1)",
			"sysctl", sysctl.name, "bridges", sysctl.bridges)
	}
	if slices.ContainsFunc(found, func(b podlinks.Bridge) bool { return b.UnseenTagged }) {
		a.log.Warn("pods on one bridge that may send raw packets (CAP_NET_RAW) evade policies with VLAN-tagged frames", "sysctl", taggedSysctl)
	}
}

// taggedSysctl shows them to the rules.
const taggedSysctl = "net.bridge.bridge-nf-filter-vlan-tagged"

// unseenSysctl is one that hides bridges from the rules of a family.
type unseenSysctl struct {
	name    string
	bridges []string
}

func unseenSysctls(found []podlinks.Bridge, v4, v6 bool) (all []unseenSysctl) {
	for _, family := range []struct {
		sysctl string
		wanted bool
		unseen func(podlinks.Bridge) bool
	}{
		{"net.bridge.bridge-nf-call-iptables", v4, func(b podlinks.Bridge) bool { return b.Unseen4 }},
		{"net.bridge.bridge-nf-call-ip6tables", v6, func(b podlinks.Bridge) bool { return b.Unseen6 }},
	} {
		s := unseenSysctl{name: family.sysctl}
		for _, b := range found {
			if family.wanted && family.unseen(b) {
				s.bridges = append(s.bridges, b.Name)
			}
		}
		if len(s.bridges) > 0 {
			all = append(all, s)
		}
	}
	return all
}

// BridgeStatus is about the bridges that pods of this node share.
type BridgeStatus struct {
	Names []string `json:"names"`
	// Unseen are sysctls that would have to be 1 for policies to be enforced between
	// pods on these bridges.
	Unseen []string `json:"unseen,omitempty"`
	// UnseenTagged: pods with CAP_NET_RAW evade policies with VLAN-tagged frames.
	UnseenTagged bool `json:"unseenTagged"`
}

// bridgeStatus is nil where pods share no bridge.
func (a *agent) bridgeStatus() *BridgeStatus {
	found := a.bridges.found.Load()
	if found == nil || len(*found) == 0 {
		return nil
	}
	s := &BridgeStatus{}
	for _, b := range *found {
		s.Names = append(s.Names, b.Name)
		s.UnseenTagged = s.UnseenTagged || b.UnseenTagged
	}
	for _, sysctl := range unseenSysctls(*found, a.options.hook.IPv4, a.options.hook.IPv6) {
		s.Unseen = append(s.Unseen, sysctl.name)
	}
	return s
}

func (s *BridgeStatus) text() string {
	names := strings.Join(s.Names, ", ")
	if len(s.Unseen) > 0 {
		return "pods on " + names + " reach each other WHATEVER POLICIES SAY: " + strings.Join(s.Unseen, " and ") + " must be 1"
	}
	if s.UnseenTagged {
		return "pods share " + names + "; those with CAP_NET_RAW evade policies with VLAN-tagged frames (" + taggedSysctl + " should be 1)"
	}
	return "pods share " + names
}
