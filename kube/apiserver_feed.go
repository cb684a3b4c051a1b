package kube

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/netverdict/netverdict/policy"
)

// retryFirst is the first pause after an error; each further one is twice as long.
const retryFirst = 100 * time.Millisecond

// feed is the store of a reflector: it keeps nothing, converts what it is given on
// the reflector's goroutine and lets the owner enter it. client-go's informers
// would keep the objects once more, and do not let their retries be set.
type feed[A metav1.Object, T any] struct {
	ctx     context.Context // of Watch: a reflector must not wait for an owner that has gone
	owner   *owner
	kind    kind
	table   *table[T] // the owner's: only touched in events
	convert func(A) row[T]
}

var _ cache.TransformingStore = (*feed[*corev1.Pod, *policy.Pod])(nil)

// startReflectors starts one reflector for each kind.
func (o *owner) startReflectors(ctx context.Context, group *sync.WaitGroup) {
	pods := &podConverter{}
	start(ctx, o, group, &corev1.Namespace{}, namespaceKind, o.namespaces, namespaceRow)
	start(ctx, o, group, &corev1.Pod{}, podKind, o.pods, pods.row)
	start(ctx, o, group, &corev1.Node{}, nodeKind, o.nodes, nodeRow)
	start(ctx, o, group, &networkingv1.NetworkPolicy{}, policyKind, o.policies, policyRow)
}

func start[A metav1.Object, T any](ctx context.Context, o *owner, group *sync.WaitGroup, example A, k kind, t *table[T], convert func(A) row[T]) {
	f := &feed[A, T]{ctx: ctx, owner: o, kind: k, table: t, convert: convert}
	maximum := o.cluster.opts.RetryMax
	r := cache.NewReflectorWithOptions(f.observed(o.cluster.sources[k]), example, f, cache.ReflectorOptions{
		Name: "netverdict " + k.String(),
		Backoff: &wait.Backoff{
			Duration: min(retryFirst, maximum), Cap: maximum, Factor: 2, Jitter: 0.5, Steps: math.MaxInt32,
		},
	})
	// The zero Logger is silent: what reflectors log on each retry, observed reports
	// once.
	ctx = klog.NewContext(ctx, klog.Logger{})
	group.Go(func() { r.RunWithContext(ctx) })
}

// do has the owner run an event.
func (f *feed[A, T]) do(event func()) error {
	select {
	case f.owner.events <- event:
		return nil
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
}

// Transformer makes the reflector keep rows, not API objects, while it receives a
// list as a stream.
func (f *feed[A, T]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return f.row(obj) }
}

func (f *feed[A, T]) row(obj any) (row[T], error) {
	switch obj := obj.(type) {
	case row[T]:
		return obj, nil
	case A:
		return f.convert(obj), nil
	}
	var want A
	return row[T]{}, fmt.Errorf("watch %s: got a %T, want a %T", f.kind, obj, want)
}

// Add enters an object that is new to the reflector.
func (f *feed[A, T]) Add(obj any) error { return f.Update(obj) }

// Update enters an object.
func (f *feed[A, T]) Update(obj any) error {
	r, err := f.row(obj)
	if err != nil {
		return err
	}
	revision := revisionOf(obj)
	return f.do(func() { f.owner.changed(f.kind, f.table.put(r), revision, f.table.present) })
}

// Delete takes an object out. Reflectors, unlike informers, give the last state of
// the object itself; only its name matters.
func (f *feed[A, T]) Delete(obj any) error {
	r, err := f.row(obj)
	if err != nil {
		return err
	}
	revision := revisionOf(obj)
	return f.do(func() { f.owner.changed(f.kind, f.table.remove(r.name), revision, f.table.present) })
}

// Replace enters the result of a list: the first one, and when a watch cannot be
// resumed. Objects that vanished meanwhile are just not in it.
func (f *feed[A, T]) Replace(objs []any, revision string) error {
	rows := make([]row[T], 0, len(objs))
	for _, obj := range objs {
		r, err := f.row(obj)
		if err != nil {
			return err
		}
		rows = append(rows, r)
	}
	return f.do(func() {
		f.owner.changed(f.kind, f.table.replace(rows), revision, f.table.present)
		f.owner.synced(f.kind)
	})
}

// Bookmark notes that nothing happened up to a revision.
func (f *feed[A, T]) Bookmark(revision string) error {
	return f.do(func() { f.owner.changed(f.kind, false, revision, f.table.present) })
}

// Resync has nothing to do: every event is handled when it comes.
func (f *feed[A, T]) Resync() error { return nil }

func revisionOf(obj any) string {
	if o, ok := obj.(metav1.Object); ok {
		return o.GetResourceVersion()
	}
	return ""
}

// observed tells the owner how the requests of a lister go.
func (f *feed[A, T]) observed(l lister) lister {
	inner := cache.ToListerWatcherWithContext(l)
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			list, err := inner.ListWithContext(ctx, opts)
			f.failed(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (apiwatch.Interface, error) {
			w, err := inner.WatchWithContext(ctx, opts)
			if err != nil {
				if opts.SendInitialEvents == nil || !listsNext(err) {
					f.failed(err)
				}
				return nil, err
			}
			_ = f.do(func() { f.owner.connected(f.kind) }) // fails only at the end
			return observe(w, f.failed, f.disconnected), nil
		},
	}, l)
}

// listsNext tells that the reflector answers a failed stream with an ordinary list,
// which then reports if it fails too. It may succeed: servers before 1.34 may not
// stream lists.
func listsNext(err error) bool {
	return !utilnet.IsConnectionRefused(err) && !apierrors.IsTooManyRequests(err)
}

// failed reports an error, except for those that are part of every watch's life:
// the end of Watch, and a revision that the server has forgotten.
func (f *feed[A, T]) failed(err error) {
	if err == nil || f.ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return
	}
	_ = f.do(func() { f.owner.failed(f.kind, err) }) // fails only at the end
}

func (f *feed[A, T]) disconnected() {
	_ = f.do(func() { f.owner.disconnected(f.kind) }) // fails only at the end
}

// observedWatch passes on the events of a watch and tells about errors among them.
type observedWatch struct {
	inner  apiwatch.Interface
	result chan apiwatch.Event
	stop   chan struct{}
	once   sync.Once
	closed func()
}

func observe(inner apiwatch.Interface, failed func(error), closed func()) apiwatch.Interface {
	w := &observedWatch{inner: inner, result: make(chan apiwatch.Event), stop: make(chan struct{}), closed: closed}
	go func() {
		defer close(w.result)
		for event := range inner.ResultChan() {
			if event.Type == apiwatch.Error {
				failed(apierrors.FromObject(event.Object))
			}
			select {
			case w.result <- event:
			case <-w.stop:
				return
			}
		}
	}()
	return w
}

// ResultChan is closed when the watch ends.
func (w *observedWatch) ResultChan() <-chan apiwatch.Event { return w.result }

// Stop may be called several times; reflectors do.
func (w *observedWatch) Stop() {
	w.once.Do(func() {
		close(w.stop)
		w.inner.Stop()
		w.closed()
	})
}
