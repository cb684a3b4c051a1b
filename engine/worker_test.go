package engine

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

const epoch = 5

// judging gives the first worker a tree without running anything.
func (r *rig) judging(tree *policy.Tree) *worker {
	by := &judgement{tree: tree, serial: 1, epoch: epoch, cells: r.engine.hits.cellsFor(tree)}
	if old := r.engine.by.Load(); old != nil {
		by.serial = old.serial + 1
	}
	r.engine.by.Store(by)
	return r.engine.workers[0]
}

// TestAnswers: what the kernel is told about a packet, by its content and its mark.
func TestAnswers(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	w := r.judging(sceneTree(t, allow("web", "db")))
	m := r.marks
	again := func(old uint32, v policy.Verdict) queue.Answer {
		return queue.Answer{Action: queue.Repeat, SetMark: true, Mark: m.Verdict(old, v, epoch)}
	}
	cases := []struct {
		name    string
		payload []byte
		mark    uint32
		want    queue.Answer
	}{
		{"malformed", truncated(t), 0, queue.Answer{}},
		{"malformed, marked by others", truncated(t), foreign, queue.Answer{}},
		{"nothing at all", nil, 0, queue.Answer{}},
		{"not IP", []byte("hello, is this IP?"), 0, queue.Answer{}},
	}
	for name, p := range map[string]struct {
		payload []byte
		v       policy.Verdict
	}{
		"allowed TCP":       {packetOf(t, web4, db4, policy.TCP, tcpPort), policy.Allow},
		"allowed UDP":       {packetOf(t, web4, db4, policy.UDP, udpPort), policy.Allow},
		"allowed SCTP":      {packetOf(t, web4, db4, policy.SCTP, sctpPort), policy.Allow},
		"allowed TCP, v6":   {packetOf(t, web6, db6, policy.TCP, tcpPort), policy.Allow},
		"unpoliced":         {packetOf(t, db4, ops4, policy.ICMP, 0), policy.Allow},
		"unpoliced, v6":     {packetOf(t, db6, ops6, policy.ICMPv6, 0), policy.Allow},
		"another source":    {packetOf(t, ops4, db4, policy.TCP, tcpPort), policy.Deny},
		"another port":      {packetOf(t, web4, db4, policy.TCP, tcpPort+1), policy.Deny},
		"another protocol":  {packetOf(t, web4, db4, policy.UDP, tcpPort), policy.Deny},
		"ICMP beside ports": {packetOf(t, web4, db4, policy.ICMP, 0), policy.Deny},
		"another port, v6":  {packetOf(t, web6, db6, policy.SCTP, tcpPort), policy.Deny},
	} {
		final := queue.Answer{}
		if p.v == policy.Allow {
			final = queue.Answer{Action: queue.Accept, SetMark: true, Mark: foreign}
		}
		for _, c := range []struct {
			name string
			mark uint32
			want queue.Answer
		}{
			{name, 0, again(0, p.v)},
			{name + ", marked by others", foreign, again(foreign, p.v)},
			// A verdict that nobody acted upon: what counts is the answer of today.
			{name + ", after allow", m.Verdict(foreign, policy.Allow, epoch), final},
			{name + ", after deny", m.Verdict(foreign, policy.Deny, epoch), final},
			{name + ", after allow of another epoch", m.Verdict(foreign, policy.Allow, epoch-1), final},
		} {
			cases = append(cases, struct {
				name    string
				payload []byte
				mark    uint32
				want    queue.Answer
			}{c.name, p.payload, c.mark, c.want})
		}
	}
	for _, c := range cases {
		for _, hit := range []string{"", ", again", ", and again"} {
			if got := w.Handle(&queue.Packet{ID: 1, Mark: c.mark, Payload: c.payload}); got != c.want {
				t.Errorf("%s%s: %+v, want %+v", c.name, hit, got, c.want)
			}
		}
	}
}

// TestMalformedIsRecorded with its reason, and counted; it is not cached.
func TestMalformedIsRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	w := r.judging(sceneTree(t))
	w.Handle(&queue.Packet{Payload: truncated(t)})
	stats := r.engine.Stats()
	want := []Decisions{{policy.Egress, policy.ReasonMalformed, policy.Deny, 1}}
	if diff := cmp.Diff(want, stats.Decisions); diff != "" {
		t.Errorf("decisions (-want +got):\n%s", diff)
	}
	if stats.CacheHits+stats.CacheMisses != 0 {
		t.Errorf("the cache was asked: %+v", stats)
	}
	got := r.records()
	if len(got) != 1 {
		t.Fatalf("%d records, want 1", len(got))
	}
	rec := got[0]
	if rec.Malformed != packet.TruncatedHeader || rec.Decision.Verdict != policy.Deny || rec.Src != web4 || rec.Dst != db4 {
		t.Errorf("record %+v", rec)
	}
	if reason := rec.Decision.Outcome().Reason; reason != policy.ReasonMalformed {
		t.Errorf("reason %v", reason)
	}
}

