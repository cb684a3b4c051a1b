package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/netverdict/netverdict/engine/queue"
)

// latency is a queue's histogram, both classic and native: a scraper takes the one
// that it can read.
type latency struct {
	labels []string
	stats  queue.Latency
}

// Desc implements prometheus.Metric.
func (l *latency) Desc() *prometheus.Desc { return verdictLatency.desc }

// Write implements prometheus.Metric.
func (l *latency) Write(out *dto.Metric) error {
	var native dto.Metric
	if err := l.native().Write(&native); err != nil {
		return err
	}
	if err := l.classic().Write(out); err != nil {
		return err
	}
	native.Histogram.Bucket, native.Histogram.CreatedTimestamp = out.Histogram.Bucket, nil
	out.Histogram = native.Histogram
	return nil
}

// count is the number of packets. The counters are read while others write them, so
// the two histograms may differ by the batch at hand; Latency promises that the native
// one is not behind, and so the classic one's buckets never exceed this count.
func (l *latency) count() (n uint64) {
	for _, bucket := range l.stats.Native {
		n += uint64(bucket)
	}
	return n
}

func (l *latency) native() prometheus.Metric {
	m, err := prometheus.NewConstNativeHistogram(verdictLatency.desc, l.count(), l.stats.Sum.Seconds(),
		l.stats.Native, nil, 0, queue.LatencySchema, 0, time.Time{}, l.labels...)
	return orInvalid(m, err)
}

func (l *latency) classic() prometheus.Metric {
	buckets, total := map[float64]uint64{}, uint64(0)
	for i, bound := range queue.LatencyBounds {
		total += l.stats.Counts[i]
		buckets[bound.Seconds()] = total
	}
	m, err := prometheus.NewConstHistogram(verdictLatency.desc, l.count(), l.stats.Sum.Seconds(), buckets, l.labels...)
	return orInvalid(m, err)
}

func orInvalid(m prometheus.Metric, err error) prometheus.Metric {
	if err != nil {
		return prometheus.NewInvalidMetric(verdictLatency.desc, err)
	}
	return m
}
