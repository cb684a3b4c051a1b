//go:build linux

package main

import (
	"encoding/xml"
	"fmt"
	"os"
	"strings"
	"time"
)

// junitSuites and the next are as much of the format as is needed.
type junitSuites struct {
	XMLName xml.Name     `xml:"testsuites"`
	Suites  []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Time     float64     `xml:"time,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string        `xml:"name,attr"`
	Class   string        `xml:"classname,attr"`
	Status  string        `xml:"status,attr,omitempty"`
	Time    float64       `xml:"time,attr"`
	Failure *junitMessage `xml:"failure,omitempty"`
	Error   *junitMessage `xml:"error,omitempty"`
	Skipped *junitMessage `xml:"skipped,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr,omitempty"`
	Text    string `xml:",chardata"`
}

// readJUnit reads upstream's NetworkPolicy tests from the report of e2e.test, which
// lists every test of Kubernetes.
func readJUnit(path string) ([]result, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var suites junitSuites
	if err := xml.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var out []result
	for _, s := range suites.Suites {
		for i := range s.Cases {
			c := &s.Cases[i]
			switch name, isTest := strings.CutPrefix(c.Name, "[It] "); {
			case isTest && universe.MatchString(name):
				out = append(out, fromJUnit(c, name))
			case !isTest && (c.Failure != nil || c.Error != nil):
				return nil, fmt.Errorf("upstream's suite did not run: %s: %s", c.Name, message(c))
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no NetworkPolicy test", path)
	}
	return out, nil
}

func fromJUnit(c *junitCase, name string) result {
	r := result{
		suite: theirs, name: strings.TrimPrefix(name, "[sig-network] "), outcome: passed,
		took: time.Duration(c.Time * float64(time.Second)), message: message(c),
	}
	switch {
	case c.Failure != nil || c.Error != nil:
		r.outcome, r.leak = failed, strings.Contains(r.message, "wrong results in reachability matrix")
	case c.Skipped != nil || c.Status == "skipped" || c.Status == "pending":
		r.outcome = notRun
		if reason := notRunnable(name); reason != "" {
			r.message = reason
		}
	}
	return r
}

func message(c *junitCase) string {
	for _, m := range []*junitMessage{c.Failure, c.Error, c.Skipped} {
		if m != nil && m.Message != "" {
			return strings.TrimSpace(m.Message)
		}
		if m != nil { // ginkgo says it in the text, with the place on the lines that follow
			first, _, _ := strings.Cut(strings.TrimSpace(m.Text), "\n")
			return strings.TrimPrefix(first, "[FAILED] ")
		}
	}
	return ""
}

// toJUnit is the report of one column.
func toJUnit(c column, results []result) junitSuites {
	var out junitSuites
	for _, kind := range []string{theirs, ours} {
		s := junitSuite{Name: kind + " (" + c.String() + ")"}
		for i := range results {
			r := &results[i]
			if r.suite != kind {
				continue
			}
			jc := junitCase{Name: r.name, Class: kind, Status: r.outcome.String(), Time: r.took.Seconds()}
			switch r.outcome {
			case failed:
				jc.Failure = &junitMessage{Message: r.message}
				s.Failures++
			case notRun:
				jc.Skipped = &junitMessage{Message: r.message}
				s.Skipped++
			case passed:
			}
			s.Tests++
			s.Time += jc.Time
			s.Cases = append(s.Cases, jc)
		}
		if s.Tests > 0 {
			out.Suites = append(out.Suites, s)
		}
	}
	return out
}
