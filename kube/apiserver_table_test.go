package kube

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestEveryRelevantFieldCounts edits one field after the other: those that
// decisions see must be taken for a change, others not.
func TestEveryRelevantFieldCounts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		relevant bool
		edit     func(*corev1.Pod)
	}{
		"labels":       {true, func(p *corev1.Pod) { p.Labels["app"] = "other" }},
		"node":         {true, func(p *corev1.Pod) { p.Spec.NodeName = "node-2" }},
		"host network": {true, func(p *corev1.Pod) { p.Spec.HostNetwork = true }},
		"addresses":    {true, func(p *corev1.Pod) { p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: "fd00::1"}) }},
		"host address": {true, func(p *corev1.Pod) { p.Status.HostIP = "192.168.0.9" }},
		"phase":        {true, func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }},
		"age":          {true, func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(time.Unix(1, 0)) }},
		"ports": {true, func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}
		}},
		"unnamed port": {false, func(p *corev1.Pod) { p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80}} }},
		"image":        {false, func(p *corev1.Pod) { p.Spec.Containers[0].Image = "other" }},
		"revision":     {false, func(p *corev1.Pod) { p.ResourceVersion = "8" }},
		"unknown":      {false, func(p *corev1.Pod) { p.Status.Message = "restarting" }},
		"deletion":     {false, func(p *corev1.Pod) { p.DeletionTimestamp = new(metav1.Now()) }},
	} {
		converter, table := &podConverter{}, newTable(samePod)
		pod := apiPod("web", "10.0.1.5")
		table.put(converter.row(pod))
		pod = pod.DeepCopy()
		c.edit(pod)
		if got := table.put(converter.row(pod)); got != c.relevant {
			t.Errorf("%s: taken for a change: %v, want %v", name, got, c.relevant)
		}
	}
}

func TestNodeRangesCount(t *testing.T) {
	t.Parallel()
	table := newTable(sameNode)
	table.put(nodeRow(apiNode("node-1", "192.168.0.1")))
	if table.put(nodeRow(apiNode("node-1", "192.168.0.1"))) {
		t.Error("an equal node is taken for a change")
	}
	other := apiNode("node-1", "192.168.0.1")
	other.Spec.PodCIDRs = []string{"10.0.7.0/24"}
	if !table.put(nodeRow(other)) {
		t.Error("another pod range is not taken for a change")
	}
	if !table.put(nodeRow(apiNode("node-1", "192.168.0.2"))) {
		t.Error("another address is not taken for a change")
	}
}

func TestLabelPoolSharesOnlyEqualLabels(t *testing.T) {
	t.Parallel()
	var pool labelPool
	a := pool.set(map[string]string{"app": "web", "tier": "1"})
	b := pool.set(map[string]string{"tier": "1", "app": "web"})
	a["probe"] = "shared" // labels never change, except in this test
	if b["probe"] != "shared" {
		t.Error("equal labels are kept twice")
	}
	collision := map[string]string{"app": "db"}
	pool.sets[pool.hash(collision)] = map[string]string{"app": "cache"}
	if got := pool.set(collision); got["app"] != "db" {
		t.Errorf("labels %v after a collision of hashes, want those asked for", got)
	}
	for i := range poolSize + 10 {
		pool.set(map[string]string{"pod": time.Duration(i).String()})
	}
	if len(pool.sets) > poolSize || len(pool.texts) > poolSize {
		t.Errorf("the pool holds %d sets and %d texts, more than %d", len(pool.sets), len(pool.texts), poolSize)
	}
}
