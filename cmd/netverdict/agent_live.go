package main

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/netverdict/netverdict/engine/pause"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// confineTo is to how many addresses a change is confined: those of a few pods that
// come or go at once. To search the kernel's memory for more takes longer than to
// ask about everything again.
const confineTo = 8

// liveOptions are the flags about what happens while things change: pods that
// start, agents that come and go, floods.
type liveOptions struct {
	holdRemote time.Duration
	askLimit   uint32
}

func (o *liveOptions) addFlags(f *pflag.FlagSet) {
	f.DurationVar(&o.holdRemote, "hold-remote", time.Second, "how long packets wait that would be denied, while an address of another node's pod range has no known pod; 0 denies them at once")
	f.Uint32Var(&o.askLimit, "ask-limit", 3000, "new connections a second of one source address that are asked about, more are dropped, so that a flood leaves room for others; 0 is no limit")
}

func (o *liveOptions) validate() error {
	if o.holdRemote < 0 {
		return fmt.Errorf("--hold-remote %v: want 0 or more", o.holdRemote)
	}
	return nil
}

// podStart says what happens to packets of this node's pods that are not known
// yet, as status shows it: that they are held takes ranges which the addresses of the
// known ones are in. A CNI plugin may have addresses of its own, and leave the Node's
// spec.podCIDRs aside.
func podStart(ranges []netip.Prefix, known iter.Seq[netip.Addr]) (state string, outside netip.Addr) {
	if len(ranges) == 0 {
		return podStartOpen, netip.Addr{}
	}
	for a := range known {
		if !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) }) {
			return podStartPartly, a
		}
	}
	return podStartHeld, netip.Addr{}
}

const (
	podStartHeld   = "held"
	podStartPartly = "partly"
	podStartOpen   = "open"
)

// podStartText explains it to people.
func podStartText(state string) string {
	switch state {
	case podStartOpen:
		return "open until the pod is known: this node's pod ranges are not (spec.podCIDRs, --pod-cidr)"
	case podStartPartly:
		return "open until the pod is known, outside of this node's pod ranges, where it has pods: give all of them with --pod-cidr"
	}
	return "packets of pods that are not known yet are held"
}

// localAddrs are the addresses of the pods of this node.
func localAddrs(s *policy.Snapshot) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, p := range s.Pods {
			if p.HostNetwork || p.Phase == policy.PhaseEnded || s.Local != nil && !s.Local(p) {
				continue
			}
			for _, a := range p.Addrs {
				if !yield(a) {
					return
				}
			}
		}
	}
}

// notePodRanges warns when a pod of this node is open until it is known, because
// not all of the node's pod ranges are: once, and again when that has changed. An
// audit opens and holds nothing.
func (a *agent) notePodRanges(s *policy.Snapshot) {
	now, outside := podStart(s.LocalPodCIDRs, localAddrs(s))
	if now == a.podStart || a.options.mode.audits() {
		return
	}
	switch {
	case now == podStartOpen:
		a.log.Warn("a pod that starts is open until it is known: no Node says which addresses this node's pods get (spec.podCIDRs); some cloud networks do not tell: give --pod-cidr", "node", a.options.nodeName)
	case now == podStartPartly:
		a.log.Warn("a pod that starts outside of this node's pod ranges is open until it is known, and there are such pods: give all ranges with --pod-cidr", "ranges", s.LocalPodCIDRs, "outside", outside)
	case a.podStart != "":
		a.log.Info("packets of pods that are not known yet are held from now on", "ranges", s.LocalPodCIDRs)
	}
	a.podStart = now
}

// noteNodeName warns when nothing says that there is a node of this name, once: a
// mistyped name polices nobody.
func (a *agent) noteNodeName(s *policy.Snapshot) {
	name := a.options.nodeName
	unknown := name != "" && !hasNode(s, name)
	if unknown && !a.nodeUnknown {
		a.log.Warn("nothing is policed: there is no Node of this name, and no pod runs there; is --node-name right?", "node", name)
	}
	a.nodeUnknown = unknown
}

// dropsEvery is how often drops are looked for, and alarmEvery how often they are
// reported at most.
const (
	dropsEvery = 5 * time.Second
	alarmEvery = time.Minute
)

// drops are packets that the kernel dropped, or let pass unjudged with
// --queue-bypass, because a queue was full or its reader too slow.
type drops struct{ full, buffer, overruns uint64 }

// watchDrops reports packets that nobody could judge, until ctx ends. The kernel's
// counters have 32 bits, and come round.
func (a *agent) watchDrops(ctx context.Context, queues []queue.Source) error {
	before := make([]queue.Stats, len(queues))
	var fresh drops
	var reported time.Time
	for pause.For(ctx, dropsEvery) {
		for i, q := range queues {
			now := q.Stats()
			fresh.full += uint64(now.Kernel.QueueDropped - before[i].Kernel.QueueDropped)
			fresh.buffer += uint64(now.Kernel.UserDropped - before[i].Kernel.UserDropped)
			fresh.overruns += now.Overruns - before[i].Overruns
			before[i] = now
		}
		if fresh == (drops{}) || time.Since(reported) < alarmEvery {
			continue
		}
		a.log.Error("packets were not judged: there were more than this agent can take (see --ask-limit, --queue-length and --queues)",
			"queueFull", fresh.full, "bufferFull", fresh.buffer, "overruns", fresh.overruns)
		fresh, reported = drops{}, time.Now()
	}
	return nil
}
