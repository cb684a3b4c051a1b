//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/netverdict/netverdict/deploy/conformance/rig"
	"github.com/netverdict/netverdict/deploy/conformance/suite"
)

const (
	// repository is the tree that is tested; this program runs in its own directory.
	repository = "../.."
	// stopLimit is how long a run may take to end when told to.
	stopLimit = 60 * time.Second
)

// column is one run of the tests: a cluster, with or without agents.
type column struct {
	family  rig.Family
	enforce bool
}

func (c column) String() string {
	if c.enforce {
		return string(c.family)
	}
	return string(c.family) + ", no agent"
}

// file is the column as a part of file names.
func (c column) file() string {
	if c.enforce {
		return strings.ToLower(string(c.family))
	}
	return strings.ToLower(string(c.family)) + "-no-agent"
}

// columns are those of the command line, enforcing ones first.
func columns(o *options) ([]column, error) {
	var out []column
	for enforcement := range strings.SplitSeq(o.enforcement, ",") {
		if enforcement != "on" && enforcement != "off" {
			return nil, fmt.Errorf("-enforcement %q: want on, off or on,off", enforcement)
		}
		for family := range strings.SplitSeq(o.families, ",") {
			f := rig.Family(family)
			if f != rig.IPv4 && f != rig.IPv6 {
				return nil, fmt.Errorf("-families %q: want IPv4, IPv6 or IPv4,IPv6", family)
			}
			out = append(out, column{family: f, enforce: enforcement == "on"})
		}
	}
	return out, nil
}

// run runs the columns, one after the other: they share two cores, and tests have
// deadlines.
func run(ctx context.Context, o *options, dir string, programs map[string]string) error {
	cols, err := columns(o)
	if err != nil {
		return err
	}
	if err := quiet(filepath.Join(dir, "kubelets.log")); err != nil {
		return err
	}
	what, err := tested(ctx, programs["netverdict"])
	if err != nil {
		return err
	}
	rep := newReport(cols, what)
	for _, c := range cols {
		begin := time.Now()
		if err := runColumn(ctx, o, c, rep, filepath.Join(dir, c.file()), programs); err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
		rep.took[c] = time.Since(begin)
		fmt.Printf("%-15s %s in %s\n", c, rep.count(c), rep.took[c].Round(time.Second))
	}
	if o.results != "" {
		if err := rep.write(o.results); err != nil {
			return err
		}
	}
	return rep.verdict(os.Stdout, o.focus == everything && o.skip == "")
}

// quiet sends what the Kubernetes libraries in this process log to a file: they log
// every step.
func quiet(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(f, nil)))
	return nil
}

// runColumn starts a cluster, runs the tests and ends it.
func runColumn(ctx context.Context, o *options, c column, rep *report, dir string, programs map[string]string) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "conformance: %s: start a cluster\n", c)
	r, err := rig.Start(ctx, rig.Options{
		Dir: dir, Primary: c.family, Enforce: c.enforce, Programs: programs,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Stop()) }()
	if o.upstream {
		fmt.Fprintf(os.Stderr, "conformance: %s: upstream's tests\n", c)
		results, err := upstream(ctx, o, r, c, dir, programs)
		if err != nil {
			return err
		}
		rep.add(c, results)
	}
	if o.own {
		fmt.Fprintf(os.Stderr, "conformance: %s: our tests\n", c)
		rep.add(c, ownResults(suite.Run(ctx, r)))
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return r.Healthy() // an agent that died and a test that passed do not go together
}

// ownResults are ours in the form of upstream's.
func ownResults(in []suite.Result) []result {
	var out []result
	for _, r := range in {
		res := result{suite: ours, name: r.Name, outcome: passed, took: r.Took}
		if r.Err != nil {
			res.outcome, res.message, res.leak = failed, r.Err.Error(), errors.Is(r.Err, suite.ErrPasses)
		}
		out = append(out, res)
	}
	return out
}

// tail copies the last bytes of a file.
func tail(w io.Writer, path string, limit int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := f.Seek(max(0, info.Size()-limit), io.SeekStart); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}
