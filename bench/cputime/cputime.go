// Package cputime measures what a benchmark costs in CPU time. On a machine that
// others use too the time on the clock says more about them.
package cputime

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Report has a benchmark report the CPU time that the process spent for each
// iteration, as cpu-ns/op; call it when set-up is done and what it returns at the end.
func Report(b *testing.B) (end func()) {
	start := now(b)
	return func() {
		if b.N > 0 {
			b.ReportMetric(float64(now(b)-start)/float64(b.N), "cpu-ns/op")
		}
	}
}

// now is clock_gettime(2) of CLOCK_PROCESS_CPUTIME_ID, in nanoseconds.
func now(b *testing.B) int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		b.Fatal("read the CPU time of the process: ", err)
	}
	return t.Nano()
}
