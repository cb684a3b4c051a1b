package kube

import (
	"slices"

	"github.com/netverdict/netverdict/policy"
)

// row is what is kept of one API object.
type row[T any] struct {
	name    policy.NamespacedName
	value   T
	shown   bool     // value is part of snapshots
	notices []Notice // worth telling about the object
}

func (r *row[T]) empty() bool { return !r.shown && len(r.notices) == 0 }

// enter counts a row in n times, and notes what snapshots show of it now.
func (t *table[T]) enter(r *row[T], n int) {
	var now T
	if r.shown {
		t.present += n
		if n > 0 {
			now = r.value
		}
	}
	if len(r.notices) > 0 {
		t.noted += n
	}
	if t.since == nil {
		t.since = map[policy.NamespacedName]T{}
	}
	t.since[r.name] = now
	t.valid = false
}

// take returns what changed since it was called last.
func (t *table[T]) take() map[policy.NamespacedName]T {
	since := t.since
	t.since = nil
	return since
}

// table holds the rows of one kind in the order of their names.
type table[T any] struct {
	same func(a, b T) bool
	rows []row[T]

	present int // values shown
	noted   int // rows with notices

	since map[policy.NamespacedName]T // what changed since it was taken; the zero T is gone

	list  []T // of them, if valid: given to snapshots, never changed
	valid bool
}

func newTable[T any](same func(a, b T) bool) *table[T] { return &table[T]{same: same} }

func (t *table[T]) find(name policy.NamespacedName) (int, bool) {
	return slices.BinarySearchFunc(t.rows, name, func(r row[T], n policy.NamespacedName) int { return r.name.Compare(n) })
}

func (t *table[T]) get(name policy.NamespacedName) (T, bool) {
	i, ok := t.find(name)
	if !ok || !t.rows[i].shown {
		var zero T
		return zero, false
	}
	return t.rows[i].value, true
}

// put enters a row and reports whether that made a difference. An equal row is
// left as it is, so that snapshots share it.
func (t *table[T]) put(r row[T]) bool {
	if r.empty() {
		return t.remove(r.name)
	}
	i, ok := t.find(r.name)
	switch {
	case !ok:
		t.rows = slices.Insert(t.rows, i, r)
	case t.equal(&t.rows[i], &r):
		return false
	default:
		t.enter(&t.rows[i], -1)
		t.rows[i] = r
	}
	t.enter(&r, 1)
	return true
}

func (t *table[T]) equal(a, b *row[T]) bool {
	return a.shown == b.shown && (!a.shown || t.same(a.value, b.value)) && slices.Equal(a.notices, b.notices)
}

// remove takes a row out and reports whether it was there.
func (t *table[T]) remove(name policy.NamespacedName) bool {
	i, ok := t.find(name)
	if !ok {
		return false
	}
	t.enter(&t.rows[i], -1)
	t.rows = slices.Delete(t.rows, i, i+1)
	return true
}

// replace makes rows the only ones and reports whether that made a difference.
func (t *table[T]) replace(rows []row[T]) bool {
	rows = slices.DeleteFunc(rows, func(r row[T]) bool { return r.empty() })
	slices.SortFunc(rows, func(a, b row[T]) int { return a.name.Compare(b.name) })
	old := make(map[policy.NamespacedName]*row[T], len(t.rows))
	for i := range t.rows {
		old[t.rows[i].name] = &t.rows[i]
	}
	var came []*row[T]
	for i := range rows {
		if before := old[rows[i].name]; before != nil && t.equal(before, &rows[i]) {
			rows[i] = *before
			delete(old, rows[i].name)
			continue
		}
		came = append(came, &rows[i])
	}
	for _, r := range old {
		t.enter(r, -1)
	}
	for _, r := range came {
		t.enter(r, 1)
	}
	t.rows = rows
	return len(old)+len(came) > 0
}

// values lists what snapshots show. The list does not change afterwards.
func (t *table[T]) values() []T {
	if t.valid {
		return t.list
	}
	t.list = make([]T, 0, t.present)
	for i := range t.rows {
		if t.rows[i].shown {
			t.list = append(t.list, t.rows[i].value)
		}
	}
	t.valid = true
	return t.list
}

func (t *table[T]) notices() []Notice {
	if t.noted == 0 {
		return nil
	}
	var out []Notice
	for i := range t.rows {
		out = append(out, t.rows[i].notices...)
	}
	return out
}
