package queue

import (
	"math"
	"testing"
	"time"
)

// TestLatencyBuckets: every duration is in the native bucket whose bounds enclose
// it, as Prometheus defines them, and in the classic one.
func TestLatencyBuckets(t *testing.T) {
	t.Parallel()
	var durations []time.Duration
	for d := 100 * time.Nanosecond; d < 500*time.Second; d += d/7 + 1 {
		durations = append(durations, d)
	}
	durations = append(durations, LatencyBounds[:]...)
	durations = append(durations, time.Second, 2*time.Second, 4*time.Second)
	for _, d := range durations {
		var l latencies
		l.observe(d, 3)
		s := l.stats()
		if len(s.Native) != 1 || s.Sum != 3*d {
			t.Fatalf("%v: %+v", d, s)
		}
		for key, n := range s.Native {
			low, high := math.Exp2(float64(key-1)/8), math.Exp2(float64(key)/8)
			if v := d.Seconds(); n != 3 || v > high*(1+1e-12) || v <= low*(1-1e-12) {
				t.Errorf("%v is in bucket %d, (%g, %g], %d times", d, key, low, high, n)
			}
		}
		for i, n := range s.Counts {
			in := (i == 0 || d > LatencyBounds[i-1]) && (i == len(LatencyBounds) || d <= LatencyBounds[i])
			if in != (n == 3) || !in && n != 0 {
				t.Errorf("%v: %d in classic bucket %d", d, n, i)
			}
		}
	}
}

// TestLatencyExtremes: what has no bucket is in the outermost ones.
func TestLatencyExtremes(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]int{
		0: firstOctave * perOctave, 1: firstOctave * perOctave,
		math.MaxInt64: (firstOctave+octaves)*perOctave - 1, -1: firstOctave * perOctave,
	} {
		var l latencies
		l.observe(d, 1)
		if n := l.stats().Native[want]; n != 1 {
			t.Errorf("%v: %v, want it in bucket %d", d, l.stats().Native, want)
		}
	}
}

// BenchmarkLatencyObserve is what timing a batch costs: both looks at the clock.
func BenchmarkLatencyObserve(b *testing.B) {
	var l latencies
	start := time.Now()
	for b.Loop() {
		began := time.Since(start)
		l.observe(time.Since(start)-began+30*time.Microsecond, 1)
	}
	if s := l.stats(); s.Counts[0] > 0 {
		b.Fatalf("%+v, want nothing below 10 µs", s)
	}
}
