package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReport goes from raw lines to the README, twice: what it made it replaces.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	raw, readme, plot := filepath.Join(dir, "raw.txt"), filepath.Join(dir, "README.md"), filepath.Join(dir, "plot.svg")
	write(t, raw, `kernel: Linux
BenchmarkNet/connects/conntrack 3 1 ns/op 1000 connects/s
BenchmarkNet/connects/netverdict 3 1 ns/op 900 connects/s
BenchmarkNet/connects/netverdict 3 1 ns/op 100 connects/s
BenchmarkNet/connects/netverdict 3 1 ns/op 980 connects/s
BenchmarkNet/connects/iptables-10 3 1 ns/op 36300 connects/s
BenchmarkNet/connects/iptables-1000 3 1 ns/op 24900 connects/s
BenchmarkEvaluate/allow/100policies/netverdict-2 3 40 ns/op
BenchmarkEvaluate/allow/100policies/kube-network-policies-2 3 500000 ns/op
`)
	write(t, readme, "before\n"+begin+"old\n"+end+"\nafter\n")
	for range 2 {
		if err := run([]string{"-readme", readme, "-plot", plot, raw}); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"before\n" + begin, end + "\nafter\n", "Medians of 3 interleaved rounds",
		"| netverdict | 900 (0.90) |", "| iptables | 36,300,  | 24,900,  |",
		"| 100 | 40 ns | 500 µs | 12,500 × |", "(plot.svg)",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "old") {
		t.Error("the old text is still there")
	}
	if svg, err := os.ReadFile(plot); err != nil || !strings.Contains(string(svg), "<svg") {
		t.Errorf("plot: %v, %.40q", err, svg)
	}
}

func TestReportRefuses(t *testing.T) {
	dir := t.TempDir()
	empty, readme := filepath.Join(dir, "raw.txt"), filepath.Join(dir, "README.md")
	write(t, empty, "kernel: Linux\n")
	write(t, readme, "no markers\n")
	for want, args := range map[string][]string{
		"usage":               {"-readme", readme},
		"no line begins with": {"-readme", readme, "-plot", "x.svg", empty},
		"no such file":        {"-readme", readme, "-plot", "x.svg", filepath.Join(dir, "none")},
	} {
		if err := run(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
