package metrics

import (
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// namespace begins the name of each metric.
const namespace = "netverdict"

// definition describes a metric, to Prometheus and to people.
type definition struct {
	name   string
	kind   string // counter, gauge or histogram
	labels []string
	help   string
	desc   *prometheus.Desc
}

// definitions are all metrics of this package, in the order of the table.
var definitions []*definition

func define(kind, name, help string, labels []string) *definition {
	name = prometheus.BuildFQName(namespace, "", name)
	d := &definition{name, kind, labels, help, prometheus.NewDesc(name, help, labels, nil)}
	definitions = append(definitions, d)
	return d
}

func counter(name, help string, labels ...string) *definition {
	return define("counter", name, help, labels)
}

func gauge(name, help string, labels ...string) *definition {
	return define("gauge", name, help, labels)
}

func histogram(name, help string, labels ...string) *definition {
	return define("histogram", name, help, labels)
}

// number is what a metric's value can be made from.
type number interface {
	~int | ~int64 | ~uint32 | ~uint64 | ~float64
}

// send gives Prometheus a value of a counter or a gauge; labels are in the order of
// the definition.
func send[N number](ch chan<- prometheus.Metric, d *definition, value N, labels ...string) {
	kind := prometheus.GaugeValue
	if d.kind == "counter" {
		kind = prometheus.CounterValue
	}
	ch <- prometheus.MustNewConstMetric(d.desc, kind, float64(value), labels...)
}

func sendBool(ch chan<- prometheus.Metric, d *definition, yes bool, labels ...string) {
	value := 0
	if yes {
		value = 1
	}
	send(ch, d, value, labels...)
}

// Names lists the names of all metrics of this package.
func Names() (names []string) {
	for _, d := range definitions {
		names = append(names, d.name)
	}
	return names
}

// Table describes all metrics as Markdown.
func Table() string {
	var b strings.Builder
	b.WriteString("| metric | type | labels | what it says |\n|---|---|---|---|\n")
	for _, d := range definitions {
		labels := slices.Clone(d.labels)
		for i := range labels {
			labels[i] = "`" + labels[i] + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.name, d.kind, strings.Join(labels, ", "), strings.ReplaceAll(d.help, "|", `\|`))
	}
	return b.String()
}
