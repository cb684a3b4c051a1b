package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/metrics"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/kube"
	"github.com/netverdict/netverdict/policy"
)

// agentOptions are the agent's flags.
type agentOptions struct {
	manifests    string
	recursive    bool
	kubeconfig   string
	health       healthAddress
	statusSocket string
	niceGiven    bool // --worker-nice was given, so it must be possible
	nodeName     string
	flowLog      flowLogOptions
	onStop       string
	unknownPod   policy.Verdict
	holdLimit    int
	holdTime     time.Duration
	cacheSize    int
	queues       uint16
	hook         hook.Config
	queue        queue.Config
	live         liveOptions
	turn         turnOptions
	metrics      metricsOptions
	node         nodeOptions
	profile      profileOptions
	hubble       hubbleOptions
	mode         modeOptions
	limits       limitOptions
	observers    observers
	reject       rejectOptions
	spoof        spoofOptions
	seccomp      seccompOptions
}

func newAgent(e env) *cobra.Command {
	o := &agentOptions{}
	cmd := &cobra.Command{
		Use:   "agent [--manifests DIR | --kubeconfig FILE]",
		Short: "Enforce policies on this host",
		Long: `Enforce NetworkPolicies on the pods of this host.

They come from a directory of manifests (Namespaces, Pods with status, Nodes and
NetworkPolicies as kubectl get -o yaml prints them), from the API server of a
kubeconfig, or, with neither, from the API server of the cluster that the agent
runs in. The source is watched. What does not load is reported, and the last
good policies stay in force.

Flow records go to standard output as JSON lines (or to --flow-log-file), messages
to standard error. Repeated denials are folded into lines with a count, port scans
too, and no more than --flow-log-rate lines are written a second.
Needs root, or CAP_NET_ADMIN and CAP_NET_RAW, and the packages iptables and ipset.

With --mode=audit nothing is enforced and nothing installed: copies of the traffic
are judged, and what would be denied is reported with the verdict audit. That needs
CAP_NET_RAW alone.`,
		Example: `  netverdict agent --manifests /etc/netverdict/manifests --node-name node-1
  netverdict agent --manifests manifests/ --flow-log all | jq .
  netverdict agent --mode audit --manifests manifests/ --node-name node-1
  netverdict agent --kubeconfig /etc/kubernetes/kubelet.conf --node-name node-1`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.niceGiven, o.seccomp.given = cmd.Flags().Changed("worker-nice"), cmd.Flags().Changed("seccomp")
			ctx, stop := untilSignal(cmd)
			defer stop()
			return o.run(ctx, e)
		},
	}
	o.addFlags(cmd)
	return cmd
}

func (o *agentOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false // by what they are about
	f.StringVar(&o.manifests, "manifests", "", "`path` of a manifest file or of a directory of them")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "`path` of a kubeconfig; without it and --manifests, the cluster that the agent runs in")
	f.BoolVarP(&o.recursive, "recursive", "R", false, "read subdirectories too")
	f.StringVar(&o.nodeName, "node-name", os.Getenv("NODE_NAME"), "enforce for the pods with this spec.nodeName (default $NODE_NAME); with manifests and without a name, for every pod")
	o.mode.addFlags(f)
	f.Var(&o.health, "health-address", "`address` to serve /healthz and /readyz on, such as 127.0.0.1:8051, or unix:PATH for netverdict probe; none by default")
	f.StringVar(&o.statusSocket, "status-socket", "", "`path` of a unix socket for netverdict status, such as "+defaultStatusSocket+"; none by default")
	o.flowLog.addFlags(cmd)
	f.StringVar(&o.onStop, "on-stop", onStopOpen, "what stays when the agent stops: open removes the rules, keep-closed leaves them and new connections wait or fail")
	o.node.addFlags(f)
	f.TextVar(&o.unknownPod, "unknown-pod", policy.Deny, "`verdict` for addresses of this node's pod range that no known pod holds: deny or allow")
	f.IntVar(&o.holdLimit, "hold-limit", 1024, "packets of such addresses that wait for their pod to become known, per queue; 0 decides them at once")
	f.DurationVar(&o.holdTime, "hold-time", 3*time.Second, "how long packets wait for their pod to become known, before --unknown-pod decides")
	o.live.addFlags(f)
	f.IntVar(&o.cacheSize, "cache-size", 0, "decisions in the flow cache (LRU) of each queue; 0 turns it off: a decision costs less than finding it in the cache (engine/README.md)")

	f.Uint16Var(&o.hook.QueueNum, "queue-num", 8050, "first NFQUEUE number")
	f.Uint16Var(&o.queues, "queues", 1, "number of queues, each with a worker thread")
	f.BoolVar(&o.hook.FailOpen, "queue-bypass", false, "fail open: let packets pass when no agent listens or the queue overflows")
	f.Uint32Var(&o.queue.MaxLen, "queue-length", 0, "packets that may wait in a queue; 0 for the default")
	f.IntVar(&o.queue.Nice, "worker-nice", -10, "scheduling priority of the worker threads, -20 to 19; 0 leaves it as it is; below 0 needs CAP_SYS_NICE")

	f.TextVar(&o.hook.Backend, "iptables-backend", hook.Auto, "`backend` of iptables: auto, nft or legacy")
	f.BoolVar(&o.hook.IPv4, "ipv4", true, "enforce for IPv4")
	f.BoolVar(&o.hook.IPv6, "ipv6", true, "enforce for IPv6")
	f.Var(newBits(&o.hook.MarkMask, hook.DefaultMarkMask), "mark-mask", "`bits` of the packet mark to use")
	f.Var(newBits(&o.hook.ConnmarkMask, hook.DefaultConnmarkMask), "connmark-mask", "`bits` of the connection mark to use")
	f.DurationVar(&o.hook.AllowTimeout, "allow-timeout", time.Minute, "how long the kernel remembers an allowed source, destination and port; 0 turns that off")
	f.DurationVar(&o.hook.DenyTimeout, "deny-timeout", 30*time.Second, "how long the kernel remembers a denied source, destination and port; 0 turns that off")
	o.turn.addFlags(f)
	o.limits.addFlags(f)
	o.reject.addFlags(f)
	o.spoof.addFlags(f)
	o.metrics.addFlags(f)
	o.profile.addFlags(f)
	o.hubble.addFlags(cmd)
	o.seccomp.addFlags(cmd)
	exclude(cmd, "manifests", "kubeconfig")
}

