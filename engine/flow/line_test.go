package flow

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// podNames is Names from a map.
type podNames map[string]policy.NamespacedName

func (n podNames) Pod(a netip.Addr) (*policy.Pod, bool) {
	name, ok := n[a.String()]
	return &policy.Pod{NamespacedName: name}, ok
}

func ref(ns, name string) policy.PolicyRef {
	return policy.PolicyRef{Kind: "NetworkPolicy", NamespacedName: policy.NamespacedName{Namespace: ns, Name: name}}
}

var (
	noPolicy    = &policy.Outcome{Verdict: policy.Allow, Reason: policy.ReasonNoPolicy}
	external    = &policy.Outcome{Verdict: policy.Allow, Reason: policy.ReasonExternal}
	malformed   = &policy.Outcome{Reason: policy.ReasonMalformed}
	byRule0     = &policy.Outcome{Verdict: policy.Allow, Reason: policy.ReasonPolicy, Policy: ref("production", "allow-web")}
	defaultDeny = &policy.Outcome{
		Reason:     policy.ReasonDefaultDeny,
		IsolatedBy: []policy.PolicyRef{ref("staging", "default-deny"), ref("staging", "dns")},
	}
	auditedDeny = &policy.Outcome{
		Reason: policy.ReasonDefaultDeny, Audit: true, IsolatedBy: []policy.PolicyRef{ref("production", "default-deny")},
	}
	names = podNames{
		"10.0.0.1": {Namespace: "staging", Name: "app1"},
		"fd00::2":  {Namespace: "production", Name: "web-0"},
	}
	when = time.Date(2026, 11, 21, 9, 2, 4, 123456789, time.UTC).UnixNano()
)

// goldenRecords has one record of each kind with the line it gives.
var goldenRecords = []struct {
	name string
	rec  Record
	want string
}{
	{"default deny at the source", Record{
		Time: when, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("192.0.2.7"), SrcPort: 40001, DstPort: 443,
		Protocol: policy.TCP, TCPFlags: 0x02, Malformed: packet.OK, Names: names, Revision: 7,
		Decision: policy.Decision{Direction: policy.Egress, Egress: defaultDeny, Ingress: external},
	}, `{"time":"2026-11-21T09:02:04.123456789Z","verdict":"deny","direction":"egress","reason":"default-deny","protocol":"TCP",` +
		`"source":{"ip":"10.0.0.1","port":40001,"namespace":"staging","pod":"app1"},"destination":{"ip":"192.0.2.7","port":443},` +
		`"isolatedBy":["staging/default-deny","staging/dns"],` +
		`"egress":{"verdict":"deny","reason":"default-deny","isolatedBy":["staging/default-deny","staging/dns"]},` +
		`"ingress":{"verdict":"allow","reason":"external"},"tcpFlags":"SYN","revision":7}`},
	{"allowed by rule 0, from the cache", Record{
		Time: when, Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("fd00::2"), SrcPort: 5353, DstPort: 53,
		Protocol: policy.UDP, Malformed: packet.OK, Names: names, Revision: 8, Cached: true,
		Decision: policy.Decision{Verdict: policy.Allow, Direction: policy.Ingress, Egress: noPolicy, Ingress: byRule0},
	}, `{"time":"2026-11-21T09:02:04.123456789Z","verdict":"allow","direction":"ingress","reason":"policy","protocol":"UDP",` +
		`"source":{"ip":"fd00::1","port":5353},"destination":{"ip":"fd00::2","port":53,"namespace":"production","pod":"web-0"},` +
		`"policy":"production/allow-web","rule":0,"egress":{"verdict":"allow","reason":"no-policy"},` +
		`"ingress":{"verdict":"allow","reason":"policy","policy":"production/allow-web","rule":0},"cached":true,"revision":8}`},
	{"audited at the destination", Record{
		Time: when, Src: netip.MustParseAddr("192.0.2.7"), Dst: netip.MustParseAddr("fd00::2"), SrcPort: 5353, DstPort: 53,
		Protocol: policy.UDP, Malformed: packet.OK, Names: names, Revision: 9,
		Decision: policy.Decision{Verdict: policy.Allow, Audit: true, Direction: policy.Ingress, Egress: external, Ingress: auditedDeny},
	}, `{"time":"2026-11-21T09:02:04.123456789Z","verdict":"audit","direction":"ingress","reason":"default-deny","protocol":"UDP",` +
		`"source":{"ip":"192.0.2.7","port":5353},"destination":{"ip":"fd00::2","port":53,"namespace":"production","pod":"web-0"},` +
		`"isolatedBy":["production/default-deny"],"egress":{"verdict":"allow","reason":"external"},` +
		`"ingress":{"verdict":"audit","reason":"default-deny","isolatedBy":["production/default-deny"]},"revision":9}`},
	{"ping reply", Record{
		Time: when, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Protocol: policy.ICMP, Malformed: packet.OK,
		Decision: policy.Decision{Verdict: policy.Allow, Direction: policy.Ingress, Egress: noPolicy, Ingress: noPolicy},
	}, `{"time":"2026-11-21T09:02:04.123456789Z","verdict":"allow","direction":"ingress","reason":"no-policy","protocol":"ICMP",` +
		`"source":{"ip":"10.0.0.1"},"destination":{"ip":"10.0.0.2"},"egress":{"verdict":"allow","reason":"no-policy"},` +
		`"ingress":{"verdict":"allow","reason":"no-policy"},"icmp":{"type":0,"code":0}}`},
	{"malformed before the addresses", Record{
		Time: when, Malformed: packet.BadVersion, Names: names,
		Decision: policy.Decision{Egress: malformed, Ingress: malformed},
	}, `{"time":"2026-11-21T09:02:04.123456789Z","verdict":"deny","direction":"egress","reason":"malformed","protocol":"0",` +
		`"source":{},"destination":{},"egress":{"verdict":"deny","reason":"malformed"},` +
		`"ingress":{"verdict":"deny","reason":"malformed"},"malformed":"bad-version"}`},
	{"the zero record denies and names nothing", Record{},
		`{"time":"1970-01-01T00:00:00Z","verdict":"deny","direction":"egress","reason":"unknown","protocol":"0","source":{},"destination":{}}`},
}

