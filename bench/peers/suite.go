package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// suite is one run of the program.
type suite struct {
	out, log  io.Writer
	rounds    int
	lasting   time.Duration
	variants  []variant
	scenarios []scenario
	binary    string // of netverdict
	dir       string // scratch
}

// run measures round after round.
func (s *suite) run(ctx context.Context) (err error) {
	if s.dir, err = os.MkdirTemp("", "peers"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	st, err := newStage(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.lab.Close()) }()
	for round := range s.rounds {
		for i := range s.variants {
			fmt.Fprintf(s.log, "round %d of %d: %s\n", round+1, s.rounds, s.variants[i].name)
			if err := s.measure(ctx, st, &s.variants[i]); err != nil {
				return fmt.Errorf("%s: %w", s.variants[i].name, err)
			}
		}
	}
	return nil
}

// measure runs the scenarios under one variant.
func (s *suite) measure(ctx context.Context, st *stage, v *variant) (err error) {
	r, err := v.start(ctx, st)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	for i := range s.scenarios {
		if !v.runs(&s.scenarios[i]) {
			continue
		}
		if err := s.scenario(ctx, st, v, r, &s.scenarios[i]); err != nil {
			return fmt.Errorf("%s: %w", s.scenarios[i].name, explain(err))
		}
	}
	return ctx.Err()
}

// scenario measures one scenario and prints its line.
func (s *suite) scenario(ctx context.Context, st *stage, v *variant, r *running, sc *scenario) error {
	if err := st.settle(ctx); err != nil {
		return err
	}
	before, err := cpuTime(r.pids)
	if err != nil {
		return err
	}
	began := time.Now()
	m, err := sc.run(ctx, st, s.lasting)
	if err != nil {
		return err
	}
	took := time.Since(began)
	after, err := cpuTime(r.pids)
	if err != nil {
		return err
	}
	if len(r.pids) > 0 {
		used := after - before
		m.metrics = append(m.metrics, metric{used.Seconds() / took.Seconds(), "agent-cores"},
			metric{float64(used.Nanoseconds()) / float64(m.ops), "agent-ns/op"})
	}
	return s.print(v, sc, &m)
}

// print writes a line in the benchmark format (go.dev/design/14313-benchmark-format).
func (s *suite) print(v *variant, sc *scenario, m *measurement) error {
	line := fmt.Sprintf("BenchmarkNet/%s/%s %d %.1f ns/op", sc.name, v.name, m.ops, float64(m.elapsed.Nanoseconds())/float64(m.ops))
	for _, x := range m.metrics {
		line += fmt.Sprintf(" %.6g %s", x.value, x.unit)
	}
	_, err := fmt.Fprintln(s.out, line)
	return err
}

// explain adds what a command printed before it failed.
func explain(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return err
}
