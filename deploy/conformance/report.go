//go:build linux

package main

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/netverdict/netverdict/kube/kubetest"
)

// theirs and ours are the suites.
const (
	theirs = "upstream"
	ours   = "netverdict's own"
)

// outcome of a test. The zero outcome is notRun.
type outcome int

const (
	notRun outcome = iota
	passed
	failed
)

func (o outcome) String() string {
	return map[outcome]string{notRun: "skipped", passed: "passed", failed: "failed"}[o]
}

// result is a test in one column.
type result struct {
	suite, name string
	outcome     outcome
	took        time.Duration
	message     string // why it failed or did not run
	leak        bool   // it failed because of what passed or did not, not for another reason
}

// report collects the columns.
type report struct {
	columns []column
	results map[column][]result
	took    map[column]time.Duration
	begun   time.Time
	tested  string // what was tested, on what
}

func newReport(columns []column, tested string) *report {
	return &report{columns: columns, results: map[column][]result{}, took: map[column]time.Duration{}, begun: time.Now(), tested: tested}
}

// tested describes netverdict, its commit and the machine. It is asked before the
// tests: their results are files of the tree, which they make a dirty one.
func tested(ctx context.Context, netverdict string) (string, error) {
	var text strings.Builder
	for _, args := range [][]string{{netverdict, "version"}, {filepath.Join(repository, ".ci", "machine")}} {
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("describe what is tested: %v: %w\n%s", args, err, out)
		}
		text.Write(out)
	}
	return text.String(), nil
}

// add takes the results of one suite.
func (r *report) add(c column, results []result) {
	slices.SortStableFunc(results, func(a, b result) int { return strings.Compare(a.name, b.name) })
	r.results[c] = append(r.results[c], results...)
}

// tally counts outcomes of a suite.
type tally struct{ passed, failed, notRun int }

func (r *report) tally(c column, suite string) tally {
	var t tally
	for i := range r.results[c] {
		if r.results[c][i].suite != suite {
			continue
		}
		switch r.results[c][i].outcome {
		case passed:
			t.passed++
		case failed:
			t.failed++
		case notRun:
			t.notRun++
		}
	}
	return t
}

func (t tally) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d not run", t.passed, t.failed, t.notRun)
}

// count is a column in one line.
func (r *report) count(c column) string {
	return fmt.Sprintf("%s: %s; %s: %s", theirs, r.tally(c, theirs), ours, r.tally(c, ours))
}

// find is a test's result in a column.
func (r *report) find(c column, suite, name string) result {
	for i := range r.results[c] {
		if res := &r.results[c][i]; res.suite == suite && res.name == name {
			return *res
		}
	}
	return result{suite: suite, name: name}
}

// names are the tests of a suite over all columns, sorted as the first has them.
func (r *report) names(suite string) []string {
	var out []string
	for _, c := range r.columns {
		for i := range r.results[c] {
			if res := &r.results[c][i]; res.suite == suite && !slices.Contains(out, res.name) {
				out = append(out, res.name)
			}
		}
	}
	return out
}

// needsNoAgent says why a test passes without enforcement, or "".
func needsNoAgent(name string) string {
	for _, h := range harmless {
		if strings.Contains(name, h.test) {
			return h.why
		}
	}
	return ""
}

// harmless tests pass without enforcement, because they deny nothing. Every other
// test must fail there.
var harmless = []struct{ test, why string }{
	{"Netpol API", "the API server alone answers it"},
	{"should support allow-all policy", allPasses},
	{"should enforce policy to allow ingress traffic from pods in all namespaces", allPasses},
	{"should enforce policy based on any PodSelectors", "its policy lets in every pod that it has, except the target itself, which upstream does not check"},
}

const allPasses = "its policy allows everything, and it checks that everything passes"

