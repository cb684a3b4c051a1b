package deploytest

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/netverdict/netverdict/deploy/test/render"
)

// tableRow is a metric in deploy/metrics.md.
var tableRow = regexp.MustCompile("(?m)^\\| `(netverdict_[a-z_]+)` \\| (counter|gauge|histogram) \\| ([^|]*) \\|")

// knownMetrics are the labels of each series that an agent serves. deploy/metrics.md
// is made from the code, which a test there guarantees.
func knownMetrics(t *testing.T) map[string][]string {
	t.Helper()
	known := map[string][]string{
		"up":                            {"job"},
		"process_resident_memory_bytes": {},
		"process_cpu_seconds_total":     {},
		"process_start_time_seconds":    {"job"},
	}
	for _, row := range tableRow.FindAllStringSubmatch(readManifest(t, "metrics.md"), -1) {
		of := regexp.MustCompile(`[a-z]+`).FindAllString(row[3], -1)
		if row[2] != "histogram" {
			known[row[1]] = of
			continue
		}
		known[row[1]+"_bucket"] = append(of, "le")
		known[row[1]+"_sum"], known[row[1]+"_count"] = of, of
	}
	if len(known) < 30 {
		t.Fatalf("only %d metrics found in metrics.md", len(known))
	}
	return known
}

// checkExpr demands that an expression is PromQL about metrics and labels that exist.
func checkExpr(t *testing.T, where, text string, known map[string][]string) {
	t.Helper()
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(text)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	all := []string{"instance"}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if s, ok := node.(*parser.VectorSelector); ok {
			of, exists := known[s.Name]
			if !exists {
				t.Errorf("%s: there is no metric %s", where, s.Name)
			}
			all = append(all, of...)
			for _, m := range s.LabelMatchers {
				if m.Name != model.MetricNameLabel && m.Name != "instance" && !slices.Contains(of, m.Name) {
					t.Errorf("%s: %s has no label %s", where, s.Name, m.Name)
				}
			}
		}
		return nil
	})
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if a, ok := node.(*parser.AggregateExpr); ok {
			for _, l := range a.Grouping {
				if !slices.Contains(all, l) {
					t.Errorf("%s: no metric in it has the label %s", where, l)
				}
			}
		}
		return nil
	})
}

func alertRules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.Parse([]byte(readManifest(t, "chart/monitoring/alerts.yaml")), false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Error(err)
	}
	if groups == nil || len(groups.Groups) != 1 {
		t.Fatalf("groups: %+v, want one", groups)
	}
	return groups.Groups[0].Rules
}

// TestAlertRules: what promtool check rules checks, and that they ask for what exists.
func TestAlertRules(t *testing.T) {
	known := knownMetrics(t)
	for _, r := range alertRules(t) {
		checkExpr(t, r.Alert, r.Expr, known)
		if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s lacks a severity, summary or description", r.Alert)
		}
	}
}

