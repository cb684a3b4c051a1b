package metrics

import (
	"flag"
	"os"
	"regexp"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "write deploy/metrics.md")

const tableFile = "../../deploy/metrics.md"

const tableHead = `# Metrics

What an agent serves on ` + "`--metrics-address`" + `, at ` + "`/metrics`" + `: these, and the usual ` + "`go_`" + ` and ` + "`process_`" + ` metrics. Totals count since the agent
started. Histograms come as classic ones, and as native ones to a Prometheus that asks for them (` + "`scrape_native_histograms`" + `, or
` + "`--enable-feature=native-histograms`" + ` before version 3.8).

Generated from engine/metrics: change definitions.go there, then run ` + "`go generate ./engine/metrics`" + `. DO NOT EDIT.

`

// TestTableIsCurrent: deploy/metrics.md says what the code says.
func TestTableIsCurrent(t *testing.T) {
	t.Parallel()
	want := tableHead + Table()
	if *update {
		if err := os.WriteFile(tableFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(tableFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the code says: run go generate ./engine/metrics", tableFile)
	}
}

// TestNames: the conventions that promlint does not check.
func TestNames(t *testing.T) {
	t.Parallel()
	label := regexp.MustCompile(`^[a-z]+$`)
	names := Names()
	for _, d := range definitions {
		for _, l := range d.labels {
			if !label.MatchString(l) {
				t.Errorf("%s: label %q", d.name, l)
			}
		}
		if d.help == "" || !slices.Contains([]byte{'.', ')'}, d.help[len(d.help)-1]) {
			t.Errorf("%s: help %q is no sentence", d.name, d.help)
		}
	}
	slices.Sort(names)
	if unique := slices.Compact(slices.Clone(names)); len(unique) != len(names) {
		t.Errorf("%d names, %d of them different", len(names), len(unique))
	}
}
