//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
)

// kubelet makes the pods that are bound to its node real:
//
//	watch spec.nodeName=… ─▶ keys ─▶ sync ─┬▶ namespace, addresses, servers ─▶ status: Running, Ready
//	                                       └▶ (deleted, ended) take them down ─▶ delete the object
type kubelet struct {
	node  *Node
	pods  *view[*corev1.Pod]
	keys  keys
	addrs []*addressPool // one for each pod CIDR

	mu      sync.Mutex
	running map[string]*Pod // by "namespace/name"
	failed  map[types.UID]error
}

func (n *Node) startKubelet(ctx context.Context) {
	k := &kubelet{node: n, keys: newKeys(), running: map[string]*Pod{}, failed: map[types.UID]error{}}
	for _, p := range n.PodCIDRs() {
		k.addrs = append(k.addrs, newAddressPool(p))
	}
	n.kubelet = k
	here := fields.OneTermEqualSelector("spec.nodeName", n.Name())
	k.pods = follow(ctx, n.cluster, n.cluster.client.CoreV1().RESTClient(), "pods", here, &corev1.Pod{}, func(key string) { k.keys.Add(key) })
	k.keys.serve(ctx, n.cluster, 4, "kubelet of "+n.Name(), k.sync)
}

// sync brings one pod from what it is to what its object says.
func (k *kubelet) sync(ctx context.Context, key string) error {
	object, exists := k.pods.get(key)
	pod := k.pod(key)
	if pod != nil && (!exists || pod.UID != object.UID || object.DeletionTimestamp != nil || ended(object)) {
		if err := k.takeDown(key, pod); err != nil {
			return err
		}
		pod = nil
	}
	switch {
	case !exists:
		return nil
	case object.DeletionTimestamp != nil:
		return k.forget(ctx, object)
	case pod != nil || ended(object):
		return nil
	}
	return k.bringUp(ctx, key, object)
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (k *kubelet) pod(key string) *Pod {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.running[key]
}

// bringUp makes a pod and reports it. One that cannot be made is tried again.
func (k *kubelet) bringUp(ctx context.Context, key string, object *corev1.Pod) error {
	pod, err := k.build(key, object)
	if err == nil {
		err = k.report(ctx, pod)
		if err != nil {
			err = errors.Join(err, pod.end())
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.failed[object.UID] = err
		return err
	}
	delete(k.failed, object.UID)
	k.running[key] = pod
	return nil
}

func (k *kubelet) build(key string, object *corev1.Pod) (*Pod, error) {
	pod := &Pod{Namespace: object.Namespace, Name: object.Name, UID: object.UID, Node: k.node, Host: k.node.Host}
	if !object.Spec.HostNetwork {
		addrs, err := k.allocate()
		if err != nil {
			return nil, err
		}
		pod.free = func() { k.release(addrs) }
		if pod.Host, err = k.node.AddHost(key, addrs...); err != nil {
			pod.free()
			return nil, err
		}
	}
	if err := pod.serve(object); err != nil {
		return nil, errors.Join(err, pod.end())
	}
	return pod, nil
}

// allocate takes the lowest free address of each range.
func (k *kubelet) allocate() (addrs []netip.Addr, err error) {
	for _, pool := range k.addrs {
		a, err := pool.take()
		if err != nil {
			k.release(addrs)
			return nil, err
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

func (k *kubelet) release(addrs []netip.Addr) {
	for i, a := range addrs {
		k.addrs[i].free(a)
	}
}

func (k *kubelet) takeDown(key string, pod *Pod) error {
	if err := pod.end(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.running, key)
	return nil
}

// forget deletes the object of a pod that is down.
func (k *kubelet) forget(ctx context.Context, object *corev1.Pod) error {
	err := k.node.cluster.client.CoreV1().Pods(object.Namespace).Delete(ctx, object.Name, metav1.DeleteOptions{
		GracePeriodSeconds: new(int64(0)), Preconditions: metav1.NewUIDPreconditions(string(object.UID)),
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // somebody else did, and may have made another
		return nil
	}
	return err
}

// problem is why a pod is not there yet.
func (k *kubelet) problem(uid types.UID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failed[uid]
}

// addressPool gives away the addresses of a range.
type addressPool struct {
	prefix netip.Prefix

	mu    sync.Mutex
	taken map[netip.Addr]bool
}

func newAddressPool(p netip.Prefix) *addressPool {
	return &addressPool{prefix: p, taken: map[netip.Addr]bool{}}
}

// take returns the lowest free address. The first, and in IPv4 the last, of a
// range are nobody's.
func (p *addressPool) take() (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a := p.prefix.Addr().Next(); p.prefix.Contains(a.Next()); a = a.Next() {
		if !p.taken[a] {
			p.taken[a] = true
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no address of %s is free", p.prefix)
}

func (p *addressPool) free(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, a)
}
