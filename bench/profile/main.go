// Command profile takes a CPU profile of an agent under load, for `make profile`.
//
//	client ─ new TCP connections, all decided in user space ─▶ node: agent ─▶ server
//	scanner ─ denied SYNs to ever other ports ──────────────▶
//
// The agent is a process of its own with 1,000 policies and 10,000 pods loaded, on a
// node made of network namespaces. It writes, into -out:
//
//	cpu.pprof    for go tool pprof
//	cpu.folded   stacks, one a line, for flamegraph.pl or speedscope
//	cpu.svg      a flame graph
//	top.txt      the hottest functions, which it prints as well
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

type options struct {
	agent   string
	out     string
	seconds int
	clients int
}

func main() {
	var o options
	flag.StringVar(&o.agent, "netverdict", "bin/netverdict", "the `program` to measure")
	flag.StringVar(&o.out, "out", "bin/profile", "`directory` for the results")
	flag.IntVar(&o.seconds, "seconds", 15, "how long to measure")
	flag.IntVar(&o.clients, "clients", 16, "connections that are opened at a time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, &o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "profile:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options) error {
	if o.seconds < 1 || o.clients < 1 {
		return fmt.Errorf("-seconds %d, -clients %d: want 1 or more of each", o.seconds, o.clients)
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	s, err := newStage(ctx, o.agent)
	if err != nil {
		return err
	}
	defer s.close()
	loaded, stopLoad := context.WithCancel(ctx)
	load := s.load(loaded, o.clients)
	raw, err := s.profile(ctx, o.seconds)
	stopLoad()
	made := load()
	if err != nil {
		return err
	}
	path := filepath.Join(o.out, "cpu.pprof")
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		return err
	}
	fmt.Printf("%d connections and %d denied SYNs while %v were measured\n", made.connections, made.denied, time.Duration(o.seconds)*time.Second)
	return report(raw, o.out, os.Stdout)
}