// observers are what tests put into an agent.
type observers struct {
	source   source             // instead of the one that flags choose
	sinks    []flow.Sink        // beside the flow log
	enforced func(*policy.Tree) // called when a tree is in force
}

const (
	onStopOpen = "open"
	onStopKeep = "keep-closed"
)

// validate checks the flags that nothing below the agent checks.
func (o *agentOptions) validate() error {
	switch {
	case o.unknownPod == policy.Audit:
		return errors.New("--unknown-pod audit: want deny or allow; it is no policy's verdict that could be audited")
	case o.onStop != onStopOpen && o.onStop != onStopKeep:
		return fmt.Errorf("--on-stop %q: want %s or %s", o.onStop, onStopOpen, onStopKeep)
	case int(o.hook.QueueNum)+2*int(o.queues) > firstReserved:
		return fmt.Errorf("--queue-num %d: two ranges of %d queues, which agents use in turn, must end below %d", o.hook.QueueNum, o.queues, firstReserved)
	case o.queues == 0:
		return errors.New("--queues 0: nobody would judge packets; want 1 or more")
	case o.holdLimit < 0:
		return fmt.Errorf("--hold-limit %d: want 0 or more packets", o.holdLimit)
	case o.holdTime < 0:
		return fmt.Errorf("--hold-time %v: want 0 or more", o.holdTime)
	case o.spoof.enabled && o.mode.audits():
		return errors.New("--anti-spoof: an audit drops nothing; it needs --mode=enforce")
	case o.cacheSize < 0:
		return fmt.Errorf("--cache-size %d: want 0 or more decisions", o.cacheSize)
	}
	return errors.Join(o.live.validate(), o.turn.validate(), o.limits.validate(), o.reject.validate(), o.mode.validate(), o.flowLog.validate(), o.metrics.validate(), o.hubble.validate(), o.profile.validate())
}

// source says where the objects come from. An agent does not start on manifests
// that do not load; for an API server that is away it will wait.
func (o *agentOptions) source() (source, error) {
	if o.observers.source != nil {
		return o.observers.source, nil
	}
	if o.manifests != "" {
		s := &manifestSource{o.manifests, kube.Options{Recursive: o.recursive}}
		_, _, err := kube.Load(s.path, s.options)
		return s, err
	}
	return newClusterSource(o.kubeconfig, o.nodeName)
}

func (o *agentOptions) run(ctx context.Context, e env) error {
	if err := o.validate(); err != nil {
		return err
	}
	o.hook.QueueCount, o.queue.FailOpen = o.queues, o.hook.FailOpen
	o.hook.AskLimit, o.hook.Answers, o.hook.AntiSpoof = o.live.askLimit, true, o.spoof.enabled
	// A reader of the flow log that goes away must not take enforcement with it.
	signal.Ignore(syscall.SIGPIPE)
	log := slog.New(slog.NewTextHandler(e.stderr, nil))
	klog.SetSlogLogger(log)
	if err := o.confine(log); err != nil {
		return err
	}

	if !o.mode.audits() && !o.niceGiven && o.queue.Nice < 0 && !mayRaisePriority() {
		log.Warn("worker threads keep the ordinary priority; under load, verdicts take longer (add CAP_SYS_NICE)")
		o.queue.Nice = 0
	}
	if o.turn.replace {
		o.turn.late = &latecomers{log: log}
		ctx = patient(ctx, o.turn.late)
	}
	for {
		a, err := o.newAgent(log)
		if err != nil {
			return err
		}
		if err = a.serve(ctx, e); !errors.Is(err, errReplaced) {
			return err
		}
		if o.turn.onReplaced == onReplacedExit {
			log.Info("another agent has taken over; this one ends", "pid", os.Getpid())
			return nil
		}
		if err := o.standby(ctx, a); err != nil {
			return ignoreEnd(ctx, err)
		}
	}
}

func (o *agentOptions) newAgent(log *slog.Logger) (*agent, error) {
	src, err := o.source()
	if err != nil {
		return nil, err
	}
	rules, err := o.prepare(log)
	if err != nil {
		return nil, err
	}
	a := &agent{options: o, log: log, source: src, rules: rules, newest: make(chan news, 1), changes: metrics.NewChanges()}
	a.bridges.again = make(chan struct{}, 1)
	a.trees.limits = policy.DefaultLimits.Times(o.limits.factor)
	a.logNode()
	return a, nil
}

// mayRaisePriority reports whether this process has CAP_SYS_NICE (capabilities(7)).
func mayRaisePriority() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 has two words for each set
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_NICE) != 0
}
