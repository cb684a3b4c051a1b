package metrics

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/engine/audit"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/engine/reject"
	"github.com/netverdict/netverdict/policy"
)

// patience bounds waits for what must happen.
const patience = 30 * time.Second

var (
	web = netip.MustParseAddr("10.1.0.1")
	db  = netip.MustParseAddr("10.1.0.2")
)

// stage is an engine between packets in memory and rules that are not there, with
// metrics about it.
type stage struct {
	t       *testing.T
	source  *queue.Memory
	rules   *playedRules
	agent   Agent
	changes *Changes
	reg     *prometheus.Registry
}

// playedRules are no rules; their counters are made up.
type playedRules struct {
	engine.Rules // nil: what is not played is not called
	reads        int
	fail         error
}

func (*playedRules) Install(hook.Policed) error { return nil }
func (*playedRules) Remove() error              { return nil }
func (*playedRules) Adopted() bool              { return false }
func (*playedRules) Hurry()                     {}
func (*playedRules) Review(hook.Scope, func(*hook.Flow) hook.Fate) (hook.Reviewed, error) {
	return hook.Reviewed{}, nil
}
func (*playedRules) Epoch() uint32                  { return 7 }
func (*playedRules) Generations() map[string]uint32 { return map[string]uint32{"IPv4": 3, "IPv6": 4} }
func (r *playedRules) Counters() (hook.Counters, error) {
	r.reads++
	return hook.Counters{hook.PurposeDenySet: {Packets: 11, Bytes: 660}}, r.fail
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{t: t, source: queue.NewMemory(), rules: &playedRules{}, changes: NewChanges()}
	collector := flow.NewCollector()
	t.Cleanup(func() {
		if err := collector.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	marks, err := hook.NewMarks(hook.DefaultMarkMask)
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.New(engine.Config{
		Rules: s.rules, Marks: marks, Sources: []queue.Source{s.source}, CacheSize: 64, RingSize: 64, PolicyLimit: 10,
		Collector: collector, Log: flow.All, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.agent = Agent{
		Version: "v1", Rules: s.rules, Flows: collector.Stats, Log: func() flow.LogStats { return flow.LogStats{Lines: 5, Withheld: 60} },
		State: func() State {
			return State{Enforcing: true, OverLimit: 3, Waiting: 1, Oldest: time.Now().Add(-time.Minute)}
		},
		Kernel:  func() *Kernel { return &Kernel{e, []queue.Source{s.source}, 8050} },
		Answers: func() reject.Stats { return reject.Stats{Resets: 1, Errors: 2, Limited: 3, Lost: 4, Failed: 5} },
		Kinds: func() []Kind {
			return []Kind{{Name: "Pod", Connected: true, Objects: 2, Pending: time.Now().Add(-time.Hour)}}
		},
	}
	s.reg = registry(&s.agent, s.changes)
	s.run(e)
	return s
}

// run enforces a policy that isolates db until the test ends.
func (s *stage) run(e *engine.Engine) {
	s.t.Helper()
	tree, err := policy.Compile(&policy.Snapshot{
		Pods: []*policy.Pod{pod("web", web), pod("db", db)},
		Policies: []*networkingv1.NetworkPolicy{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "closed"},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
				PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			},
		}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- e.Run(ctx, tree, func() { close(ready) }) }()
	s.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	})
	select {
	case <-ready:
	case <-time.After(patience):
		s.t.Fatal("the engine is not ready")
	}
}

func pod(name string, addr netip.Addr) *policy.Pod {
	return &policy.Pod{
		NamespacedName: policy.NamespacedName{Namespace: "shop", Name: name}, Labels: map[string]string{"app": name},
		Addrs: []netip.Addr{addr}, Phase: policy.PhaseRunning,
	}
}

// judge has n packets judged.
func (s *stage) judge(n int, src, dst netip.Addr) {
	s.t.Helper()
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, ip, &layers.TCP{SrcPort: 4001, DstPort: 80, SYN: true})
	if err != nil {
		s.t.Fatal(err)
	}
	for range n {
		s.source.Inject(queue.Packet{Payload: buf.Bytes()})
	}
	s.source.Settle()
}

// demand compares metrics with their text.
func (s *stage) demand(want string, names ...string) {
	s.t.Helper()
	if err := testutil.GatherAndCompare(s.reg, strings.NewReader(want), names...); err != nil {
		s.t.Error(err)
	}
}

