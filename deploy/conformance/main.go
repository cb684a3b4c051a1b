//go:build linux

// Conformance runs the upstream Kubernetes NetworkPolicy tests, unmodified, against
// netverdict on a cluster of its own, and our tests of what upstream's do not reach.
// README.md says how and what it needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() { os.Exit(conformance(os.Args[1:])) }

// conformance returns the exit code: 0 if every test is as it should be, 1 if not or
// if it could not be told, 2 for a wrong command line.
func conformance(args []string) int {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not done after %v (see -timeout)", o.timeout))
	defer cancel()
	if os.Getenv(insideEnv) == "" {
		err = enter(ctx, o)
	} else {
		err = inside(ctx, o)
	}
	switch {
	case errors.Is(err, errTold):
		return 1
	case err != nil:
		fmt.Fprintln(os.Stderr, "conformance:", err)
		return 1
	}
	return 0
}

// everything selects the whole universe of upstream's tests.
const everything = `Netpol|\[Feature:NetworkPolicy\]`

// options of the command line.
type options struct {
	families, enforcement string
	focus, skip           string
	procs                 int
	upstream, own         bool
	results               string
	keep                  string
	timeout               time.Duration
}

func parse(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("conformance", flag.ContinueOnError)
	f.StringVar(&o.families, "families", "IPv4,IPv6", "primary families of the clusters to test on: IPv4, IPv6; both clusters are dual stack")
	f.StringVar(&o.enforcement, "enforcement", "on,off", "with (on) and without (off) an agent on the nodes")
	f.StringVar(&o.focus, "focus", everything, "upstream tests to run: a regular expression of their names")
	f.StringVar(&o.skip, "skip", "", "upstream tests not to run")
	f.IntVar(&o.procs, "procs", 6, "upstream tests that run at a time in one cluster; twice as many without agents")
	f.BoolVar(&o.upstream, "upstream", true, "run upstream's tests")
	f.BoolVar(&o.own, "own", true, "run ours")
	f.StringVar(&o.results, "results", "", "`directory` for report and JUnit files; none are written without it")
	f.StringVar(&o.keep, "keep", "", "`directory` to keep every log in; by default a temporary one, removed at the end")
	f.DurationVar(&o.timeout, "timeout", 2*time.Hour, "bound of the whole run")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	return o, nil
}
