package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/pprof/profile"
)

// example is 3 s of main → serve, of which 1 s in an inlined read, and 1 s of gc.
func example() *profile.Profile {
	function := func(id uint64, name string) *profile.Function { return &profile.Function{ID: id, Name: name} }
	main, serve, read, gc := function(1, "main.main"), function(2, "x/netverdict/engine.(*T[go.shape]).serve"), function(3, "syscall.read"), function(4, "runtime.gc")
	at := func(id uint64, inner ...*profile.Function) *profile.Location {
		l := &profile.Location{ID: id}
		for _, f := range inner {
			l.Line = append(l.Line, profile.Line{Function: f})
		}
		return l
	}
	mainAt, serveAt, readAt, gcAt := at(1, main), at(2, serve), at(3, read, serve), at(4, gc)
	return &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}},
		Function:   []*profile.Function{main, serve, read, gc},
		Location:   []*profile.Location{mainAt, serveAt, readAt, gcAt},
		Sample: []*profile.Sample{
			{Location: []*profile.Location{serveAt, mainAt}, Value: []int64{1, 2e9}},
			{Location: []*profile.Location{readAt, mainAt}, Value: []int64{1, 1e9}},
			{Location: []*profile.Location{gcAt}, Value: []int64{1, 1e9}},
		},
	}
}

func TestFolded(t *testing.T) {
	t.Parallel()
	const want = `main.main;x/netverdict/engine.(*T[go.shape]).serve 2000000
main.main;x/netverdict/engine.(*T[go.shape]).serve;syscall.read 1000000
runtime.gc 1000000
`
	if got := string(folded(fold(example()))); got != want {
		t.Errorf("stacks\n%s\nwant\n%s", got, want)
	}
}

func TestHottest(t *testing.T) {
	t.Parallel()
	const want = `   self    with  of 4.00 s of CPU time
  50.0%   75.0%  x/netverdict/engine.(*T[go.shape]).serve
  25.0%   25.0%  runtime.gc
`
	if got := hottest(example(), 2); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestFlameGraph: it is XML, and every function has a frame as wide as its time.
func TestFlameGraph(t *testing.T) {
	t.Parallel()
	svg := string(flameGraph(fold(example())))
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
	}
	for _, want := range []string{
		`<title>main.main: 75.00%, 3.000 s</title><rect x="0.0" y="17" width="1050.0"`,
		`<title>runtime.gc: 25.00%, 1.000 s</title><rect x="1050.0" y="17" width="350.0"`,
		`<title>syscall.read: 25.00%, 1.000 s</title><rect x="0.0" y="51" width="350.0"`,
		`>engine.(*T[go.shape]).serve</text>`,
	} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %s in\n%s", want, svg)
		}
	}
}

func TestEmptyProfile(t *testing.T) {
	t.Parallel()
	p := example()
	p.Sample = nil
	var raw strings.Builder
	if err := p.Write(&raw); err != nil {
		t.Fatal(err)
	}
	if err := report([]byte(raw.String()), t.TempDir(), io.Discard); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("report: %v", err)
	}
}
