package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/netverdict/netverdict/bench/peers/load"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 && args[0] == loadVerb {
		return runLoad(os.Stdout, args[1:])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) > 0 && args[0] == acceptVerb {
		return acceptWithCallback(ctx)
	}
	s := &suite{out: os.Stdout, log: os.Stderr}
	var variants, scenarios string
	f := flag.NewFlagSet("peers", flag.ExitOnError)
	f.IntVar(&s.rounds, "rounds", 5, "rounds; each runs everything once")
	f.DurationVar(&s.lasting, "time", 2*time.Second, "how long one measurement lasts")
	f.StringVar(&variants, "variants", "all", "comma-separated `names`; all, or one of the groups "+strings.Join(groupNames(), ", "))
	f.StringVar(&scenarios, "scenarios", "all", "comma-separated `names`, or all")
	f.StringVar(&s.binary, "netverdict", "", "`path` of the netverdict binary to measure")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("argument %q: want flags only", f.Arg(0))
	}
	if s.binary == "" {
		return errors.New("-netverdict is missing: build it with make build and give bin/netverdict")
	}
	if s.rounds < 1 || s.lasting <= 0 {
		return fmt.Errorf("-rounds %d -time %v: want at least 1 and more than 0", s.rounds, s.lasting)
	}
	var err error
	if s.variants, err = chooseVariants(variants, s.all()); err != nil {
		return err
	}
	if s.scenarios, err = chooseScenarios(scenarios); err != nil {
		return err
	}
	return s.run(ctx)
}

// loadVerb is the first argument of processes that make traffic.
const loadVerb = "load"

// runLoad is such a process: PROGRAM ARGUMENT…, as loadCommand puts them.
func runLoad(w io.Writer, args []string) error {
	f := flag.NewFlagSet(loadVerb, flag.ContinueOnError)
	program := f.String("program", "", "connect, latency, send, serve or stream")
	to := f.String("to", "", "address and port")
	threads := f.Int("threads", 1, "threads")
	rate := f.Int("rate", 1, "connections per second")
	lasting := f.Duration("time", 0, "how long")
	flood := load.Flood{}
	f.TextVar(&flood.Src, "src", netip.Addr{}, "source address")
	f.BoolVar(&flood.SYN, "syn", false, "TCP SYN")
	f.IntVar(&flood.SrcPorts, "src-ports", 1, "source ports")
	f.IntVar(&flood.DstPorts, "dst-ports", 1, "destination ports")
	f.IntVar(&flood.Packets, "packets", 0, "packets")
	accept := f.Uint("accept", 0, "port to accept on")
	sink := f.Uint("sink", 0, "port to read from")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *program == "serve" {
		return load.Serve(w, uint16(*accept), uint16(*sink))
	}
	dst, err := netip.ParseAddrPort(*to)
	if err != nil {
		return fmt.Errorf("-to %q: %w", *to, err)
	}
	switch *program {
	case "connect":
		return load.Connect(w, dst, *threads, *lasting)
	case "latency":
		return load.Latency(w, dst, *rate, *lasting)
	case "stream":
		return load.Stream(w, dst, *lasting)
	case "send":
		flood.Dst, flood.FirstDstPort, flood.FirstSrcPort = dst.Addr(), dst.Port(), firstSrcPort
		flood.Lasting = *lasting
		return load.Send(w, &flood)
	}
	return fmt.Errorf("-program %q is not known", *program)
}

// loadArgs renders arguments for runLoad: name, value, name, value …
func loadArgs(program string, pairs ...any) []string {
	args := []string{loadVerb, "-program=" + program}
	for i := 0; i+1 < len(pairs); i += 2 {
		args = append(args, fmt.Sprintf("-%v=%v", pairs[i], pairs[i+1]))
	}
	return args
}

// choose picks named items in the order given.
func choose[T any](what, list string, all []T, name func(T) string) ([]T, error) {
	if list == "all" {
		return all, nil
	}
	var chosen []T
	for _, want := range strings.Split(list, ",") {
		found := false
		for _, item := range all {
			if name(item) == want {
				chosen, found = append(chosen, item), true
			}
		}
		if !found {
			return nil, fmt.Errorf("-%s %q: want some of %s", what, want, strings.Join(namesOf(all, name), ", "))
		}
	}
	return chosen, nil
}

func namesOf[T any](all []T, name func(T) string) (names []string) {
	for _, item := range all {
		names = append(names, name(item))
	}
	return names
}

func itoa(n int) string { return strconv.Itoa(n) }
