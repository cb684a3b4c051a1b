// The program report turns results of the program peers into the tables and
// plots of bench/README.md:
//
//	report -readme bench/README.md -plot bench/connects.svg results.txt…
//
// It replaces what is between the lines <!-- peers --> and <!-- /peers -->.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/perf/benchfmt"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	f := flag.NewFlagSet("report", flag.ExitOnError)
	readme := f.String("readme", "", "`path` of the Markdown file to change")
	plot := f.String("plot", "", "`path` of the SVG file to write")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *readme == "" || *plot == "" || f.NArg() == 0 {
		return errors.New("usage: report -readme FILE -plot FILE results…")
	}
	r, err := read(f.Args())
	if err != nil {
		return err
	}
	if err := drawScale(r, *plot); err != nil {
		return err
	}
	link, err := filepath.Rel(filepath.Dir(*readme), *plot)
	if err != nil {
		return err
	}
	return replace(*readme, r.markdown()+"\n![connections per second by number of rules]("+link+")\n")
}

const begin, end = "<!-- peers -->\n", "<!-- /peers -->"

// replace puts text between the markers of a file.
func replace(path, text string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(old), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		return fmt.Errorf("%s: has no lines %q and %q to put the tables between", path, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(path, []byte(before+begin+text+end+after), 0o644) //nolint:gosec // the file that the flag names
}

// key names one measured value.
type key struct{ scenario, variant, unit string }

// results are the values of every round.
type results struct {
	values   map[key][]float64
	variants []string // in the order of the file
	source   []string
}

const prefix = "Net/"

// read collects the lines of the program peers, and of its Go benchmarks.
func read(paths []string) (*results, error) {
	r := &results{values: map[key][]float64{}, source: paths}
	files := benchfmt.Files{Paths: paths}
	seen := map[string]bool{}
	for files.Scan() {
		switch rec := files.Result().(type) {
		case *benchfmt.SyntaxError:
			return nil, rec
		case *benchfmt.Result:
			r.add(rec, seen)
		}
	}
	if err := files.Err(); err != nil {
		return nil, err
	}
	if len(r.variants) == 0 {
		return nil, fmt.Errorf("%s: no line begins with Benchmark%s", strings.Join(paths, ", "), prefix)
	}
	return r, nil
}

func (r *results) add(rec *benchfmt.Result, seen map[string]bool) {
	name, ok := strings.CutPrefix(string(rec.Name), prefix)
	scenario, variant, found := strings.Cut(name, "/")
	if !ok || !found {
		r.addEvaluate(rec)
		return
	}
	if !seen[variant] {
		seen[variant] = true
		r.variants = append(r.variants, variant)
	}
	for _, v := range rec.Values {
		// benchfmt turns ns/op into sec/op; others come as they are.
		k := key{scenario, variant, v.Unit}
		r.values[k] = append(r.values[k], v.Value)
	}
}

// addEvaluate takes the lines of BenchmarkEvaluate: outcome/policies/engine-cores.
func (r *results) addEvaluate(rec *benchfmt.Result) {
	parts := strings.Split(string(rec.Name), "/")
	if len(parts) != 4 || parts[0] != "Evaluate" {
		return
	}
	if v, ok := rec.Value("sec/op"); ok {
		engine := strings.TrimRight(parts[3], "0123456789")
		k := key{parts[1] + "/" + parts[2], strings.TrimSuffix(engine, "-"), "sec/op"}
		r.values[k] = append(r.values[k], v)
	}
}
