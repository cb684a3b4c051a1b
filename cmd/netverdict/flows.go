package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/netverdict/netverdict/engine/flow"
)

// flowsOptions are the flags of the flows verb.
type flowsOptions struct {
	agents      flowAgentOptions
	credentials flowCredentials
	filters     flowFilters
	output      string
	color       string
	follow      bool
	last        int
	since       flowInstant
	until       flowInstant
}

func newFlows(e env) *cobra.Command { return newFlowsCommand(e, &flowsOptions{}) }

func newFlowsCommand(e env, o *flowsOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "flows [FILE|-]",
		Short: "Show decided flows, and the policies behind them",
		Long: `Show decided flows, one a line, with the verdict and the policy and rule behind it:

  time source → destination:port/protocol VERDICT by policy (direction rule)

They come from the agent of this host (its --hubble-socket), from the one that --server
names, or from all agents of a cluster (--cluster, --kubeconfig, --context; over their
--hubble-listen, with mutual TLS), merged by time. Without any of these flags it is
the agent of this host if there is one, otherwise the cluster of the kubeconfig. With FILE
or - (standard input) a flow log is replayed: JSON lines, as the agent and -o json write them.

Agents remember some thousand flows; the last 20 are shown unless --last, --since or
--until say otherwise. Allowed flows are recorded only while somebody follows them
(or with --flow-log=all).

A filter that is given several values, or several times, wants one of them; different
filters must all hold. --not inverts the next one: --not --verdict allow.

Exit codes: 0 there were such flows, 2 there were none, 1 could not find out.`,
		Example: `  netverdict flows --follow --verdict deny
  netverdict flows --cluster --tls-ca ca.crt --tls-cert tls.crt --tls-key tls.key --to-pod shop/db --since 5m
  kubectl -n kube-system logs ds/netverdict | netverdict flows --to-pod shop/db -
  netverdict flows --verdict deny --not --protocol udp,icmp --since 10m /var/log/netverdict/flows.jsonl`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("%q: want one FILE at most%s", args[1], seeHelp(cmd))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			if len(args) == 1 {
				if err := notForReplay(cmd, args[0]); err != nil {
					return err
				}
				return o.replay(e, args[0])
			}
			ctx, stop := untilSignal(cmd)
			defer stop()
			return o.live(ctx, e)
		},
	}
	o.addFlags(cmd)
	return cmd
}

func (o *flowsOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false // by what they are about
	o.agents.addFlags(cmd)
	o.credentials.addFlags(cmd)
	o.filters.addFlags(cmd)
	f.StringVarP(&o.output, "output", "o", "text", "`format`: text or json")
	f.StringVar(&o.color, "color", "auto", "`when` to use colours: auto (on a terminal, unless $NO_COLOR is set), always or never")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with new flows; alone, with new flows only")
	f.IntVar(&o.last, "last", 0, "only the last `number` of flows; of a FILE, 0 is all")
	f.Var(&o.since, "since", "only flows after this `time`: 2026-11-21T09:02:04Z, or 10m ago")
	f.Var(&o.until, "until", "only flows before this `time`")
}

func (o *flowsOptions) validate() error {
	switch {
	case o.last < 0:
		return fmt.Errorf("--last %d: want 0 or more", o.last)
	case o.since.set && o.until.set && o.until.Before(o.since.Time):
		return fmt.Errorf("--until %v is before --since %v", o.until.Time, o.since.Time)
	}
	return o.filters.validate()
}

// notForReplay refuses the flags that are about running agents.
func notForReplay(cmd *cobra.Command, path string) error {
	if cmd.Flags().Changed("follow") {
		return fmt.Errorf("--follow: %s is replayed to its end; to follow a file: tail -f FILE | netverdict flows -", inputName(path))
	}
	for _, name := range []string{"server", "cluster", "kubeconfig", "context"} {
		if cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s: flows are asked of agents or replayed from %s, not both", name, inputName(path))
		}
	}
	return nil
}

func (o *flowsOptions) replay(e env, path string) error {
	v, err := o.newView(e)
	if err != nil {
		return err
	}
	v.live = path == "-"
	labels := false
	err = replay(e, path, func(l *flow.Line) error {
		labels = labels || len(l.Source.Labels)+len(l.Destination.Labels) > 0
		return v.add(l)
	})
	if o.filters.labelled() && !labels {
		fmt.Fprintf(e.stderr, "netverdict: %s: no flow in it has labels (the agent's log has none), so filters by label see none\n", inputName(path))
	}
	return v.end(err)
}

// flowView shows the flows that the flags choose.
type flowView struct {
	options *flowsOptions
	printer *flowPrinter
	live    bool        // somebody may be watching: show each at once
	kept    []flow.Line // with --last: the newest so far
	flows   int         // in kept, apart from what says that flows are missing
}

func (o *flowsOptions) newView(e env) (*flowView, error) {
	p, err := newFlowPrinter(e.stdout, o.output, o.color)
	return &flowView{options: o, printer: p}, err
}

// wants reports whether the flags choose a flow.
func (v *flowView) wants(l *flow.Line) bool {
	o := v.options
	return !(o.since.set && l.Time.Before(o.since.Time)) && !(o.until.set && l.Time.After(o.until.Time)) && o.filters.match(l)
}

// show shows a flow at once, if the flags choose it.
func (v *flowView) show(l *flow.Line) error {
	if !v.wants(l) {
		return nil
	}
	return v.printer.printNow(l)
}

// add shows a flow if the flags choose it, or keeps it for --last.
func (v *flowView) add(l *flow.Line) error {
	o := v.options
	switch {
	case !v.wants(l):
	case o.last == 0 && v.live:
		return v.printer.printNow(l)
	case o.last == 0:
		return v.printer.print(l)
	default:
		v.keep(l)
	}
	return nil
}

// keep keeps a line, and of all the last flows with what is said between them.
func (v *flowView) keep(l *flow.Line) {
	v.kept = append(v.kept, *l)
	if l.Flows() > 0 {
		v.flows++
	}
	for v.flows > v.options.last || v.flows == v.options.last && v.kept[0].Flows() == 0 {
		if v.kept[0].Flows() > 0 {
			v.flows--
		}
		v.kept = v.kept[1:]
	}
}

// showKept shows what --last has kept.
func (v *flowView) showKept() error {
	for i := range v.kept {
		if err := v.printer.print(&v.kept[i]); err != nil {
			return err
		}
	}
	v.kept, v.flows = nil, 0
	return v.printer.flush()
}

// end shows what was kept. err is why there are no more flows, or nil.
func (v *flowView) end(err error) error {
	if printErr := v.showKept(); printErr != nil || err != nil {
		return errors.Join(err, printErr)
	}
	if v.printer.flows == 0 {
		return errAnswerNo
	}
	return nil
}

// flowInstant is a time given as such, or as how long ago it was.
type flowInstant struct {
	time.Time
	set bool
}

func (i *flowInstant) String() string {
	if !i.set {
		return ""
	}
	return i.Format(time.RFC3339Nano)
}

// Type is what the help shows for a value.
func (*flowInstant) Type() string { return "time" }

// Set implements pflag.Value.
func (i *flowInstant) Set(text string) error {
	if ago, err := time.ParseDuration(text); err == nil {
		if ago < 0 {
			return errors.New("want how long ago it was, without a sign")
		}
		*i = flowInstant{time.Now().Add(-ago), true}
		return nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return errors.New("want a time such as 2026-11-21T09:02:04Z, or how long ago it was, such as 10m")
	}
	*i = flowInstant{at, true}
	return nil
}
