package flow

import (
	"cmp"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/netverdict/netverdict/policy"
)

// What folding remembers is bounded: about 4 MiB in all.
const (
	// foldKinds bounds the kinds of denials that are told apart. What comes when
	// the table is full is not folded, and left to the limit.
	foldKinds = 4096
	// foldPorts is how many destination ports of one kind have lines of their
	// own. Who tries more is scanning, and gets one line for all the others.
	foldPorts = 8
	// foldScans bounds the scans whose ports are counted (8 KiB each); of more
	// only examples are kept.
	foldScans = 256
)

// Folded says that a record stands for several.
type Folded struct {
	Count       uint64
	First, Last int64  // Unix time in nanoseconds
	Ports       *Ports // nil: all had the record's destination port
}

// Fold is the Sink at the head of the flow log. It hands on what the filter
// keeps, repeated denials as one record with a count.
//
//	denial of a new kind or port ─▶ at once
//	the same again               ─▶ counted ──every interval──▶ one record for each port
//	a ninth port of one kind     ─▶ counted ──every interval──▶ one record for all of them
//
// A kind that is not seen for an interval is forgotten: its next denial is shown
// at once again.
type Fold struct {
	next   Stage
	filter Filter
	every  time.Duration
	now    func() time.Time
	kinds  map[foldKey]*foldKind
	scans  int    // kinds with a portSet
	serial uint64 // of the newest kind

	folded atomic.Uint64
}

var (
	_ Sink   = (*Fold)(nil)
	_ Ticker = (*Fold)(nil)
)

// NewFold hands on to next. every is the interval; 0 folds nothing.
func NewFold(next Stage, filter Filter, every time.Duration, now func() time.Time) *Fold {
	return &Fold{next: next, filter: filter, every: every, now: now, kinds: map[foldKey]*foldKind{}}
}

// foldKey is what denials of one kind have in common. Policies that isolate
// (default-deny) are compared apart: they change with the policies only.
type foldKey struct {
	src, dst  netip.Addr
	protocol  policy.Protocol
	verdict   policy.Verdict // as reported
	direction policy.Direction
	reason    policy.Reason
	by        policy.PolicyRef
}

// foldKind is one kind and what was folded of it in this interval.
type foldKind struct {
	serial uint64
	record Record // one of them, that keeps no tree alive
	since  time.Time
	ports  []foldPort // shown, at most foldPorts
	scan   *foldScan  // all other ports; nil: there are none
}

type foldTally struct {
	count       uint64
	first, last int64
}

type foldPort struct {
	port uint16
	foldTally
}

type foldScan struct {
	foldTally
	seen     *portSet // nil: too many scans at once
	examples []uint16
}

func (t *foldTally) add(at int64) {
	if t.count == 0 {
		t.first = at
	}
	t.count++
	t.last = at
}

// Flows implements Sink.
func (f *Fold) Flows(records []Record) {
	for i := range records {
		r := &records[i]
		switch {
		case !f.filter.Keep(r.Decision.Reported()):
		case f.absorb(r):
			f.folded.Add(1)
		default:
			f.next.Flow(r, nil)
		}
	}
	f.next.Flush()
}

// Lost implements Sink.
func (f *Fold) Lost(n uint64, now time.Time) {
	if f.filter != None {
		f.next.Lost(n, now)
	}
}

// absorb reports whether a record is folded; if not it is to be shown.
func (f *Fold) absorb(r *Record) bool {
	if r.Decision.Reported() == policy.Allow || f.every <= 0 {
		return false
	}
	key := keyOf(r)
	kind := f.kinds[key]
	if kind != nil && !kind.covers(r) {
		f.sumUp(kind) // the pod or the policies are others now
		f.forget(key, kind)
		kind = nil
	}
	if kind == nil {
		f.open(key, r)
		return false
	}
	return f.add(kind, r)
}

func keyOf(r *Record) foldKey {
	k := foldKey{src: r.Src, dst: r.Dst, protocol: r.Protocol, verdict: r.Decision.Reported(), direction: r.Decision.Direction}
	if o := r.Decision.Outcome(); o != nil {
		k.reason, k.by = o.Reason, o.Policy
	}
	return k
}

func (f *Fold) open(key foldKey, r *Record) {
	if len(f.kinds) >= foldKinds {
		return
	}
	f.serial++
	kind := &foldKind{serial: f.serial, record: *r, since: f.now(), ports: []foldPort{{port: r.DstPort}}}
	kind.record.Names = namesOf(r)
	f.kinds[key] = kind
}

func (f *Fold) forget(key foldKey, kind *foldKind) {
	if kind.scan != nil && kind.scan.seen != nil {
		f.scans--
	}
	delete(f.kinds, key)
}

// covers reports whether a record with the kind's key is of the kind: decided by
// the same policies, about the same pods. Both can change with the tree only.
func (k *foldKind) covers(r *Record) bool {
	old, cause := k.record.Decision.Outcome(), r.Decision.Outcome()
	if r.Revision == k.record.Revision && old == cause {
		return true
	}
	if (old == nil) != (cause == nil) || old != nil && !slices.Equal(old.IsolatedBy, cause.IsolatedBy) {
		return false
	}
	names := namesOf(r)
	if names != k.record.Names {
		return false
	}
	k.record.Decision, k.record.Revision = r.Decision, r.Revision
	return true
}

