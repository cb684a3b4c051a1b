package metrics

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// scrapesAtOnce is two Prometheus servers and somebody with curl.
	scrapesAtOnce = 3
	// scrapeLimit is Prometheus's own default for scrape_timeout.
	scrapeLimit = 10 * time.Second
)

// registry has the metrics of an agent, of the Go runtime and of the process, and
// nothing that libraries put into the default one.
func registry(a *Agent, c *Changes) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(newCollector(a), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	c.register(r)
	return r
}

// Handler serves the metrics of an agent: as text, or as protobuf with native
// histograms to those who ask for it.
func Handler(a *Agent, c *Changes, log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(registry(a, c), promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelError),
		ErrorHandling:       promhttp.ContinueOnError, // most of the metrics are better than none
		MaxRequestsInFlight: scrapesAtOnce,
		Timeout:             scrapeLimit,
		EnableOpenMetrics:   true,
	})
}
