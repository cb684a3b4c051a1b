package flow

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// logRig is a flow log with a clock that the test moves.
type logRig struct {
	t     *testing.T
	out   bytes.Buffer
	clock time.Time
	log   *Log
}

func newLogRig(t *testing.T, cfg LogConfig) *logRig {
	r := &logRig{t: t, clock: time.Unix(0, when).UTC()}
	cfg.Now = func() time.Time { return r.clock }
	r.log = NewLog(&r.out, cfg)
	return r
}

// deny is a denial now.
func (r *logRig) deny(src string, port uint16) Record {
	return Record{
		Time: r.clock.UnixNano(), Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr("fd00::2"), SrcPort: 40001, DstPort: port,
		Protocol: policy.TCP, TCPFlags: 2, Malformed: packet.OK, Names: names, Revision: 7,
		Decision: policy.Decision{Direction: policy.Ingress, Egress: noPolicy, Ingress: defaultDeny},
	}
}

func (r *logRig) offer(records ...Record) { r.log.Flows(records) }

// pass lets time pass, with the collector's ticks.
func (r *logRig) pass(d time.Duration) {
	for end := r.clock.Add(d); r.clock.Before(end); {
		r.clock = r.clock.Add(tickEvery)
		r.log.Tick(r.clock)
	}
}

// lines returns what was written since the last call.
func (r *logRig) lines() (lines []Line) {
	r.t.Helper()
	for l, err := range ReadJSON(&r.out) {
		if err != nil {
			r.t.Fatal(err)
		}
		lines = append(lines, l)
	}
	r.out.Reset()
	return lines
}

// texts are lines in few words.
func texts(lines []Line) (texts []string) {
	for _, l := range lines {
		text := fmt.Sprintf("%v>%v:%d", l.Source.IP, l.Destination.Pod, l.Destination.Port)
		switch {
		case l.Lost > 0:
			text = fmt.Sprintf("lost %d", l.Lost)
		case l.Withheld > 0:
			text = fmt.Sprintf("withheld %d in %d", l.Withheld, l.Lines)
		case l.Ports != nil:
			text += fmt.Sprintf(" x%d ports %d %v", l.Count, l.Ports.Distinct, l.Ports.Ranges)
		case l.Count > 0:
			text += fmt.Sprintf(" x%d", l.Count)
		}
		texts = append(texts, text)
	}
	return texts
}

func (r *logRig) demand(when string, want ...string) {
	r.t.Helper()
	if diff := cmp.Diff(want, texts(r.lines())); diff != "" {
		r.t.Errorf("%s: -want +got\n%s", when, diff)
	}
}

var folding = LogConfig{FoldEvery: time.Minute, Rate: 0, Burst: 1}