func TestLineGolden(t *testing.T) {
	for _, g := range goldenRecords {
		t.Run(g.name, func(t *testing.T) {
			line := NewLine(&g.rec)
			if diff := cmp.Diff(g.want, string(line.AppendJSON(nil))); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			back, err := ParseLine([]byte(g.want))
			if err != nil {
				t.Fatalf("reading it back: %v", err)
			}
			if diff := cmp.Diff(line, back, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("round trip: -written +read\n%s", diff)
			}
		})
	}
}

// TestMarshalers: encoding/json users get the same text.
func TestMarshalers(t *testing.T) {
	line := NewLine(&goldenRecords[0].rec)
	b, err := json.Marshal(struct {
		Line    Line         `json:"line"`
		Outcome *OutcomeJSON `json:"outcome"`
		None    *OutcomeJSON `json:"none"`
	}{line, NewOutcome(byRule0), NewOutcome(nil)})
	want := `{"line":` + goldenRecords[0].want +
		`,"outcome":{"verdict":"allow","reason":"policy","policy":"production/allow-web","rule":0},"none":null}`
	if err != nil || string(b) != want {
		t.Errorf("got %s, %v\nwant %s", b, err, want)
	}
}

// TestHostileNames: names come from manifests nobody validated, perhaps; the
// log must stay one line of plain text per flow, and lose nothing but bytes
// that are no UTF-8.
func TestHostileNames(t *testing.T) {
	name := "a\"b\\c\n\r\t\x00\x1b[31m\x7f\u0085\u009b\u200b\u202e\u2028\U000e0001é中\U0001f600 \xff\xfe"
	rec := goldenRecords[0].rec
	rec.Names = podNames{"10.0.0.1": {Namespace: name, Name: name}}
	rec.Decision.Egress = &policy.Outcome{Reason: policy.ReasonDefaultDeny, IsolatedBy: []policy.PolicyRef{ref(name, name)}}
	line := NewLine(&rec)
	line.Source.IP = netip.MustParseAddr("fe80::1").WithZone("e\x1bth\x9f0")
	b := line.AppendJSON(nil)
	if !utf8.Valid(b) {
		t.Errorf("invalid UTF-8: %q", b)
	}
	for _, r := range string(b) {
		if !unicode.IsPrint(r) {
			t.Errorf("unprintable %U in %q", r, b)
		}
	}
	back, err := ParseLine(b)
	if err != nil {
		t.Fatalf("reading %q back: %v", b, err)
	}
	if want := strings.ToValidUTF8(name, "\ufffd\ufffd"); back.Source.Pod != want || back.IsolatedBy[0] != want+"/"+want {
		t.Errorf("names came back as %q and %q, want %q", back.Source.Pod, back.IsolatedBy, want)
	}
}