// TestAlertsFire: for each alert, when it must fire after half an hour and when not.
// A series is "metric{labels} start+step": it grows by step every 15 seconds.
func TestAlertsFire(t *testing.T) {
	always := []string{`netverdict_enforcing{instance="a"} 1`}
	cases := map[string]struct{ fires, silent []string }{
		"NetverdictNotEnforcing": {
			[]string{`netverdict_enforcing{instance="a"} 0`, `netverdict_audit_packets_total{instance="b",fate="copied"} 5`},
			[]string{`netverdict_enforcing{instance="a"} 1`, `netverdict_enforcing{instance="b"} 0`, `netverdict_audit_packets_total{instance="b",fate="copied"} 5`},
		},
		"NetverdictAgentGone": {[]string{`other{} 1`}, always},
		"NetverdictAgentDown": {
			[]string{`up{instance="a",job="kube-system/netverdict"} 0`},
			[]string{`up{instance="a",job="kube-system/netverdict"} 1`, `up{instance="b",job="node"} 0`},
		},
		"NetverdictAgentRestarts": {
			[]string{`process_start_time_seconds{instance="a",job="netverdict"} 5+300`},
			[]string{`process_start_time_seconds{instance="a",job="netverdict"} 5`, `process_start_time_seconds{instance="a",job="node"} 5+300`},
		},
		"NetverdictRulesChanged":      {[]string{`netverdict_rule_repairs_total{instance="a"} 0+1`}, []string{`netverdict_rule_repairs_total{instance="a"} 2`}},
		"NetverdictPoliciesOverLimit": {[]string{`netverdict_policies_over_limit{instance="a"} 1`}, []string{`netverdict_policies_over_limit{instance="a"} 0`}},
		"NetverdictSourceFloods": {
			[]string{`netverdict_rule_packets_total{instance="a",purpose="flood"} 0+9`},
			[]string{`netverdict_rule_packets_total{instance="a",purpose="flood"} 9`, `netverdict_rule_packets_total{instance="a",purpose="queue"} 0+9`},
		},
		"NetverdictChangeNotEnforced": {
			[]string{`netverdict_unenforced_change_age_seconds{instance="a"} 0+15`}, []string{`netverdict_unenforced_change_age_seconds{instance="a"} 1`},
		},
		"NetverdictEnforcementSlow": {
			histogramSeries("netverdict_enforcement_lag_seconds_bucket", "5"), histogramSeries("netverdict_enforcement_lag_seconds_bucket", "0.1"),
		},
		"NetverdictSourceAway": {
			[]string{`netverdict_source_connected{instance="a",kind="Pod"} 0`, `netverdict_source_connected{instance="a",kind="Node"} 1`},
			[]string{`netverdict_source_connected{instance="a",kind="Pod"} 1`, `netverdict_source_failing{instance="a"} 0`},
		},
		"NetverdictChangesFail": {[]string{`netverdict_change_failures_total{instance="a"} 0+1`}, []string{`netverdict_change_failures_total{instance="a"} 3`}},
		"NetverdictKernelDrops": {
			[]string{`netverdict_queue_kernel_drops_total{instance="a",queue="8050"} 0`, `netverdict_queue_user_drops_total{instance="a",queue="8050"} 5+2`},
			[]string{`netverdict_queue_kernel_drops_total{instance="a",queue="8050"} 70`, `netverdict_queue_user_drops_total{instance="a",queue="8050"} 5`},
		},
		"NetverdictVerdictsSlow": {
			histogramSeries("netverdict_verdict_latency_seconds_bucket", "0.1"), histogramSeries("netverdict_verdict_latency_seconds_bucket", "0.001"),
		},
		"NetverdictHoldExpired":     {[]string{`netverdict_holds_expired_total{instance="a"} 0+1`}, []string{`netverdict_holds_expired_total{instance="a"} 9`}},
		"NetverdictFlowRecordsLost": {[]string{`netverdict_flow_records_lost_total{instance="a"} 0+1`}, []string{`netverdict_flow_records_lost_total{instance="a"} 9`}},
		"NetverdictManyDenials": {
			[]string{`netverdict_decisions_total{instance="a",verdict="deny",reason="default-deny",direction="ingress"} 0+200`, `netverdict_decisions_total{instance="a",verdict="deny",reason="unknown-pod",direction="egress"} 0+200`},
			[]string{`netverdict_decisions_total{instance="a",verdict="deny",reason="default-deny",direction="ingress"} 0+200`, `netverdict_decisions_total{instance="a",verdict="allow",reason="policy",direction="ingress"} 0+9000`},
		},
	}
	for _, r := range alertRules(t) {
		c, ok := cases[r.Alert]
		if !ok {
			t.Errorf("%s is not tested", r.Alert)
			continue
		}
		if !firing(t, r, c.fires) {
			t.Errorf("%s does not fire with %q", r.Alert, c.fires)
		}
		if firing(t, r, c.silent) {
			t.Errorf("%s fires with %q", r.Alert, c.silent)
		}
		delete(cases, r.Alert)
	}
	for alert := range cases {
		t.Errorf("there is no alert %s", alert)
	}
}

// TestFailingSourceAlone: the second half of an alert that is an "or".
func TestFailingSourceAlone(t *testing.T) {
	for _, r := range alertRules(t) {
		if r.Alert == "NetverdictSourceAway" && !firing(t, r, []string{`netverdict_source_failing{instance="a"} 1`}) {
			t.Errorf("%s does not fire for manifests that cannot be read", r.Alert)
		}
	}
}

// TestUnwrittenFlowLogAlone: the same.
func TestUnwrittenFlowLogAlone(t *testing.T) {
	for _, r := range alertRules(t) {
		if r.Alert == "NetverdictFlowRecordsLost" && !firing(t, r, []string{`netverdict_flow_log_write_failures_total{instance="a"} 0+1`}) {
			t.Errorf("%s does not fire for a log that cannot be written", r.Alert)
		}
	}
}

// histogramSeries has one observation every 15 seconds, all in the bucket le.
func histogramSeries(name, le string) (series []string) {
	below := true
	for _, bound := range []string{"0.001", "0.1", "5", "+Inf"} {
		below = below && bound != le
		growth := "0+1"
		if below {
			growth = "0"
		}
		series = append(series, name+`{instance="a",queue="8050",le="`+bound+`"} `+growth)
	}
	return series
}

// dashboard is what the tests read of Grafana's JSON.
type dashboard struct {
	UID        string  `json:"uid"`
	Title      string  `json:"title"`
	Panels     []panel `json:"panels"`
	Templating struct {
		List []struct {
			Name string `json:"name"`
		} `json:"list"`
	} `json:"templating"`
}

