//go:build linux

package kubelet

import (
	"context"
	"sync"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// provider is what Virtual Kubelet's PodController drives.
type provider struct {
	node *Node

	mu     sync.Mutex
	pods   map[types.NamespacedName]*pod
	notify func(*corev1.Pod)
}

func nameOf(p *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

// NotifyPods implements node.PodNotifier.
func (v *provider) NotifyPods(_ context.Context, notify func(*corev1.Pod)) { v.notify = notify }

// CreatePod implements node.PodLifecycleHandler: the pod's processes run, or are
// about to, when it returns.
func (v *provider) CreatePod(_ context.Context, object *corev1.Pod) error {
	p, err := newPod(v.node, object)
	if err != nil {
		return errdefs.AsInvalidInput(err)
	}
	v.mu.Lock()
	v.pods[nameOf(object)] = p
	v.mu.Unlock()
	p.start()
	go func() {
		p.report(v.notify)
		v.forget(p)
	}()
	return nil
}

// forget removes a pod that has ended, unless another one took its name.
func (v *provider) forget(p *pod) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if key := nameOf(p.created); v.pods[key] == p {
		delete(v.pods, key)
	}
}

// UpdatePod implements node.PodLifecycleHandler. Virtual Kubelet also calls it for
// a new pod of the same name, while the old one is not gone.
func (v *provider) UpdatePod(ctx context.Context, object *corev1.Pod) error {
	p, err := v.find(object.Namespace, object.Name)
	if err != nil {
		return err
	}
	if p.created.UID == object.UID {
		p.update(object)
		return nil
	}
	p.end(0)
	select {
	case <-p.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	return v.CreatePod(ctx, object)
}

// DeletePod implements node.PodLifecycleHandler. It does not wait for the end.
func (v *provider) DeletePod(_ context.Context, object *corev1.Pod) error {
	p, err := v.find(object.Namespace, object.Name)
	if err != nil {
		return err
	}
	grace := time.Duration(0) // no longer in the API server
	if object.DeletionGracePeriodSeconds != nil {
		grace = time.Duration(*object.DeletionGracePeriodSeconds) * time.Second
	}
	p.end(grace)
	return nil
}

func (v *provider) find(namespace, name string) (*pod, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.pods[types.NamespacedName{Namespace: namespace, Name: name}]
	if p == nil {
		return nil, errdefs.NotFoundf("pod %s/%s is not on this node", namespace, name)
	}
	return p, nil
}

// GetPod implements node.PodLifecycleHandler.
func (v *provider) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	p, err := v.find(namespace, name)
	if err != nil {
		return nil, err
	}
	return p.snapshot(), nil
}

// GetPodStatus implements node.PodLifecycleHandler.
func (v *provider) GetPodStatus(ctx context.Context, namespace, name string) (*corev1.PodStatus, error) {
	object, err := v.GetPod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return &object.Status, nil
}

// GetPods implements node.PodLifecycleHandler.
func (v *provider) GetPods(context.Context) ([]*corev1.Pod, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []*corev1.Pod
	for _, p := range v.pods {
		out = append(out, p.snapshot())
	}
	return out, nil
}

// endAll ends every pod at once, and waits.
func (v *provider) endAll() {
	v.mu.Lock()
	pods := make([]*pod, 0, len(v.pods))
	for _, p := range v.pods {
		pods = append(pods, p)
	}
	v.mu.Unlock()
	for _, p := range pods {
		p.end(0)
	}
	for _, p := range pods {
		<-p.ended
	}
}
