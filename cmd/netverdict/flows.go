package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/netverdict/netverdict/engine/flow"
)

// flowsOptions are the flags of the flows verb.
type flowsOptions struct {
	filters flowFilters
	output  string
	color   string
	last    int
	since   flowInstant
	until   flowInstant
}

func newFlows(e env) *cobra.Command {
	o := &flowsOptions{}
	cmd := &cobra.Command{
		Use:   "flows FILE|-",
		Short: "Show decided flows, and the policies behind them",
		Long: `Show decided flows, one a line, with the verdict and the policy and rule behind it:

  time source → destination:port/protocol VERDICT by policy (direction rule)

They are replayed from a flow log (JSON lines, as the agent and -o json write them),
from a file or, with -, from standard input.

A filter that is given several values, or several times, wants one of them; different
filters must all hold. --not inverts the next one: --not --verdict allow.

Exit codes: 0 there were such flows, 2 there were none, 1 could not find out.`,
		Example: `  kubectl -n kube-system logs ds/netverdict | netverdict flows --to-pod shop/db -
  netverdict flows --verdict deny --not --protocol udp,icmp --since 10m /var/log/netverdict/flows.jsonl`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			return o.replay(e, args[0])
		},
	}
	o.addFlags(cmd)
	return cmd
}

func (o *flowsOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	o.filters.addFlags(cmd)
	f.StringVarP(&o.output, "output", "o", "text", "`format`: text or json")
	f.StringVar(&o.color, "color", "auto", "`when` to use colours: auto (on a terminal, unless $NO_COLOR is set), always or never")
	f.IntVar(&o.last, "last", 0, "only the last `number` of flows; 0 for all")
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
	kept    []flow.Line // with --last: the newest so far, in a circle
	oldest  int         // of kept, once it is full
}

func (o *flowsOptions) newView(e env) (*flowView, error) {
	p, err := newFlowPrinter(e.stdout, o.output, o.color)
	return &flowView{options: o, printer: p}, err
}

// add shows a flow, or keeps it until the end.
func (v *flowView) add(l *flow.Line) error {
	o := v.options
	if o.since.set && l.Time.Before(o.since.Time) || o.until.set && l.Time.After(o.until.Time) || !o.filters.match(l) {
		return nil
	}
	switch {
	case o.last == 0 && v.live:
		return v.printer.printNow(l)
	case o.last == 0:
		return v.printer.print(l)
	case len(v.kept) < o.last:
		v.kept = append(v.kept, *l)
	default:
		v.kept[v.oldest] = *l
		v.oldest = (v.oldest + 1) % o.last
	}
	return nil
}

// end shows what was kept. err is why there are no more flows, or nil.
func (v *flowView) end(err error) error {
	for _, l := range slices.Concat(v.kept[v.oldest:], v.kept[:v.oldest]) {
		if printErr := v.printer.print(&l); printErr != nil {
			return printErr
		}
	}
	if flushErr := v.printer.flush(); flushErr != nil || err != nil {
		return errors.Join(err, flushErr)
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
