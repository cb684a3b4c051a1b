package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/engine/flow"
)

// demo plays stories on real networks with real agents.
type demo struct {
	stories    []story
	executable string // that has the verb agent
	keep       bool   // leave the stages open until the context ends
	verbose    bool   // show allowed flows too
	out        *screen

	stages []*stage // open ones
	tally  tally
}

func newDemo(e env) *cobra.Command {
	d := &demo{out: newScreen(e.stdout)}
	var keys []string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See it work: namespaces as pods, real policies, real requests",
		Long: `Play stories on this machine, each in a small cluster of network namespaces: real
manifests, a real agent with the kernel's queue, real requests, and their flow
records. What was observed is compared with what must be. Nothing outside the
namespaces is touched, and nothing stays behind.

  a  three pods: default deny, then one path opened while the agent runs
  b  namespaces production and staging
  c  egress: only DNS, and a network with an exception and a port range
  d  the same over IPv6
  e  UDP

Needs root and the packages iptables and ipset. Exit codes: 0 everything was as
expected, 2 something was not, 1 could not run.`,
		Example: `  sudo netverdict demo
  sudo netverdict demo --story a,c --verbose
  sudo netverdict demo --story b --keep`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if d.stories, err = chooseStories(demoStories(), keys); err != nil {
				return err
			}
			if d.executable, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program, to run it as agent: %w", err)
			}
			// A terminal or a reader that goes away must not leave anything behind either.
			signal.Ignore(syscall.SIGPIPE)
			interruptible, leave := untilSignal(cmd)
			defer leave()
			ctx, stop := signal.NotifyContext(interruptible, syscall.SIGHUP)
			defer stop()
			return d.run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&keys, "story", nil, "play only these `stories`, for example a,c")
	f.BoolVar(&d.keep, "keep", false, "leave the networks and agents running until Ctrl-C, to play with")
	f.BoolVarP(&d.verbose, "verbose", "v", false, "show the flow records of allowed requests too")
	return cmd
}

// run plays all stories. It returns errAnswerNo if something was not as expected.
func (d *demo) run(ctx context.Context) (err error) {
	begun := time.Now()
	defer func() { // on panic, too
		if closing := d.closeStages(); closing != nil && errors.Is(err, errAnswerNo) {
			err = fmt.Errorf("not all was as expected, and then: %w", closing)
		} else {
			err = errors.Join(err, closing)
		}
	}()
	d.out.text(0, "Pods are network namespaces; a real agent, with the kernel's queue, judges real requests.")
	for i := range d.stories {
		if err := d.play(ctx, &d.stories[i]); err != nil {
			return fmt.Errorf("story %s: %w", d.stories[i].key, err)
		}
	}
	printSummary(d.out, d.tally, time.Since(begun))
	if d.keep {
		if err := d.stay(ctx); err != nil {
			return err
		}
	}
	if d.tally.asExpected != d.tally.checks {
		return errAnswerNo
	}
	return nil
}

// play plays one story.
func (d *demo) play(ctx context.Context, s *story) error {
	st, err := openStage(s, d.keep)
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return errors.New("only root may make network namespaces and rules: run this with sudo, or in a container started with --privileged")
	}
	if err != nil {
		return err
	}
	d.stages = append(d.stages, st)
	printTitle(d.out, s)
	printCast(d.out, s, st.snapshot)
	for n := range s.steps {
		if err := d.perform(ctx, st, n); err != nil {
			return err
		}
	}
	if d.keep {
		return nil
	}
	return d.closeStages()
}

// perform brings a step's policies into force, asks, and shows what came of it.
func (d *demo) perform(ctx context.Context, st *stage, n int) error {
	s := &st.story.steps[n]
	if s.title != "" {
		d.out.blank()
		d.out.line(2, span{fmt.Sprintf("step %d: %s", n+1, s.title), bold})
	}
	policies, err := st.enforce(ctx, n, func(node *netlab.Node, manifests string) (*demoAgent, error) {
		return d.startAgent(st, node, manifests)
	})
	if err != nil {
		return err
	}
	printPolicies(d.out, policies)
	d.out.line(2, span{"flow log", bold})
	results, err := st.ask(ctx, s)
	if err != nil {
		return err
	}
	d.out.line(2, span{"connectivity", bold})
	printTable(d.out, results)
	if d.tally.count(results) > 0 {
		d.out.line(2, span{"the agent's last messages", bold})
		for _, message := range st.agent.lastMessages() {
			d.out.text(4, "%s", message)
		}
	}
	return d.out.failure()
}

// startAgent starts an agent whose flow records are shown as they come.
func (d *demo) startAgent(st *stage, node *netlab.Node, manifests string) (*demoAgent, error) {
	log := flow.Denied
	if d.verbose {
		log = flow.All
	}
	return startAgent(node, d.executable, manifests, log, func(l flow.Line) {
		d.out.line(4, flowSpans(&l, st.name)...)
	})
}

// stay says how to play with what is running, and leaves it so until ctx ends or
// an agent does.
func (d *demo) stay(ctx context.Context) error {
	d.out.blank()
	d.out.text(0, "All is still running, until Ctrl-C; flow records go on below. To play, in another terminal:")
	for _, st := range d.stages {
		d.out.blank()
		d.out.text(2, "%s. edit the policies in  %s", st.story.key, st.dir)
		pod, url := st.example()
		d.out.text(5, "ask as a pod          ip netns exec %s curl '%s'", filepath.Base(pod.Path()), url)
		d.out.text(5, "look at the rules     ip netns exec %s iptables -t mangle -vnL", filepath.Base(st.node.Path()))
	}
	agents, all := errgroup.WithContext(ctx)
	for _, st := range d.stages {
		agents.Go(func() error {
			select {
			case <-st.agent.ended:
				return fmt.Errorf("story %s: %w", st.story.key, st.agent.alive())
			case <-all.Done():
				return nil
			}
		})
	}
	return agents.Wait()
}

func (d *demo) closeStages() error {
	var err error
	for _, st := range d.stages {
		err = errors.Join(err, st.close())
	}
	d.stages = nil
	return err
}