// TestRecords: what a record says, and which packets get one.
func TestRecords(t *testing.T) {
	t.Parallel()
	for filter, want := range map[flow.Filter][]policy.Verdict{
		flow.All:    {policy.Allow, policy.Deny},
		flow.Denied: {policy.Deny},
		flow.None:   nil,
	} {
		t.Run(filter.String(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(c *Config) { c.Log = filter })
			tree := sceneTree(t, allow("web", "db"))
			w := r.judging(tree)
			before := time.Now().UnixNano()
			w.Handle(&queue.Packet{Payload: packetOf(t, web4, db4, policy.TCP, tcpPort)})
			w.Handle(&queue.Packet{Payload: packetOf(t, ops4, db4, policy.TCP, tcpPort)})
			w.BatchEnd()
			after := time.Now().UnixNano()
			records := r.records()
			var got []policy.Verdict
			for _, rec := range records {
				got = append(got, rec.Decision.Verdict)
				if rec.Time < before || rec.Time > after {
					t.Errorf("time %d, want between %d and %d", rec.Time, before, after)
				}
				if rec.Dst != db4 || rec.SrcPort != srcPort || rec.DstPort != tcpPort || rec.Protocol != policy.TCP ||
					rec.TCPFlags != 2 || rec.Names != flow.Names(tree) || rec.Revision != 1 || rec.Cached || rec.Malformed != packet.OK {
					t.Errorf("record %+v", rec)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("verdicts (-want +got):\n%s", diff)
			}
		})
	}
}

// TestAudited: a denial of an audited namespace passes as what is allowed does, is
// recorded where denials are, and is counted by itself.
func TestAudited(t *testing.T) {
	t.Parallel()
	for filter, want := range map[flow.Filter]int{flow.All: 3, flow.Denied: 2, flow.None: 0} {
		r := newRig(t, func(c *Config) { c.Log = filter })
		w := r.judging(auditedTree(t, allow("web", "db")))
		for _, src := range []netip.Addr{ops4, web4, ops4} {
			if got := w.Handle(&queue.Packet{Payload: packetOf(t, src, db4, policy.TCP, tcpPort)}); got != r.verdict(policy.Allow, epoch) {
				t.Errorf("from %v: %+v, want allow", src, got)
			}
		}
		decisions := []Decisions{
			{policy.Ingress, policy.ReasonPolicy, policy.Allow, 1},
			{policy.Ingress, policy.ReasonDefaultDeny, policy.Audit, 2},
		}
		slices.SortFunc(decisions, func(a, b Decisions) int { return int(a.Reason) - int(b.Reason) })
		stats := r.engine.Stats()
		if diff := cmp.Diff(decisions, stats.Decisions); diff != "" || stats.Decided(policy.Allow) != 1 {
			t.Errorf("%v: decisions (-want +got):\n%s", filter, diff)
		}
		if got := len(r.records()); got != want {
			t.Errorf("%v: %d records, want %d", filter, got, want)
		}
	}
}

// TestRecordTimes: a batch is stamped once, the next batch anew.
func TestRecordTimes(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	w := r.judging(sceneTree(t))
	p := &queue.Packet{Payload: packetOf(t, web4, db4, policy.TCP, tcpPort)}
	for range 2 {
		w.Handle(p)
		time.Sleep(2 * time.Microsecond) // the clock must move
		w.Handle(p)
		w.BatchEnd()
	}
	got := r.records()
	if len(got) != 4 {
		t.Fatalf("%d records, want 4", len(got))
	}
	if got[0].Time != got[1].Time || got[2].Time != got[3].Time || got[1].Time >= got[2].Time {
		t.Errorf("times %d %d | %d %d", got[0].Time, got[1].Time, got[2].Time, got[3].Time)
	}
}

// TestStats adds up what two workers did.
func TestStats(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.Sources = append(c.Sources, queue.NewMemory()) })
	first := r.judging(sceneTree(t, allow("web", "db")))
	second := r.engine.workers[1]
	allowed := &queue.Packet{Payload: packetOf(t, web4, db4, policy.TCP, tcpPort)}
	denied := &queue.Packet{Payload: packetOf(t, ops6, db6, policy.UDP, udpPort)}
	free := &queue.Packet{Payload: packetOf(t, web4, ops4, policy.ICMP, 0)}
	for _, p := range []*queue.Packet{allowed, allowed, allowed, denied} {
		first.Handle(p)
	}
	for _, p := range []*queue.Packet{denied, free} {
		second.Handle(p)
	}
	got := r.engine.Stats()
	want := Stats{
		Decisions: []Decisions{
			{policy.Ingress, policy.ReasonPolicy, policy.Allow, 3},
			{policy.Ingress, policy.ReasonDefaultDeny, policy.Deny, 2},
			{policy.Ingress, policy.ReasonNoPolicy, policy.Allow, 1},
		},
		CacheHits: 1, CacheMisses: 5, // the second look admits, the third hits
		Epoch: epoch,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
	if a, d := got.Decided(policy.Allow), got.Decided(policy.Deny); a != 4 || d != 2 {
		t.Errorf("allowed %d, denied %d, want 4 and 2", a, d)
	}
}
