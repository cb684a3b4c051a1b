package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
)

// report writes what can be read from a profile, and prints the hottest functions.
func report(raw []byte, dir string, out io.Writer) error {
	p, err := profile.ParseData(raw)
	if err != nil {
		return fmt.Errorf("read the profile: %w", err)
	}
	stacks := fold(p)
	if len(stacks) == 0 {
		return errors.New("the profile is empty: the agent used no CPU time")
	}
	top := hottest(p, 15)
	fmt.Fprint(out, top)
	fmt.Fprintf(out, "in %s: cpu.pprof, cpu.svg (a flame graph), cpu.folded; go tool pprof -http : %s shows more\n", dir, filepath.Join(dir, "cpu.pprof"))
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "top.txt"), []byte(top), 0o644),
		os.WriteFile(filepath.Join(dir, "cpu.folded"), folded(stacks), 0o644),
		os.WriteFile(filepath.Join(dir, "cpu.svg"), flameGraph(stacks), 0o644))
}

// value is the CPU time of a sample in nanoseconds; the value before it counts
// samples (runtime/pprof).
func value(s *profile.Sample) int64 { return s.Value[len(s.Value)-1] }

// names are the functions of a sample from the outermost on.
func names(s *profile.Sample) (stack []string) {
	for _, l := range slices.Backward(s.Location) {
		for _, line := range slices.Backward(l.Line) { // what is inlined comes first
			stack = append(stack, line.Function.Name)
		}
	}
	return stack
}

// fold adds up samples with the same stack, its functions joined by ";".
func fold(p *profile.Profile) map[string]int64 {
	stacks := map[string]int64{}
	for _, s := range p.Sample {
		stacks[strings.Join(names(s), ";")] += value(s)
	}
	return stacks
}

// folded is the format of flamegraph.pl: microseconds behind each stack.
func folded(stacks map[string]int64) []byte {
	var b bytes.Buffer
	for _, stack := range slices.Sorted(maps.Keys(stacks)) {
		fmt.Fprintf(&b, "%s %d\n", stack, stacks[stack]/1000)
	}
	return b.Bytes()
}

// hottest lists the functions that used most time themselves, and what share of all
// was spent in them and what they call.
func hottest(p *profile.Profile, n int) string {
	self, with, total := map[string]int64{}, map[string]int64{}, int64(0)
	for _, s := range p.Sample {
		stack := names(s)
		if len(stack) == 0 {
			continue
		}
		total += value(s)
		self[stack[len(stack)-1]] += value(s)
		for _, name := range slices.Compact(slices.Sorted(slices.Values(stack))) {
			with[name] += value(s)
		}
	}
	order := slices.SortedFunc(maps.Keys(self), func(a, b string) int {
		if self[a] != self[b] {
			return int(self[b] - self[a])
		}
		return strings.Compare(a, b)
	})
	var b strings.Builder
	fmt.Fprintf(&b, "%7s %7s  of %.2f s of CPU time\n", "self", "with", float64(total)/1e9)
	for _, name := range order[:min(n, len(order))] {
		fmt.Fprintf(&b, "%6.1f%% %6.1f%%  %s\n", percent(self[name], total), percent(with[name], total), name)
	}
	return b.String()
}

func percent(part, of int64) float64 { return 100 * float64(part) / float64(of) }
