package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/netverdict/netverdict/bench/netlab"
)

const metricsAddress = "127.0.0.1:8052"

// metricSet is one scrape.
type metricSet map[string]*dto.MetricFamily

// scrape asks an agent on the node for its metrics.
func (l *agentLab) scrape() metricSet {
	l.t.Helper()
	client := http.Client{Timeout: agentPatience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
			err = l.node.Do(func() error {
				c, err = new(net.Dialer).DialContext(ctx, "tcp", metricsAddress)
				return err
			})
			return c, err
		},
	}}
	req, err := http.NewRequestWithContext(l.t.Context(), http.MethodGet, "http://"+metricsAddress+pathMetrics, http.NoBody)
	if err != nil {
		l.t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		l.t.Fatalf("%s: %v\n%s", resp.Status, err, text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(text)))
	if err != nil {
		l.t.Fatal(err)
	}
	return families
}

// sum adds up the series of a metric that have all these label values.
func (m metricSet) sum(name string, values ...string) (total float64) {
	for _, s := range m[name].GetMetric() {
		matches := 0
		for _, l := range s.Label {
			if slices.Contains(values, l.GetValue()) {
				matches++
			}
		}
		if matches == len(values) {
			total += s.GetCounter().GetValue() + s.GetGauge().GetValue() + float64(s.GetHistogram().GetSampleCount())
		}
	}
	return total
}

// TestMetricsOfAPortScan: 60,000 ports of an isolated pod are tried; the metrics have
// exactly as many denials, and name the policy.
func TestMetricsOfAPortScan(t *testing.T) {
	t.Parallel()
	l := newAgentLab(t)
	l.write("policy.yaml", policyFor("client", "server"))
	a := l.agent("--metrics-address="+metricsAddress, "--flow-log=none", "--ask-limit=0")
	const ports, burst = 60_000, 500
	for first := 1; first <= ports; first += burst {
		for port := first; port < first+burst; port++ {
			l.sendSYN(l.other, l.server, uint16(port))
		}
		l.awaitDecisions(first + burst - 1)
	}
	m := l.scrape()
	for name, c := range map[string]struct {
		got  float64
		want float64
	}{
		"denials":               {m.sum("netverdict_decisions_total", "deny", "default-deny", "ingress"), ports},
		"decisions":             {m.sum("netverdict_decisions_total"), ports},
		"denied by the policy":  {m.sum("netverdict_policy_hits_total", "shop", "client-to-server", "deny", "ingress"), ports},
		"allowed by the policy": {m.sum("netverdict_policy_hits_total", "shop", "client-to-server", "allow"), 0},
		"packets queued":        {m.sum("netverdict_queue_packets_total", "8050"), ports},
		"kernel drops":          {m.sum("netverdict_queue_kernel_drops_total") + m.sum("netverdict_queue_user_drops_total"), 0},
		"enforcing":             {m.sum("netverdict_enforcing"), 1},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
	if timed := m.sum("netverdict_verdict_latency_seconds"); timed == 0 {
		t.Error("no verdict was timed")
	}
	l.demandKernelCounts(a)
}

// demandKernelCounts: what the kernel repeats by itself is in the rules' counters
// alone, and a policy that is removed takes its series along.
func (l *agentLab) demandKernelCounts(a *agentProcess) {
	l.t.Helper()
	l.await("the deny set's drops in the metrics", func() bool {
		for range 25 { // the first are asked about again, until the set knows them
			l.sendSYN(l.other, l.server, 1)
		}
		return l.scrape().sum("netverdict_rule_packets_total", "deny-set") >= 20
	})
	a.after(func() { l.remove("policy.yaml") }, newState)
	m := l.scrape()
	if len(m["netverdict_policy_hits_total"].GetMetric()) != 0 {
		l.t.Errorf("the policy is gone, its metrics are not: %v", m["netverdict_policy_hits_total"])
	}
	if got := m.sum("netverdict_changes_total", "adds"); got != 1 {
		l.t.Errorf("%v changes that add, want 1", got)
	}
	if got := m.sum("netverdict_enforcement_lag_seconds"); got != 1 {
		l.t.Errorf("%v changes have a lag, want 1", got)
	}
}

// awaitDecisions waits until so many packets were decided.
func (l *agentLab) awaitDecisions(n int) {
	l.t.Helper()
	l.await("decisions about every packet", func() bool { return l.scrape().sum("netverdict_decisions_total") >= float64(n) })
}

func (l *agentLab) await(what string, cond func() bool) {
	l.t.Helper()
	for end := time.Now().Add(agentPatience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("waited %v for %s", agentPatience, what)
		}
	}
}

// sendSYN sends the first packet of a connection, as a port scanner does.
func (l *agentLab) sendSYN(from, to *netlab.Host, port uint16) {
	l.t.Helper()
	src, dst := v4Of(from), v4Of(to)
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	tcp := &layers.TCP{SrcPort: 40000, DstPort: layers.TCPPort(port), SYN: true, Window: 64240}
	buf := gopacket.NewSerializeBuffer()
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		l.t.Fatal(err)
	}
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, tcp); err != nil {
		l.t.Fatal(err)
	}
	if err := from.SendIP(buf.Bytes(), dst); err != nil {
		l.t.Fatal(err)
	}
}

func v4Of(h *netlab.Host) netip.Addr {
	return h.Addrs()[slices.IndexFunc(h.Addrs(), netip.Addr.Is4)]
}

func TestMetricsFlags(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		o    metricsOptions
		says string
	}{
		{metricsOptions{}, ""},
		{metricsOptions{address: ":8052"}, ""},
		{metricsOptions{address: "[::1]:8052", policies: 3}, ""},
		{metricsOptions{address: "8052"}, "host:port"},
		{metricsOptions{policies: -1}, "--metrics-policies"},
	} {
		err := c.o.validate()
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.says)
		}
	}
}
