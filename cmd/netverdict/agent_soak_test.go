package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// `make soak` sets 30 minutes.
var soakTime = flag.Duration("soak", 6*time.Second, "how long TestSoak watches an agent for growth")

// soakSample is what an agent and the kernel hold for it at a time.
type soakSample struct {
	rss, heap                                uint64 // bytes
	goroutines, files, connections, remember int
}

// soakValue is one of them, with what may be added to it between the middle and the last third
// of a soak: a share and a constant. Before a third of a soak is as long as the value
// takes to settle, nothing follows from its growth.
type soakValue struct {
	name    string
	of      func(*soakSample) float64
	unit    float64
	share   float64
	plus    float64
	settles time.Duration
}

var soakValues = []soakValue{
	{"RSS MiB", func(s *soakSample) float64 { return float64(s.rss) }, 1 << 20, 0.10, 4 << 20, 5 * time.Minute},
	{"live heap MiB", func(s *soakSample) float64 { return float64(s.heap) }, 1 << 20, 0.10, 2 << 20, time.Minute},
	{"goroutines", func(s *soakSample) float64 { return float64(s.goroutines) }, 1, 0, 10, 0},
	{"file descriptors", func(s *soakSample) float64 { return float64(s.files) }, 1, 0, 8, 10 * time.Second},
	{"conntrack entries", func(s *soakSample) float64 { return float64(s.connections) }, 1, 0.25, 200, 5 * time.Minute}, // TIME_WAIT lasts 2, a datagram's stream 2
	{"set entries", func(s *soakSample) float64 { return float64(s.remember) }, 1, 0.25, 200, time.Minute},
}

// TestSoak: policies, pods and namespaces change ten times a second, with traffic, and
// the agent's memory, heap, goroutines, descriptors, connections and sets do not grow:
// the median of the last third is within the bounds of soakValues of that of the
// second; the first third is warm-up. The few seconds of a default run show that it
// all works, and that verdicts are right meanwhile.
func TestSoak(t *testing.T) {
	c := newChurnTrial(t, 5)
	c.start(100*time.Millisecond, *soakTime)
	every := max(*soakTime/360, 200*time.Millisecond)
	samples := make(chan []soakSample)
	go func() {
		var all []soakSample
		defer func() { samples <- all }()
		start := time.Now()
		for n := 1; time.Since(start) < *soakTime || len(all) < fewestSamples; n++ {
			time.Sleep(time.Until(start.Add(time.Duration(n) * every)))
			s, err := c.sample()
			if err != nil {
				t.Errorf("sample: %v", err)
				return
			}
			all = append(all, s)
			if *soakTime < time.Minute || n%12 == 0 {
				t.Logf("after %v: %s", time.Since(start).Round(time.Second), s)
			}
		}
	}()
	c.probe(*soakTime, 4, 25*time.Millisecond)
	all := <-samples
	c.finish()
	c.report(*soakTime)
	judgeSoak(t, all)
}

// fewestSamples make thirds that have a median. On a slow machine they take longer than
// a short soak.
const fewestSamples = 9

func judgeSoak(t *testing.T, all []soakSample) {
	t.Helper()
	if len(all) < fewestSamples {
		t.Fatalf("%d samples are too few", len(all))
	}
	third := len(all) / 3
	for _, v := range soakValues {
		middle, last := v.median(all[third:2*third]), v.median(all[2*third:])
		bound := middle*(1+v.share) + v.plus
		t.Logf("%s: median of the second third %.1f, of the last %.1f, bound %.1f", v.name, middle/v.unit, last/v.unit, bound/v.unit)
		if last > bound && v.settles <= *soakTime/3 {
			t.Errorf("%s: grew from %.1f to %.1f, more than to %.1f", v.name, middle/v.unit, last/v.unit, bound/v.unit)
		}
	}
}

func (v *soakValue) median(samples []soakSample) float64 {
	var list []float64
	for i := range samples {
		list = append(list, v.of(&samples[i]))
	}
	slices.Sort(list)
	return list[len(list)/2]
}

func (s soakSample) String() string {
	var parts []string
	for _, v := range soakValues {
		parts = append(parts, fmt.Sprintf("%s %.1f", v.name, v.of(&s)/v.unit))
	}
	return strings.Join(parts, ", ")
}

// sample measures the agent and what the kernel holds for it.
func (c *churnTrial) sample() (soakSample, error) {
	c.mu.Lock()
	s := soakSample{heap: c.size.Heap, goroutines: c.size.Goroutines}
	c.mu.Unlock()
	proc := fmt.Sprintf("/proc/%d", c.cmd.Process.Pid)
	files, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return s, err
	}
	s.files = len(files)
	statm, err := os.ReadFile(filepath.Join(proc, "statm")) // proc_pid_statm(5): size resident …
	if err != nil {
		return s, err
	}
	pages, err := strconv.ParseUint(strings.Fields(string(statm))[1], 10, 64)
	if err != nil {
		return s, err
	}
	s.rss = pages * uint64(os.Getpagesize())
	if s.connections, err = c.connections(); err != nil {
		return s, err
	}
	s.remember, err = c.setEntries()
	return s, err
}

func (c *churnTrial) connections() (n int, err error) {
	err = c.lab.node.Do(func() error {
		count, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count") // of the reader's namespace
		if err == nil {
			n, err = strconv.Atoi(string(bytes.TrimSpace(count)))
		}
		return err
	})
	return n, err
}

func (c *churnTrial) setEntries() (n int, err error) {
	out, err := c.lab.node.Command(c.t.Context(), "ipset", "list", "-t").Output()
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(out)) {
		if text, ok := strings.CutPrefix(line, "Number of entries: "); ok {
			entries, err := strconv.Atoi(strings.TrimSpace(text))
			if err != nil {
				return 0, err
			}
			n += entries
		}
	}
	return n, nil
}