// TestFoldRepeats: the first at once, the others in one line a minute, and after
// a quiet minute at once again.
func TestFoldRepeats(t *testing.T) {
	r := newLogRig(t, folding)
	r.offer(r.deny("10.0.0.1", 80))
	r.demand("the first", "10.0.0.1>web-0:80")
	first := r.clock.Add(tickEvery)
	for range 40 {
		r.pass(tickEvery)
		r.offer(r.deny("10.0.0.1", 80), r.deny("10.0.0.1", 80))
	}
	last := r.clock
	r.demand("before the minute is over")
	r.pass(20 * time.Second)
	lines := r.lines()
	if len(lines) != 1 {
		t.Fatalf("after a minute: %v", texts(lines))
	}
	want := Line{
		Time: last, Protocol: policy.TCP, TCPFlags: 2, Revision: 7, Direction: policy.Ingress, Reason: policy.ReasonDefaultDeny,
		Source:      Endpoint{IP: netip.MustParseAddr("10.0.0.1"), Namespace: "staging", Pod: "app1"},
		Destination: Endpoint{IP: netip.MustParseAddr("fd00::2"), Port: 80, Namespace: "production", Pod: "web-0"},
		IsolatedBy:  []string{"staging/default-deny", "staging/dns"},
		Egress:      NewOutcome(noPolicy), Ingress: NewOutcome(defaultDeny),
		Count: 80, First: first, Last: last,
	}
	if diff := cmp.Diff(want, lines[0], cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	r.offer(r.deny("10.0.0.1", 80))
	r.pass(59 * time.Second)
	r.demand("in the second minute")
	r.pass(time.Second)
	r.demand("after two minutes", "10.0.0.1>web-0:80 x1")
	r.pass(time.Minute)
	r.offer(r.deny("10.0.0.1", 80))
	r.demand("after a quiet minute", "10.0.0.1>web-0:80")
}

// TestFoldKeepsApart: what differs in what matters has a line of its own.
func TestFoldKeepsApart(t *testing.T) {
	byPolicy := func(name string) *policy.Outcome {
		return &policy.Outcome{Reason: policy.ReasonPolicy, Policy: ref("ns", name)}
	}
	changes := map[string]func(*Record){
		"source":      func(r *Record) { r.Src = netip.MustParseAddr("10.0.0.9") },
		"destination": func(r *Record) { r.Dst = netip.MustParseAddr("fd00::3") },
		"protocol":    func(r *Record) { r.Protocol = policy.UDP },
		"port":        func(r *Record) { r.DstPort++ },
		"direction":   func(r *Record) { r.Decision.Direction, r.Decision.Egress = policy.Egress, defaultDeny },
		"policy":      func(r *Record) { r.Decision.Ingress = byPolicy("a") },
		"isolated by": func(r *Record) {
			r.Decision.Ingress = &policy.Outcome{Reason: policy.ReasonDefaultDeny, IsolatedBy: defaultDeny.IsolatedBy[:1]}
		},
		"pod": func(r *Record) { // another one has the address now
			r.Revision, r.Names = 8, podNames{"10.0.0.1": {Namespace: "staging", Name: "app2"}, "fd00::2": names["fd00::2"]}
		},
		"audited": func(r *Record) { r.Decision.Verdict, r.Decision.Audit = policy.Allow, true },
		"allowed": func(r *Record) { r.Decision.Verdict = policy.Allow },
	}
	for name, change := range changes {
		cfg := folding
		cfg.Filter = All
		r := newLogRig(t, cfg)
		one, other := r.deny("10.0.0.1", 80), r.deny("10.0.0.1", 80)
		change(&other)
		r.offer(one, other)
		if lines := r.lines(); len(lines) != 2 {
			t.Errorf("another %s: %v, want 2 lines", name, texts(lines))
		}
	}
	// A new tree that says the same is no news.
	r := newLogRig(t, folding)
	one, other := r.deny("10.0.0.1", 80), r.deny("10.0.0.1", 80)
	same := *defaultDeny
	other.Revision, other.Decision.Ingress, other.SrcPort = 8, &same, 40002
	r.offer(one, other, other)
	r.demand("another revision and source port", "10.0.0.1>web-0:80")
	r.pass(time.Minute)
	r.demand("and then", "10.0.0.1>web-0:80 x2")
}

// TestFoldOff: an interval of 0 writes each; allowed flows are never folded.
func TestFoldOff(t *testing.T) {
	r := newLogRig(t, LogConfig{Burst: 1})
	r.offer(r.deny("10.0.0.1", 80), r.deny("10.0.0.1", 80))
	r.demand("every denial", "10.0.0.1>web-0:80", "10.0.0.1>web-0:80")
	cfg := folding
	cfg.Filter = All
	r = newLogRig(t, cfg)
	allowed := r.deny("10.0.0.1", 80)
	allowed.Decision = policy.Decision{Verdict: policy.Allow, Egress: noPolicy, Ingress: noPolicy}
	r.offer(allowed, allowed)
	r.demand("every allowed flow", "10.0.0.1>web-0:80", "10.0.0.1>web-0:80")
}

// TestFoldScan scans every port twice, in random order: 8 lines at once and one
// for all the others, with exact counts.
func TestFoldScan(t *testing.T) {
	r := newLogRig(t, folding)
	random := rand.New(rand.NewPCG(1, 2))
	for range 2 {
		for _, port := range random.Perm(60_000) {
			r.offer(r.deny("10.0.0.1", uint16(port+1)))
		}
	}
	shown := r.lines()
	if len(shown) != foldPorts {
		t.Fatalf("at once: %v", texts(shown))
	}
	r.pass(time.Minute)
	summed := r.lines()
	if len(summed) != foldPorts+1 {
		t.Fatalf("after a minute: %v", texts(summed))
	}
	scan, total := summed[foldPorts], uint64(len(shown))
	for _, l := range summed {
		total += l.Flows()
	}
	if total != 120_000 || scan.Destination.Port != 0 || scan.Ports == nil || scan.Ports.Distinct != 60_000-foldPorts {
		t.Errorf("%d denials in the log, scan line %+v", total, scan)
	}
	if n := len(scan.Ports.Ranges); n < 2 || n > foldPorts+1 || scan.Ports.Ranges[n-1][len(scan.Ports.Ranges[n-1])-6:] != "-60000" {
		t.Errorf("ranges %v", scan.Ports.Ranges) // all but the 8 shown
	}
	r.offer(r.deny("10.0.0.1", 60_001))
	r.demand("while the scan lasts")
	r.pass(time.Minute)
	r.demand("its second minute", "10.0.0.1>web-0:0 x1 ports 1 [60001]")
	r.pass(time.Minute)
	r.offer(r.deny("10.0.0.1", 7))
	r.demand("after a quiet minute", "10.0.0.1>web-0:7")
	if r.log.scans != 0 || len(r.log.kinds) != 1 {
		t.Errorf("%d scans, %d kinds are remembered", r.log.scans, len(r.log.kinds))
	}
}

func TestPortRanges(t *testing.T) {
	s := &portSet{}
	for _, port := range []uint16{0, 1, 2, 80, 443, 8000, 8001, 65534, 65535} {
		s.add(port)
	}
	want := &Ports{Distinct: 9, Ranges: []string{"0-2", "80", "443", "8000-8001", "65534-65535"}}
	if diff := cmp.Diff(want, s.ports()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	odd := &portSet{}
	for port := uint16(1); port < 1000; port += 2 {
		odd.add(port)
	}
	if p := odd.ports(); len(p.Ranges) != maxRanges || p.Distinct != 500 || p.More != 500-maxRanges {
		t.Errorf("%d ranges, %d more, of %d ports", len(p.Ranges), p.More, p.Distinct)
	}
}

// TestFoldBounded: spoofed sources, each a scanner, cannot grow the table; what
// does not fit is left to the limit, and every denial is accounted for.
func TestFoldBounded(t *testing.T) {
	r := newLogRig(t, LogConfig{FoldEvery: time.Minute, Rate: 100, Burst: 1000})
	offered := uint64(0)
	for i := range 3 * foldKinds {
		src := fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255)
		for port := range uint16(foldPorts + 3) {
			r.offer(r.deny(src, port))
			offered++
		}
	}
	if len(r.log.kinds) != foldKinds || r.log.scans != foldScans {
		t.Errorf("%d kinds and %d scans are remembered", len(r.log.kinds), r.log.scans)
	}
	if n := len(r.lines()); n != 1000 {
		t.Errorf("%d lines at once, want the burst", n)
	}
	r.pass(time.Hour)
	if len(r.log.kinds) != 0 || r.log.scans != 0 {
		t.Errorf("%d kinds and %d scans are remembered an hour later", len(r.log.kinds), r.log.scans)
	}
	if s := r.log.Stats(); s.Withheld == 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestLogAddsUp offers random traffic for some minutes: the counts in the log,
// what it says it withheld and what it says was lost are all there was.
func TestLogAddsUp(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		r := newLogRig(t, LogConfig{FoldEvery: 10 * time.Second, Rate: 5, Burst: 10, Filter: All})
		offered := uint64(0)
		for range 60 {
			for range random.IntN(40) {
				rec := r.deny(fmt.Sprintf("10.0.0.%d", random.IntN(5)), uint16(random.IntN(20)))
				rec.Decision.Verdict = policy.Verdict(random.IntN(2))
				rec.Revision = uint64(random.IntN(3))
				r.offer(rec)
				offered++
			}
			if random.IntN(5) == 0 {
				r.log.Lost(3, r.clock)
				offered += 3
			}
			r.pass(time.Second)
		}
		r.log.Finish(r.clock)
		lines, told := r.lines(), uint64(0)
		for _, l := range lines {
			told += l.Flows() + l.Lost + l.Withheld
		}
		if told != offered {
			t.Errorf("seed %d: %d offered, the log tells of %d", seed, offered, told)
		}
		if most := 2 * (10 + 60*5); len(lines) > most+2*61 {
			t.Errorf("seed %d: %d lines, the limit is %d and two more a second", seed, len(lines), most)
		}
		s := r.log.Stats()
		if s.Lines == 0 || s.Folded == 0 || s.Withheld == 0 || s.Lost == 0 {
			t.Errorf("seed %d: stats %+v", seed, s)
		}
	}
}

// TestLimit: a burst, then the rate; denied and allowed flows apart; what was
// withheld or lost is said once a second.
func TestLimit(t *testing.T) {
	r := newLogRig(t, LogConfig{Rate: 2, Burst: 3, Filter: All})
	denied := r.deny("10.0.0.1", 80)
	allowed := denied
	allowed.Decision.Verdict = policy.Allow
	r.offer(slices.Repeat([]Record{allowed}, 100)...)
	r.offer(slices.Repeat([]Record{denied}, 5)...)
	r.log.Lost(4, r.clock)
	r.log.Lost(5, r.clock)
	r.demand("a burst", slices.Repeat([]string{"10.0.0.1>web-0:80"}, 6)...)
	r.pass(time.Second)
	r.demand("a second later", "lost 9", "withheld 99 in 99")
	r.offer(slices.Repeat([]Record{denied}, 3)...)
	r.pass(time.Second)
	r.demand("two seconds later", "10.0.0.1>web-0:80", "10.0.0.1>web-0:80", "withheld 1 in 1")
	r.offer(denied, denied, denied)
	r.log.Finish(r.clock)
	r.demand("the end", "10.0.0.1>web-0:80", "10.0.0.1>web-0:80", "withheld 1 in 1")
	if s := r.log.Stats(); s != (LogStats{Lines: 10, Withheld: 101, Lost: 9}) {
		t.Errorf("stats %+v", s)
	}
}

// TestLogNone writes nothing at all.
func TestLogNone(t *testing.T) {
	cfg := folding
	cfg.Filter = None
	r := newLogRig(t, cfg)
	r.offer(r.deny("10.0.0.1", 80))
	r.log.Lost(3, r.clock)
	r.pass(time.Minute)
	r.log.Finish(r.clock)
	r.demand("none")
}

// TestFoldedLoss: a summary that cannot be written is lost with all it told of.
func TestFoldedLoss(t *testing.T) {
	w := &flaky{room: 1 << 20}
	r := newLogRig(t, folding)
	r.log = NewLog(w, LogConfig{FoldEvery: time.Minute, Burst: 1, Now: func() time.Time { return r.clock }})
	for range 10 {
		r.offer(r.deny("10.0.0.1", 80))
	}
	w.room = 5
	r.pass(time.Minute)
	w.room = 1 << 20
	r.offer(r.deny("10.0.0.3", 80))
	if !strings.Contains(w.String(), `{"lost":9,`) {
		t.Errorf("want 9 lost:\n%s", w.String())
	}
}

// BenchmarkFlowLog is what one repeated denial costs the collector.
func BenchmarkFlowLog(b *testing.B) {
	for _, kind := range []string{"repeated", "scan"} {
		b.Run(kind, func(b *testing.B) {
			var out bytes.Buffer
			log := NewLog(&out, LogConfig{FoldEvery: time.Minute, Rate: 100, Burst: 1000})
			r := &logRig{clock: time.Unix(0, when)}
			records := []Record{r.deny("10.0.0.1", 80)}
			b.ReportAllocs()
			for b.Loop() {
				if kind == "scan" {
					records[0].DstPort++
				}
				log.Flows(records)
			}
			if n := log.Stats().Lines; n < 1 || n > foldPorts {
				b.Fatalf("%d lines", n)
			}
		})
	}
}
