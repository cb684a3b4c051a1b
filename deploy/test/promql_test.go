package deploytest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

const (
	scrapeEvery = 15 * time.Second
	alertAt     = 30 * time.Minute
)

// firing evaluates a rule as Prometheus does: it fires if its expression has held at
// every evaluation for the time that it asks for.
//
// Prometheus's own test storage would do, but it needs the time series database, and
// that the SDKs of every cloud.
func firing(t *testing.T, r rulefmt.Rule, series []string) bool {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 100_000, Timeout: time.Minute, LookbackDelta: 5 * time.Minute})
	defer engine.Close()
	data := played(t, series)
	for at := alertAt - time.Duration(r.For); at <= alertAt; at += scrapeEvery {
		if !holds(t, engine, data, r.Expr, time.Unix(0, 0).Add(at)) {
			return false
		}
	}
	return true
}

func holds(t *testing.T, engine *promql.Engine, data storage.Queryable, expr string, at time.Time) bool {
	t.Helper()
	q, err := engine.NewInstantQuery(t.Context(), data, nil, expr, at)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	defer q.Close()
	result, err := q.Exec(t.Context()).Vector()
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return len(result) > 0
}

// played answers queries from series that last from 0 to alertAt, in promtool's
// notation without the number of samples: metric{labels} start, or start+step.
func played(t *testing.T, descriptions []string) storage.Queryable {
	t.Helper()
	var all []storage.Series
	for _, d := range descriptions {
		of, values, err := parser.NewParser(parser.Options{}).ParseSeriesDesc(fmt.Sprintf("%sx%d", d, alertAt/scrapeEvery))
		if err != nil {
			t.Fatalf("%s: %v", d, err)
		}
		var samples []chunks.Sample
		for i, v := range values {
			samples = append(samples, sample{(time.Duration(i) * scrapeEvery).Milliseconds(), v.Value})
		}
		all = append(all, storage.NewListSeries(of, samples))
	}
	return &storage.MockQueryable{MockQuerier: &storage.MockQuerier{
		SelectMockFunction: func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
			found := slices.DeleteFunc(slices.Clone(all), func(s storage.Series) bool {
				return slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.Labels().Get(m.Name)) })
			})
			return &seriesSet{rest: found}
		},
	}}
}

// seriesSet iterates over series.
type seriesSet struct {
	now  storage.Series
	rest []storage.Series
}

func (s *seriesSet) Next() bool {
	if len(s.rest) == 0 {
		return false
	}
	s.now, s.rest = s.rest[0], s.rest[1:]
	return true
}

func (s *seriesSet) At() storage.Series              { return s.now }
func (*seriesSet) Err() error                        { return nil }
func (*seriesSet) Warnings() annotations.Annotations { return nil }

// sample is a scraped value.
type sample struct {
	ms    int64
	value float64
}

func (s sample) T() int64                    { return s.ms }
func (sample) ST() int64                     { return 0 }
func (s sample) F() float64                  { return s.value }
func (sample) H() *histogram.Histogram       { return nil }
func (sample) FH() *histogram.FloatHistogram { return nil }
func (sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample         { return s }
