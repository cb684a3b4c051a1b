package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"
	"github.com/vishvananda/netlink"

	"github.com/netverdict/netverdict/engine/podlinks"
)

// spoofOptions are the flags about sources that are not the sender's.
type spoofOptions struct{ enabled bool }

func (o *spoofOptions) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.enabled, "anti-spoof", false, "drop packets that come from a pod's interface with a source address that this node's routes have elsewhere; pods that share a bridge can still use each other's addresses")
}

// linksEvery is how often pods' interfaces are looked for, if no route changes.
const linksEvery = 5 * time.Second

// podLinks are the interfaces that anti-spoofing is about.
type podLinks struct {
	found atomic.Pointer[[]podlinks.Link]
}

// watchPodLinks keeps the rules' set of pods' interfaces up to date until ctx ends:
// at once when a route changes, as when a CNI plugin has made a pod's link, and
// before the pod runs.
func (a *agent) watchPodLinks(ctx context.Context, e judge) error {
	if !a.options.spoof.enabled {
		return nil
	}
	changed, err := routeChanges(ctx)
	a.warn("hear of routes that change; pods' interfaces are looked for every "+linksEvery.String(), err)
	a.keepUp(ctx, "keep pods from spoofing addresses", changed, func() error { return a.updatePodLinks(e) })
	return nil
}

// keepUp updates something about interfaces until ctx ends: now, when changed says so,
// and from time to time. What fails is logged when it begins to fail.
func (a *agent) keepUp(ctx context.Context, what string, changed <-chan struct{}, update func() error) {
	var failed string
	for {
		err := update()
		if text := errorText(err); text != failed {
			a.warn(what, err)
			failed = text
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(linksEvery):
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (a *agent) updatePodLinks(e judge) error {
	tree, _ := e.Tree()
	links, err := podlinks.Find(tree.LocalPodCIDRs(), slices.Collect(tree.Locals()))
	if err != nil {
		return err
	}
	names := make([]string, len(links))
	for i, l := range links {
		names[i] = l.Name
	}
	if err := a.rules.SetPodLinks(names); err != nil {
		return err
	}
	if old := a.links.found.Swap(&links); old == nil || !slices.Equal(*old, links) {
		a.log.Info("pods' interfaces", "count", len(links), "shared", sharedLinks(links))
	}
	return nil
}

func sharedLinks(links []podlinks.Link) (names []string) {
	for _, l := range links {
		if l.Shared {
			names = append(names, l.Name)
		}
	}
	return names
}

// routeChanges says, once for many, that routes have changed.
func routeChanges(ctx context.Context) (<-chan struct{}, error) {
	changed := make(chan struct{}, 1)
	updates := make(chan netlink.RouteUpdate, 64)
	if err := netlink.RouteSubscribe(updates, ctx.Done()); err != nil {
		return changed, err
	}
	go func() {
		for range updates {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}

// SpoofStatus is what anti-spoofing is about.
type SpoofStatus struct {
	// Links are how many interfaces of pods there are, and Shared those that several
	// pods share: bridges, whose pods can use each other's addresses.
	Links  int      `json:"links"`
	Shared []string `json:"shared,omitempty"`
	// Dropped packets had a source that was not their sender's.
	Dropped uint64 `json:"dropped"`
}

// spoofStatus is nil without anti-spoofing.
func (a *agent) spoofStatus() *SpoofStatus {
	if !a.options.spoof.enabled {
		return nil
	}
	s := &SpoofStatus{}
	if links := a.links.found.Load(); links != nil {
		s.Links, s.Shared = len(*links), sharedLinks(*links)
	}
	return s
}

func (s *SpoofStatus) text() string {
	text := fmt.Sprintf("%d packets dropped; %d interfaces of pods", s.Dropped, s.Links)
	if len(s.Shared) > 0 {
		text += ", of which several pods share " + strings.Join(s.Shared, ", ") + " and can use each other's addresses"
	}
	return text
}
