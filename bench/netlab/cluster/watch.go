//go:build linux

package cluster

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

// view follows the objects of one kind and says which have changed.
type view[T runtime.Object] struct {
	cache.Store
	changed func(key string)
}

// follow starts to follow, until ctx ends. changed is called with "namespace/name"
// after each change, and must not block.
func follow[T runtime.Object](ctx context.Context, c *Cluster, client rest.Interface, resource string, selector fields.Selector, example T, changed func(key string)) *view[T] {
	v := &view[T]{Store: cache.NewStore(cache.MetaNamespaceKeyFunc), changed: changed}
	r := cache.NewReflectorWithOptions(cache.NewListWatchFromClient(client, resource, "", selector), example, v, cache.ReflectorOptions{
		// The default would pause for up to a minute after an outage of the API server.
		Backoff: &wait.Backoff{Duration: 50 * time.Millisecond, Cap: 200 * time.Millisecond, Factor: 2, Steps: math.MaxInt32},
	})
	ctx = klog.NewContext(ctx, klog.Logger{}) // silent: outages are made on purpose
	c.background.Go(func() { r.RunWithContext(ctx) })
	return v
}

// get returns the object of a key.
func (v *view[T]) get(key string) (object T, ok bool) {
	o, ok, err := v.GetByKey(key)
	if err != nil || !ok {
		return object, false
	}
	return o.(T), true
}

func (v *view[T]) all() []T {
	var out []T
	for _, o := range v.List() {
		out = append(out, o.(T))
	}
	return out
}

func (v *view[T]) after(obj any, err error) error {
	if err != nil {
		return err
	}
	key, err := cache.MetaNamespaceKeyFunc(obj)
	if err == nil {
		v.changed(key)
	}
	return err
}

// Add enters an object.
func (v *view[T]) Add(obj any) error { return v.after(obj, v.Store.Add(obj)) }

// Update enters another state of an object.
func (v *view[T]) Update(obj any) error { return v.after(obj, v.Store.Update(obj)) }

// Delete takes an object out.
func (v *view[T]) Delete(obj any) error { return v.after(obj, v.Store.Delete(obj)) }

// Replace is the result of a list.
func (v *view[T]) Replace(list []any, revision string) error {
	before := v.ListKeys()
	if err := v.Store.Replace(list, revision); err != nil {
		return err
	}
	for _, key := range before {
		v.changed(key)
	}
	for _, key := range v.ListKeys() {
		v.changed(key)
	}
	return nil
}

// keys is a queue of what to look at, without duplicates, with a pause for what
// failed.
type keys struct {
	workqueue.TypedRateLimitingInterface[string]
}

func newKeys() keys {
	return keys{workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](20*time.Millisecond, time.Second))}
}

// serve calls look with each key in the queue, several at a time, until ctx ends.
// After an error the key comes again; the same error is told once.
func (q keys) serve(ctx context.Context, c *Cluster, workers int, who string, look func(ctx context.Context, key string) error) {
	c.background.Go(func() {
		<-ctx.Done()
		q.ShutDown()
	})
	var told sync.Map
	for range workers {
		c.background.Go(func() {
			for {
				key, over := q.Get()
				if over {
					return
				}
				if err := look(ctx, key); err != nil && ctx.Err() == nil {
					text := fmt.Sprintf("%s: %s: %v", who, key, err)
					if _, again := told.LoadOrStore(text, true); !again {
						c.opts.Logf("%s", text)
					}
					q.AddRateLimited(key)
				} else {
					q.Forget(key)
				}
				q.Done(key)
			}
		})
	}
}
