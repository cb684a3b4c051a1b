//go:build linux

package main

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netverdict/netverdict/deploy/conformance/rig"
)

var (
	withAgent    = column{rig.IPv4, true}
	withoutAgent = column{rig.IPv4, false}
)

func reportOf(on, off result) *report {
	r := newReport([]column{withAgent, withoutAgent}, "cores: 2\n")
	r.add(withAgent, []result{on})
	r.add(withoutAgent, []result{off})
	return r
}

func TestVerdict(t *testing.T) {
	const deny, allow, sctp = "Netpol should deny", "Netpol should support allow-all policy", "Netpol [Feature:SCTPConnectivity] x"
	for _, tc := range []struct {
		name     string
		on, off  outcome
		complete bool
		want     string
	}{
		{deny, passed, failed, true, ""},
		{deny, failed, failed, true, "FAIL: IPv4: "},
		{deny, passed, passed, true, "CANNOT FAIL"},
		{deny + " by accident", passed, failed, true, "FAILS FOR ANOTHER REASON"},
		{allow, passed, passed, true, ""},
		{deny, notRun, notRun, true, "NOT RUN"},
		{deny, notRun, notRun, false, ""},
	} {
		var out strings.Builder
		r := reportOf(result{suite: theirs, name: tc.name, outcome: tc.on}, result{suite: theirs, name: tc.name, outcome: tc.off, leak: tc.name == deny})
		err := r.verdict(&out, tc.complete)
		if (err != nil) != (tc.want != "") || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%+v: got %v and %q", tc, err, out.String())
		}
	}
	if reason := sctpSockets(); reason != "" {
		r := reportOf(result{suite: theirs, name: sctp}, result{suite: theirs, name: sctp})
		if err := r.verdict(new(strings.Builder), true); err != nil {
			t.Errorf("without SCTP sockets (%s): %v", reason, err)
		}
	}
}

const upstreamReport = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites><testsuite name="Kubernetes e2e suite">
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="1"></testcase>
<testcase name="[It] [sig-network] Netpol x should deny [Feature:NetworkPolicy]" status="passed" time="2.5"></testcase>
<testcase name="[It] [sig-network] Netpol x should allow [Feature:NetworkPolicy]" status="failed" time="1"><failure message="" type="failed">[FAILED] Had 3 wrong results in reachability matrix
In [It] at: somewhere</failure></testcase>
<testcase name="[It] [sig-network] Netpol y" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] [sig-network] DNS works" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
</testsuite></testsuites>`

func readReport(t *testing.T, text string) ([]result, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "junit.xml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return readJUnit(path)
}

func TestReadJUnit(t *testing.T) {
	results, err := readReport(t, upstreamReport)
	if err != nil {
		t.Fatal(err)
	}
	want := []result{
		{theirs, "Netpol x should deny [Feature:NetworkPolicy]", passed, 2500 * time.Millisecond, "", false},
		{theirs, "Netpol x should allow [Feature:NetworkPolicy]", failed, time.Second, "Had 3 wrong results in reachability matrix", true},
		{theirs, "Netpol y", notRun, 0, "skipped", false},
	}
	if len(results) != len(want) {
		t.Fatalf("got %+v, want %+v", results, want)
	}
	for i := range want {
		if results[i] != want[i] {
			t.Errorf("got %+v, want %+v", results[i], want[i])
		}
	}
}

func TestReadJUnitOfASuiteThatDidNotRun(t *testing.T) {
	broken := strings.Replace(upstreamReport, `status="passed" time="1"></testcase>`,
		`status="failed" time="1"><failure message="no API server"></failure></testcase>`, 1)
	if _, err := readReport(t, broken); err == nil || !strings.Contains(err.Error(), "no API server") {
		t.Errorf("got %v, want the failure of BeforeSuite", err)
	}
	if _, err := readReport(t, "<testsuites></testsuites>"); err == nil {
		t.Error("a report without tests was accepted")
	}
}

func TestSummary(t *testing.T) {
	r := reportOf(result{suite: theirs, name: "Netpol should deny", outcome: passed, took: time.Minute},
		result{suite: theirs, name: "Netpol should deny", outcome: failed, took: time.Second})
	text := r.markdown()
	for _, want := range []string{"cores: 2", "Of upstream's 1 tests 1 are runnable here, of which 0 were left out; 0 are not", "| Netpol should deny | pass 60s | **fail** 1s |", "| IPv4, no agent | 0 passed, 1 failed, 0 not run |"} {
		if !strings.Contains(text, want) {
			t.Errorf("the summary lacks %q:\n%s", want, text)
		}
	}
	out, err := xml.Marshal(toJUnit(withoutAgent, r.results[withoutAgent]))
	if err != nil || !strings.Contains(string(out), `failures="1"`) {
		t.Errorf("got %v and %s, want one failure", err, out)
	}
}
