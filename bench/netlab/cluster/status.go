//go:build linux

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// report writes the status of a pod that runs.
func (k *kubelet) report(ctx context.Context, pod *Pod) error {
	status := corev1.PodStatus{
		Phase: corev1.PodRunning, StartTime: new(metav1.Now()),
		PodIP: pod.Addrs()[0].String(), HostIP: k.node.Addrs()[0].String(),
		Conditions: conditions(),
	}
	for _, a := range pod.Addrs() {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	for _, a := range k.node.Addrs() {
		status.HostIPs = append(status.HostIPs, corev1.HostIP{IP: a.String()})
	}
	object, ok := k.pods.get(pod.key())
	if ok {
		for i := range object.Spec.Containers {
			status.ContainerStatuses = append(status.ContainerStatuses, containerStatus(&object.Spec.Containers[i]))
		}
	}
	return k.patchStatus(ctx, pod, status)
}

func conditions() []corev1.PodCondition {
	var all []corev1.PodCondition
	for _, c := range []corev1.PodConditionType{corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		all = append(all, corev1.PodCondition{Type: c, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
	}
	return all
}

func containerStatus(c *corev1.Container) corev1.ContainerStatus {
	return corev1.ContainerStatus{
		Name: c.Name, Image: c.Image, Ready: true, Started: new(true),
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
	}
}

// patchStatus writes a status to the pod of the very UID.
func (k *kubelet) patchStatus(ctx context.Context, pod *Pod, status corev1.PodStatus) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err != nil {
		return err
	}
	_, err = k.node.cluster.client.CoreV1().Pods(pod.Namespace).
		Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return fmt.Errorf("report the pod's status: %w", err)
	}
	return nil
}

// ready reports whether a pod may be an endpoint of a Service.
func ready(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning &&
		slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
}