type panel struct {
	ID          int    `json:"id"`
	Type        string `json:"type"`
	Title       string `json:"title"`
	Description string `json:"description"`
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct {
		RefID string `json:"refId"`
		Expr  string `json:"expr"`
	} `json:"targets"`
}

// TestDashboard: every panel asks for what exists, says what it shows, and has a place
// of its own.
func TestDashboard(t *testing.T) {
	var d dashboard
	if err := json.Unmarshal([]byte(readManifest(t, "chart/monitoring/dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	known := knownMetrics(t)
	ids, cells, queries := map[int]bool{}, map[[2]int]string{}, 0
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || p.Type != "row" && (p.Description == "" || len(p.Targets) == 0) {
			t.Errorf("panel %d %q: its id is taken, or it lacks a title, description or query", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if cells[at] != "" || at[0] >= 24 {
					t.Errorf("panel %q is at %v, where %q is or the screen ends", p.Title, at, cells[at])
				}
				cells[at] = p.Title
			}
		}
		for _, q := range p.Targets {
			queries++
			checkExpr(t, fmt.Sprintf("panel %q, query %s", p.Title, q.RefID), withoutVariables(t, q.Expr), known)
		}
	}
	if queries < 25 || d.UID == "" {
		t.Errorf("dashboard %q has %d queries", d.UID, queries)
	}
}

// withoutVariables puts values in the place of Grafana's variables.
func withoutVariables(t *testing.T, expr string) string {
	t.Helper()
	expr = strings.NewReplacer("$__rate_interval", "5m", "$instance", "node-1").Replace(expr)
	if strings.Contains(expr, "$") {
		t.Errorf("a variable that the dashboard does not have: %s", expr)
	}
	return expr
}

// TestMonitoringObjects: what the chart makes for the Prometheus operator and for
// Grafana is what these read, without fields that do not exist, and only on demand.
func TestMonitoringObjects(t *testing.T) {
	if strings.Contains(renderChart(t, render.Release{}).Manifest, "monitoring.coreos.com") {
		t.Error("objects that need a CRD are made by default")
	}
	manifest := renderChart(t, render.Release{Values: values(
		"metrics.podMonitor.create", true, "metrics.podMonitor.labels.release", "prometheus", "metrics.podMonitor.interval", "30s", "metrics.port", 9999,
		"metrics.prometheusRule.create", true, "metrics.dashboard.create", true)}).Manifest
	var monitor monitoringv1.PodMonitor
	var rule monitoringv1.PrometheusRule
	var config corev1.ConfigMap
	for _, doc := range documents(t, manifest) {
		for kind, into := range map[string]any{"PodMonitor": &monitor, "PrometheusRule": &rule, "ConfigMap": &config} {
			if strings.Contains(string(doc), "\nkind: "+kind+"\n") {
				if err := yaml.UnmarshalStrict(doc, into); err != nil {
					t.Errorf("%s: %v", kind, err)
				}
			}
		}
	}
	if len(rule.Spec.Groups) != 1 || len(rule.Spec.Groups[0].Rules) != len(alertRules(t)) {
		t.Errorf("the PrometheusRule has not the rules of the file: %+v", rule.Spec)
	}
	if diff := cmp.Diff(readManifest(t, "chart/monitoring/dashboard.json"), config.Data["netverdict.json"]); diff != "" || config.Labels["grafana_dashboard"] != "1" {
		t.Errorf("the ConfigMap has labels %v and (-file +object):\n%s", config.Labels, diff)
	}
	if monitor.Labels["release"] != "prometheus" || monitor.Spec.PodMetricsEndpoints[0].Interval != "30s" {
		t.Errorf("the PodMonitor has labels %v and endpoint %+v", monitor.Labels, monitor.Spec.PodMetricsEndpoints[0])
	}
	job := decode(t, renderChart(t, render.Release{Values: values("nameOverride", "edge")}).Manifest).agents.Spec.Template.Labels[monitor.Spec.JobLabel]
	if job != "netverdict" {
		t.Errorf("with another name agents are scraped as job %q, which no alert looks for", job)
	}
	checkAddresses(t, monitor.Spec.PodMetricsEndpoints[0].RelabelConfigs)
}

// checkAddresses plays the rules that make an address of a pod's IP.
func checkAddresses(t *testing.T, rules []monitoringv1.RelabelConfig) {
	t.Helper()
	for ip, want := range map[string]string{"10.0.0.1": "10.0.0.1:9999", "fd00::1": "[fd00::1]:9999"} {
		got := ""
		for _, r := range rules {
			if m := regexp.MustCompile("^(?:" + r.Regex + ")$"); r.TargetLabel == "__address__" && m.MatchString(ip) {
				got = m.ReplaceAllString(ip, strings.ReplaceAll(*r.Replacement, "$1", "${1}"))
			}
		}
		if got != want {
			t.Errorf("pod %s is scraped at %q, want %q", ip, got, want)
		}
	}
}