// verdict says what went wrong: a failure with agents, a test that was left out, a
// test that cannot fail, and one that fails without agents for another reason than
// the traffic that nobody stops.
//
// complete: nothing was left out by the command line.
func (r *report) verdict(w io.Writer, complete bool) error {
	bad := 0
	for _, c := range r.columns {
		for i := range r.results[c] {
			res := &r.results[c][i]
			if wrong := res.wrong(c.enforce, complete); wrong != "" {
				bad++
				fmt.Fprintf(w, "%s: %s: %s: %s\n%s\n", wrong, c, res.suite, res.name, indent(res.message))
			}
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d tests are not as they should be (-keep DIR keeps all logs)", bad)
	}
	return nil
}

// wrong says why a result is not as it should be, or "".
func (res *result) wrong(enforce, complete bool) string {
	switch {
	case enforce && res.outcome == failed:
		return "FAIL"
	case !enforce && res.outcome == passed && needsNoAgent(res.name) == "":
		return "CANNOT FAIL: passes without an agent, too"
	case !enforce && res.outcome == failed && !res.leak:
		return "FAILS FOR ANOTHER REASON"
	case complete && res.outcome == notRun && notRunnable(res.name) == "":
		return "NOT RUN"
	}
	return ""
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")
}

// write writes the JUnit files and the summary.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range r.columns {
		text, err := xml.MarshalIndent(toJUnit(c, r.results[c]), "", "  ")
		if err != nil {
			return err
		}
		text = append([]byte(xml.Header), append(text, '\n')...)
		if err := os.WriteFile(filepath.Join(dir, "junit-"+c.file()+".xml"), text, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "README.md"), []byte(r.markdown()), 0o644)
}

// markdown is the summary.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Conformance of netverdict with Kubernetes NetworkPolicy\n\nWritten by `make conformance`, which took %.0f minutes; [how it works](../README.md).\n\n"+
		"Upstream: e2e.test of Kubernetes %s, unmodified. \"no agent\" is the same cluster without netverdict: what is to be denied must fail there.\n\n"+
		"```\n%s```\n\n", time.Since(r.begun).Minutes(), kubetest.Version(), r.tested)
	r.counts(&b)
	r.left(&b)
	for _, suite := range []string{theirs, ours} {
		r.table(&b, suite)
	}
	return b.String()
}

func (r *report) counts(b *strings.Builder) {
	b.WriteString("| | upstream | ours | minutes |\n|---|---|---|---|\n")
	for _, c := range r.columns {
		fmt.Fprintf(b, "| %s | %s | %s | %.1f |\n", c, r.tally(c, theirs), r.tally(c, ours), r.took[c].Minutes())
	}
	b.WriteString("\nIPv4 and IPv6 name the primary family of a dual-stack cluster: upstream's tests use it, ours use both in either.\n\n")
}

// left counts and lists what cannot run, and lists what passes without an agent, each
// with its reason.
func (r *report) left(b *strings.Builder) {
	all := r.names(theirs)
	var cannot []string
	omitted := 0
	for _, name := range all {
		switch why := notRunnable(name); {
		case why != "":
			cannot = append(cannot, fmt.Sprintf("- %s: %s\n", name, why))
		case r.find(r.columns[0], theirs, name).outcome == notRun:
			omitted++
		}
	}
	fmt.Fprintf(b, "Of upstream's %d tests %d are runnable here, of which %d were left out; %d are not:\n\n%s",
		len(all), len(all)-len(cannot), omitted, len(cannot), strings.Join(cannot, ""))
	b.WriteString("\nNeed no enforcement, so they pass without an agent:\n\n")
	for _, suite := range []string{theirs, ours} {
		for _, name := range r.names(suite) {
			if why := needsNoAgent(name); why != "" {
				fmt.Fprintf(b, "- %s: %s\n", name, why)
			}
		}
	}
	b.WriteString("\n")
}

func (r *report) table(b *strings.Builder, suite string) {
	names := r.names(suite)
	if len(names) == 0 {
		return
	}
	fmt.Fprintf(b, "## %s\n\n| test |", strings.ToUpper(suite[:1])+suite[1:])
	for _, c := range r.columns {
		fmt.Fprintf(b, " %s |", c)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(r.columns)) + "\n")
	for _, name := range names {
		fmt.Fprintf(b, "| %s |", strings.ReplaceAll(name, "|", "\\|"))
		for _, c := range r.columns {
			fmt.Fprintf(b, " %s |", r.cell(c, suite, name))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
}

func (r *report) cell(c column, suite, name string) string {
	switch res := r.find(c, suite, name); res.outcome {
	case passed:
		return fmt.Sprintf("pass %.0fs", res.took.Seconds())
	case failed:
		return fmt.Sprintf("**fail** %.0fs", res.took.Seconds())
	default:
		return "not run"
	}
}