// families gathers everything.
func (s *stage) families() map[string]*dto.MetricFamily {
	s.t.Helper()
	all, err := s.reg.Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	byName := map[string]*dto.MetricFamily{}
	for _, f := range all {
		byName[f.GetName()] = f
	}
	return byName
}

func TestDecisionsAreExact(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.judge(1000, web, db)
	s.judge(10, db, web)
	const want = `
# HELP netverdict_decisions_total ` + "%decisions%" + `
# TYPE netverdict_decisions_total counter
netverdict_decisions_total{direction="ingress",reason="default-deny",verdict="deny"} 1000
netverdict_decisions_total{direction="ingress",reason="no-policy",verdict="allow"} 10
# HELP netverdict_policy_hits_total ` + "%hits%" + `
# TYPE netverdict_policy_hits_total counter
netverdict_policy_hits_total{direction="ingress",kind="NetworkPolicy",namespace="shop",policy="closed",verdict="allow"} 0
netverdict_policy_hits_total{direction="ingress",kind="NetworkPolicy",namespace="shop",policy="closed",verdict="deny"} 1000
`
	s.demand(strings.NewReplacer("%decisions%", decisions.help, "%hits%", policyHits.help).Replace(want), decisions.name, policyHits.name)
}

// audited is an engine that looks at copies.
type audited struct{ Engine }

func (audited) Copies() audit.Stats {
	return audit.Stats{Copied: 9, KernelDropped: 4, Malformed: 2, NotIP: 1}
}

func TestCopiesOfAnAudit(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	kernel := s.agent.Kernel()
	s.agent.Kernel = func() *Kernel { return &Kernel{Engine: audited{kernel.Engine}} }
	s.reg = registry(&s.agent, s.changes)
	s.demand(`
# HELP netverdict_audit_packets_total `+auditPackets.help+`
# TYPE netverdict_audit_packets_total counter
netverdict_audit_packets_total{fate="copied"} 9
netverdict_audit_packets_total{fate="dropped"} 4
netverdict_audit_packets_total{fate="malformed"} 2
netverdict_audit_packets_total{fate="not-ip"} 1
`, auditPackets.name)
}

