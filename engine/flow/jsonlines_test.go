package flow

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/netverdict/netverdict/policy"
)

func verdicts(vs ...policy.Verdict) []Record {
	records := make([]Record, len(vs))
	for i, v := range vs {
		records[i] = Record{Time: when + int64(i), Revision: uint64(i + 1), Decision: policy.Decision{Verdict: v}}
	}
	return records
}

func TestFilter(t *testing.T) {
	want := map[Filter]string{Denied: "deny deny ", All: "deny allow deny ", None: ""}
	for f, want := range want {
		var out bytes.Buffer
		j := NewJSONLines(&out, f, nil)
		j.Flows(verdicts(policy.Deny, policy.Allow, policy.Deny))
		got := ""
		for l, err := range ReadJSON(&out) {
			if err != nil {
				t.Fatal(err)
			}
			got += l.Verdict.String() + " "
		}
		if got != want || j.Written() != uint64(strings.Count(want, " ")) {
			t.Errorf("%v shows %q, %d written; want %q", f, got, j.Written(), want)
		}
		var back Filter
		if text, _ := f.MarshalText(); back.UnmarshalText(text) != nil || back != f {
			t.Errorf("%v does not survive its text %q", f, text)
		}
	}
	if new(Filter).UnmarshalText([]byte("allowed")) == nil {
		t.Error("an unknown filter was accepted")
	}
	if f := Filter(9); f.Keep(policy.Allow) || f.Keep(policy.Deny) {
		t.Error("an undefined filter keeps flows")
	}
}

func TestLostLine(t *testing.T) {
	var out bytes.Buffer
	now := time.Date(2026, 11, 21, 10, 2, 5, 0, time.FixedZone("CET", 3600))
	for _, f := range []Filter{Denied, All, None} {
		NewJSONLines(&out, f, nil).Lost(92, now)
	}
	if want := strings.Repeat(`{"lost":92,"time":"2026-11-21T09:02:05Z"}`+"\n", 2); out.String() != want {
		t.Errorf("got %s, want it from denied and all:\n%s", out.String(), want)
	}
}

// flaky accepts room bytes, then fails.
type flaky struct {
	bytes.Buffer
	room int
}

var errFull = errors.New("no space left on device")

func (w *flaky) Write(b []byte) (int, error) {
	n := min(len(b), w.room)
	w.room -= n
	w.Buffer.Write(b[:n])
	if n < len(b) {
		return n, errFull
	}
	return n, nil
}

// TestEveryFailurePoint lets the writer fail after every possible number of
// bytes and then recover: whatever was cut off is announced as lost, exactly,
// and the log stays readable around the one line that was cut.
func TestEveryFailurePoint(t *testing.T) {
	var whole bytes.Buffer
	NewJSONLines(&whole, All, nil).Flows(verdicts(0, 0, 0))
	for room := range whole.Len() {
		w := &flaky{room: room}
		reports := 0
		j := NewJSONLines(w, All, func(err error) {
			reports++
			if !errors.Is(err, errFull) || !strings.Contains(err.Error(), "--flow-log=none") {
				t.Errorf("reported %v", err)
			}
		})
		j.Flows(verdicts(0, 0, 0))
		w.room = room % 60 // fails again, mostly within the lost line
		j.Flows(verdicts(0))
		w.room = 1 << 20
		j.Flows(verdicts(0))
		checkLog(t, room, j, w, 5)
		if reports != 1 {
			t.Fatalf("room %d: %d reports, want one", room, reports)
		}
	}
}

// checkLog counts the lines that can be read in a log with failures in it.
func checkLog(t *testing.T, room int, j *JSONLines, w *flaky, offered uint64) {
	t.Helper()
	var shown, lost, cut uint64
	for l, err := range ReadJSON(bytes.NewReader(w.Bytes())) {
		switch {
		case err != nil:
			cut++
		case l.Lost > 0:
			lost += l.Lost
		default:
			shown++
		}
	}
	if lost == 0 || shown+lost != offered || shown != j.Written() || cut > 2 {
		t.Fatalf("room %d: of %d, %d readable, %d written, %d announced lost, %d cut lines:\n%s",
			room, offered, shown, j.Written(), lost, cut, w.String())
	}
	if j.Errors() < 1 || j.Errors() > 2 {
		t.Fatalf("room %d: %d errors counted", room, j.Errors())
	}
}

// TestLongBatch: text is written before it grows without bound.
func TestLongBatch(t *testing.T) {
	var sizes []int
	j := NewJSONLines(writerFunc(func(b []byte) { sizes = append(sizes, len(b)) }), All, nil)
	j.Flows(verdicts(make([]policy.Verdict, 1500)...))
	if len(sizes) < 2 || sizes[0] < flushLen || sizes[0] > flushLen+1000 || j.Written() != 1500 {
		t.Errorf("writes of %v bytes, %d lines", sizes, j.Written())
	}
}

// writerFunc is a writer that always succeeds.
type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

// short is a writer that breaks io.Writer's contract.
type short struct{}

func (short) Write(b []byte) (int, error) { return len(b) / 2, nil }

func TestShortWrite(t *testing.T) {
	var reported error
	j := NewJSONLines(short{}, All, func(err error) { reported = err })
	j.Flows(verdicts(0))
	if !errors.Is(reported, io.ErrShortWrite) || j.Errors() != 1 || j.Written() != 0 {
		t.Errorf("reported %v, %d errors, %d written", reported, j.Errors(), j.Written())
	}
}

// TestClosedPipe is stdout whose reader has gone: the collector goes on.
func TestClosedPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	reports := make(chan error, 10)
	j, m := NewJSONLines(w, All, func(err error) { reports <- err }), &memory{}
	c := NewCollector(j, m)
	ring := c.NewRing(16)
	for i := range 5 {
		ring.Push(&verdicts(0)[0])
		eventually(t, "the other sink to get the record", func() bool { return m.len() == i+1 })
	}
	closeCollector(t, c)
	if len(reports) != 1 || j.Errors() != 5 {
		t.Errorf("%d reports of %d errors, want one of 5", len(reports), j.Errors())
	}
}

// TestUnreadPipe is stdout that nobody drains: pushes go on and losses are
// counted, and when the reader comes back it finds everything accounted for.
func TestUnreadPipe(t *testing.T) {
	const offered = 2_500 // at 150 bytes far more than a pipe and a ring hold
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := NewCollector(NewJSONLines(w, All, func(err error) { t.Error(err) }))
	ring := c.NewRing(64)
	rec := verdicts(0)[0]
	for range offered { // hangs here if a full pipe can block Push
		ring.Push(&rec)
		time.Sleep(time.Microsecond)
	}
	if ring.Lost() == 0 {
		t.Error("nothing was lost: the pipe was not full")
	}
	total := make(chan uint64)
	go func() {
		n := uint64(0)
		for l, err := range ReadJSON(r) {
			if err != nil {
				t.Error(err)
			} else if n++; l.Lost > 0 {
				n += l.Lost - 1
			}
		}
		total <- n
	}()
	closeCollector(t, c)
	w.Close()
	if n := <-total; n != offered {
		t.Errorf("the log accounts for %d of %d flows", n, offered)
	}
}