func TestTCPFlagsText(t *testing.T) {
	for i := range 256 {
		text, _ := TCPFlags(i).MarshalText()
		back := TCPFlags(^i)
		if err := back.UnmarshalText(text); err != nil || back != TCPFlags(i) {
			t.Errorf("%#x prints %q, which reads as %#x, %v", i, text, back, err)
		}
	}
	if got := TCPFlags(0x12).String(); got != "SYN,ACK" {
		t.Errorf("0x12 prints %q", got)
	}
	if new(TCPFlags).UnmarshalText([]byte("SYN,XMAS")) == nil {
		t.Error("an unknown flag was accepted")
	}
}

func TestReadJSON(t *testing.T) {
	in := goldenRecords[0].want + "\n\n" + `{"verdict":` + "\n" + `{"lost":3,"time":"2026-11-21T10:02:04+01:00","verdict":"allow"}` + "\n" +
		`{}` + "\n" + `{"time":"2026-11-21T09:02:04Z","malformed":"ok"}` + "\n" +
		`{"time":"2026-11-21T09:02:04Z","verdict":"allow","someday":[1]}` // no final line feed
	var got []string
	for l, err := range ReadJSON(strings.NewReader(in)) {
		if err != nil {
			got = append(got, err.Error())
			continue
		}
		got = append(got, l.Verdict.String()+" "+string(l.AppendJSON(nil)[:12]))
	}
	want := []string{
		`deny {"time":"202`,
		"flow log line 3: unexpected end of JSON input",
		`deny {"lost":3,"t`,
		"flow log line 5: no usable time: not a flow log line",
		`flow log line 6: malformed: "ok" is the state of a good packet`,
		`allow {"time":"202`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	for range ReadJSON(strings.NewReader(in)) {
		break // stopping early must be possible
	}
}

func TestReadJSONBounded(t *testing.T) {
	var errs []error
	for _, err := range ReadJSON(strings.NewReader("{}\n" + strings.Repeat("x", MaxLineLen+1))) {
		errs = append(errs, err)
	}
	if len(errs) != 2 || !strings.Contains(errs[1].Error(), "line 2: ") || !strings.Contains(errs[1].Error(), "too long") {
		t.Errorf("errors %v, want line 1 refused and line 2 too long", errs)
	}
}

// FuzzReadJSON: no input makes the reader panic, and what it accepts is stable:
// written and read again it is the same line.
func FuzzReadJSON(f *testing.F) {
	for _, g := range goldenRecords {
		f.Add([]byte(g.want))
	}
	f.Add([]byte(`{"time":"2026-11-21T09:02:04Z","node":"n\u0007","source":{"labels":{"b":"2","a\"":"\u001b"}}}`))
	f.Add([]byte(`{"withheld":7,"lines":2,"time":"2026-11-21T09:02:04.5Z"}`))
	f.Add([]byte(`{"time":"2026-11-21T09:02:04Z","count":3,"first":"2026-11-21T09:02:04+01:00","ports":{"distinct":-1,"ranges":["\u001b","1-2"],"more":1}}`))
	f.Add([]byte(`{"lost":18446744073709551615,"time":"2026-11-21T09:02:04.5+14:00"}`))
	f.Add([]byte(`{"time":"0000-01-01T00:00:00+01:00"}` + "\n" + `{"time":"2026-11-21T09:02:04Z","source":{"ip":"fe80::1%\u001b"},"isolatedBy":[]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		for l, err := range ReadJSON(bytes.NewReader(in)) {
			if err != nil {
				continue
			}
			once := l.AppendJSON(nil)
			if !utf8.Valid(once) || bytes.ContainsFunc(once, unicode.IsControl) {
				t.Fatalf("unsafe text %q", once)
			}
			back, err := ParseLine(once)
			if err != nil {
				t.Fatalf("%q, written from %q, does not read back: %v", once, in, err)
			}
			if twice := back.AppendJSON(nil); !bytes.Equal(once, twice) {
				t.Fatalf("written as %s, read and written again as %s", once, twice)
			}
		}
	})
}

func BenchmarkAppendJSON(b *testing.B) {
	g := goldenRecords[0]
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		line := NewLine(&g.rec)
		buf = line.AppendJSON(buf[:0])
	}
	if string(buf) != g.want {
		b.Fatalf("rendered %s", buf)
	}
}