// TestEveryMetricIsServed, as defined and to the taste of promlint.
func TestEveryMetricIsServed(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.judge(3, web, db)
	s.source.Release(12345, queue.Answer{}) // no such packet: the kernel's ENOENT
	s.source.Settle()
	served := s.families()
	for _, d := range definitions {
		f := served[d.name]
		if d == auditPackets {
			continue // TestCopiesOfAnAudit
		}
		if f == nil {
			t.Errorf("%s is not served", d.name)
			continue
		}
		if kind := strings.ToLower(f.GetType().String()); kind != d.kind {
			t.Errorf("%s is a %s, want %s", d.name, kind, d.kind)
		}
		for _, l := range f.Metric[0].Label {
			if !slices.Contains(d.labels, l.GetName()) {
				t.Errorf("%s has a label %s", d.name, l.GetName())
			}
		}
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if served[name] == nil {
			t.Errorf("%s is not served", name)
		}
	}
	problems, err := testutil.GatherAndLint(s.reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestStateAndSource(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	value := func(f *dto.MetricFamily) float64 { return f.Metric[0].GetGauge().GetValue() }
	served := s.families()
	for d, want := range map[*definition]float64{
		enforcing: 1, sourceFailing: 0, overLimit: 3, listenersWaiting: 1, revision: 1, epoch: 7, policies: 1, addresses: 2,
		sourceConnected: 1, sourceSynced: 0, sourceObjects: 2,
	} {
		if got := value(served[d.name]); got != want {
			t.Errorf("%s is %v, want %v", d.name, got, want)
		}
	}
	if got := value(served[changeAge.name]); got < 60 || got > 3600 {
		t.Errorf("the oldest change is %v s old, want 60 or a little more", got)
	}
	if got := value(served[sourcePending.name]); got < 3600 {
		t.Errorf("a pod waits for %v s, want 3600", got)
	}
}

// TestVerdictLatency: both histograms have every packet, and the same sum.
func TestVerdictLatency(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.judge(100, web, db)
	h := s.families()[verdictLatency.name].Metric[0].GetHistogram()
	native := int64(0)
	for at, i := int64(0), 0; i < len(h.PositiveDelta); i++ {
		at += h.PositiveDelta[i]
		native += at
	}
	if h.GetSampleCount() != 100 || native != 100 || h.GetSampleSum() <= 0 || h.GetSchema() != queue.LatencySchema {
		t.Errorf("%d packets in %v s, %d of them in native buckets of schema %d", h.GetSampleCount(), h.GetSampleSum(), native, h.GetSchema())
	}
	classic := h.Bucket[len(h.Bucket)-1]
	if len(h.Bucket) != len(queue.LatencyBounds) || classic.GetCumulativeCount() != 100 || classic.GetUpperBound() != 1 {
		t.Errorf("%d classic buckets, the last has %d packets up to %v s", len(h.Bucket), classic.GetCumulativeCount(), classic.GetUpperBound())
	}
}

func TestChanges(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.changes.Compiled(20 * time.Millisecond)
	s.changes.Applied(30*time.Millisecond, policy.Change{Revokes: true})
	s.changes.Applied(30*time.Millisecond, policy.Change{Adds: true, Revokes: true})
	s.changes.Enforced(time.Second)
	s.changes.Failed()
	served := s.families()
	for d, want := range map[*definition]float64{compileTime: 0.02, applyTime: 0.06, enforcementLag: 1} {
		h := served[d.name].Metric[0].GetHistogram()
		if math.Abs(h.GetSampleSum()-want) > 1e-9 || len(h.Bucket) == 0 || len(h.PositiveSpan) == 0 {
			t.Errorf("%s: sum %v, want %v; %d classic buckets, %d native spans", d.name, h.GetSampleSum(), want, len(h.Bucket), len(h.PositiveSpan))
		}
	}
	got := map[string]float64{}
	for _, m := range served[changes.name].Metric {
		got[m.Label[0].GetValue()] = m.GetCounter().GetValue()
	}
	if diff := cmp.Diff(map[string]float64{"none": 0, "adds": 0, "revokes": 1, "both": 1}, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// TestRulesAreReadSeldom: scraping does not keep changes of policy waiting.
func TestRulesAreReadSeldom(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	for range 10 {
		if got := s.families()[rulePackets.name].Metric[0]; got.Label[0].GetValue() != "deny-set" || got.GetCounter().GetValue() != 11 {
			t.Fatalf("packets that rules matched: %v", got)
		}
	}
	if s.rules.reads != 1 {
		t.Errorf("10 scrapes read the rules %d times, want 1", s.rules.reads)
	}
}

// TestRulesThatCannotBeRead: the other metrics are served all the same.
func TestRulesThatCannotBeRead(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.rules.fail = errors.New("lock is held")
	served := s.families()
	if served[rulePackets.name] != nil || served[ruleReadFailures.name].Metric[0].GetCounter().GetValue() != 1 || served[enforcing.name] == nil {
		t.Error("want a failure counted and everything else")
	}
}

// TestHandler serves text to people and native histograms to Prometheus.
func TestHandler(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.judge(5, web, db)
	h := Handler(&s.agent, s.changes, slog.New(slog.NewTextHandler(io.Discard, nil)))
	for accept, want := range map[string]string{
		"": "netverdict_verdict_latency_seconds_count{queue=\"8050\"} 5",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited": "netverdict_verdict_latency_seconds",
	} {
		r := httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("Accept %q: code %d, no %q in\n%s", accept, w.Code, want, w.Body)
		}
		if kind := w.Header().Get("Content-Type"); accept != "" && !strings.Contains(kind, "protobuf") {
			t.Errorf("Accept %q: %s", accept, kind)
		}
	}
}

// TestBeforeThereIsATree: an agent that waits for its first state says so.
func TestBeforeThereIsATree(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.agent.Kernel = func() *Kernel { return nil }
	s.agent.State = func() State { return State{Failing: true} }
	s.agent.Kinds = nil
	s.reg = registry(&s.agent, s.changes)
	served := s.families()
	if served[enforcing.name].Metric[0].GetGauge().GetValue() != 0 || served[sourceFailing.name].Metric[0].GetGauge().GetValue() != 1 {
		t.Error("it seems to enforce")
	}
	if served[decisions.name] != nil || served[sourceConnected.name] != nil || served[changeAge.name].Metric[0].GetGauge().GetValue() != 0 {
		t.Error("it shows what it cannot know")
	}
}