// add counts a record of a kind, unless its port has to be shown.
func (f *Fold) add(k *foldKind, r *Record) bool {
	for i := range k.ports {
		if k.ports[i].port == r.DstPort {
			k.ports[i].add(r.Time)
			return true
		}
	}
	if len(k.ports) < foldPorts {
		k.ports = append(k.ports, foldPort{port: r.DstPort})
		return false
	}
	if k.scan == nil {
		k.scan = f.newScan()
	}
	k.scan.add(r)
	return true
}

func (f *Fold) newScan() *foldScan {
	if f.scans == foldScans {
		return &foldScan{}
	}
	f.scans++
	return &foldScan{seen: &portSet{}}
}

func (s *foldScan) add(r *Record) {
	s.foldTally.add(r.Time)
	switch {
	case s.seen != nil:
		s.seen.add(r.DstPort)
	case len(s.examples) < foldPorts && !slices.Contains(s.examples, r.DstPort):
		s.examples = append(s.examples, r.DstPort)
	}
}

// Tick sums up the kinds whose interval is over.
func (f *Fold) Tick(now time.Time) {
	f.sumUpAll(func(k *foldKind) bool { return now.Sub(k.since) >= f.every })
	f.next.Flush()
	if t, ok := f.next.(Ticker); ok {
		t.Tick(now)
	}
}

// Finish sums up everything.
func (f *Fold) Finish(now time.Time) {
	f.sumUpAll(func(*foldKind) bool { return true })
	f.next.Flush()
	if t, ok := f.next.(Ticker); ok {
		t.Finish(now)
	}
}

// sumUpAll sums up what is due, oldest first, and begins its next interval. What
// did not happen in this one is forgotten.
func (f *Fold) sumUpAll(due func(*foldKind) bool) {
	type entry struct {
		key  foldKey
		kind *foldKind
	}
	var all []entry
	for key, kind := range f.kinds {
		if due(kind) {
			all = append(all, entry{key, kind})
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Compare(a.kind.serial, b.kind.serial) })
	now := f.now()
	for _, e := range all {
		if !f.sumUp(e.kind) {
			f.forget(e.key, e.kind)
			continue
		}
		e.kind.since = now
	}
}

// sumUp hands on what was folded of a kind, if anything was.
func (f *Fold) sumUp(k *foldKind) bool {
	seen := k.scan != nil && k.scan.count > 0
	kept := k.ports[:0]
	for _, p := range k.ports {
		if p.count > 0 {
			seen = true
			f.hand(k, p.port, p.foldTally, nil)
		}
		if p.count > 0 || k.scan != nil { // while a scan lasts its ports are no news
			kept = append(kept, foldPort{port: p.port})
		}
	}
	k.ports = kept
	if k.scan != nil {
		f.sumUpScan(k)
	}
	return seen
}

func (f *Fold) sumUpScan(k *foldKind) {
	s := k.scan
	if s.count == 0 {
		if s.seen != nil {
			f.scans--
		}
		k.scan = nil
		return
	}
	f.hand(k, 0, s.foldTally, s.ports())
	if s.seen != nil {
		*s.seen = portSet{}
	}
	k.scan = &foldScan{seen: s.seen}
}

// ports renders the ports of a scan.
func (s *foldScan) ports() *Ports {
	if s.seen != nil {
		return s.seen.ports()
	}
	slices.Sort(s.examples)
	p := &Ports{}
	for _, port := range s.examples {
		p.add(int(port), int(port))
	}
	return p
}

func (f *Fold) hand(k *foldKind, port uint16, t foldTally, ports *Ports) {
	r := k.record
	r.Time, r.SrcPort, r.DstPort, r.Cached = t.last, 0, port, false
	f.next.Flow(&r, &Folded{Count: t.count, First: t.first, Last: t.last, Ports: ports})
}

// endNames are Names of one flow's ends, that keep no tree alive.
type endNames struct {
	src, dst         netip.Addr
	srcName, dstName policy.NamespacedName
}

func namesOf(r *Record) Names {
	if r.Names == nil {
		return nil
	}
	return endNames{src: r.Src, dst: r.Dst, srcName: nameOf(r.Names, r.Src), dstName: nameOf(r.Names, r.Dst)}
}

func nameOf(names Names, a netip.Addr) policy.NamespacedName {
	if !a.IsValid() {
		return policy.NamespacedName{}
	}
	if p, ok := names.Pod(a); ok {
		return p.NamespacedName
	}
	return policy.NamespacedName{}
}

// Pod implements Names.
func (n endNames) Pod(a netip.Addr) (*policy.Pod, bool) {
	name := policy.NamespacedName{}
	switch a {
	case n.src:
		name = n.srcName
	case n.dst:
		name = n.dstName
	}
	return &policy.Pod{NamespacedName: name}, name != policy.NamespacedName{}
}
