//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
)

// startScheduler binds pods that have no node.
func (c *Cluster) startScheduler(ctx context.Context) {
	q := newKeys()
	unbound := fields.OneTermEqualSelector("spec.nodeName", "")
	pods := follow(ctx, c, c.client.CoreV1().RESTClient(), "pods", unbound, &corev1.Pod{}, func(key string) { q.Add(key) })
	bound := map[string]int{} // by node; of the one worker
	q.serve(ctx, c, 1, "scheduler", func(ctx context.Context, key string) error {
		pod, ok := pods.get(key)
		if !ok || pod.DeletionTimestamp != nil {
			return nil
		}
		node, err := c.choose(ctx, pod, bound)
		if err != nil {
			return err
		}
		bound[node]++
		return c.bind(ctx, pod, node)
	})
}

// choose takes the node to which the fewest pods were bound, of those that the
// pod's nodeSelector admits.
func (c *Cluster) choose(ctx context.Context, pod *corev1.Pod, bound map[string]int) (string, error) {
	nodes, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{
		LabelSelector: labels.SelectorFromSet(pod.Spec.NodeSelector).String(),
	})
	if err != nil {
		return "", err
	}
	best := ""
	for i := range nodes.Items {
		name := nodes.Items[i].Name
		if c.Node(name) != nil && (best == "" || bound[name] < bound[best]) {
			best = name
		}
	}
	if best == "" {
		return "", fmt.Errorf("no node has the labels of its nodeSelector %v", pod.Spec.NodeSelector)
	}
	return best, nil
}

func (c *Cluster) bind(ctx context.Context, pod *corev1.Pod, node string) error {
	err := c.client.CoreV1().Pods(pod.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // gone, or bound meanwhile
		return nil
	}
	return err
}

// errNotEmpty makes the namespace controller come again.
var errNotEmpty = errors.New("pods are still there")

// startNamespaceController empties and finalizes namespaces that are deleted. It
// knows the kinds that matter here: pods, NetworkPolicies and Services.
func (c *Cluster) startNamespaceController(ctx context.Context) {
	q := newKeys()
	namespaces := follow(ctx, c, c.client.CoreV1().RESTClient(), "namespaces", fields.Everything(), &corev1.Namespace{}, func(key string) { q.Add(key) })
	q.serve(ctx, c, 2, "namespace controller", func(ctx context.Context, key string) error {
		ns, ok := namespaces.get(key)
		if !ok || ns.DeletionTimestamp == nil {
			return nil
		}
		err := emptyNamespace(ctx, c.client, ns.Name)
		if errors.Is(err, errNotEmpty) {
			q.AddRateLimited(key)
			return nil
		}
		if err != nil {
			return err
		}
		ns = ns.DeepCopy()
		ns.Spec.Finalizers = nil
		_, err = c.client.CoreV1().Namespaces().Finalize(ctx, ns, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // its update is on the way
			return nil
		}
		return err
	})
}

func emptyNamespace(ctx context.Context, client kubernetes.Interface, name string) error {
	all := metav1.ListOptions{}
	err := errors.Join(
		client.NetworkingV1().NetworkPolicies(name).DeleteCollection(ctx, metav1.DeleteOptions{}, all),
		client.CoreV1().Pods(name).DeleteCollection(ctx, metav1.DeleteOptions{}, all))
	services, listErr := client.CoreV1().Services(name).List(ctx, all) // they cannot be deleted as a collection
	if err := errors.Join(err, listErr); err != nil {
		return err
	}
	for i := range services.Items {
		if err := client.CoreV1().Services(name).Delete(ctx, services.Items[i].Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	pods, err := client.CoreV1().Pods(name).List(ctx, all)
	if err == nil && len(pods.Items) > 0 {
		err = errNotEmpty
	}
	return err
}

// DeleteNamespace deletes a namespace and returns when it is gone with all pods.
func (c *Cluster) DeleteNamespace(ctx context.Context, name string) error {
	namespaces := c.client.CoreV1().Namespaces()
	if err := namespaces.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("delete namespace %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	return poll(ctx, "the end of namespace "+name, func() (bool, error) {
		_, err := namespaces.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
}
