package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netverdict/netverdict/policy"
)

func TestWorkloadOf(t *testing.T) {
	yes := true
	for _, test := range []struct {
		kind, name, hash string
		want             policy.Workload
	}{
		{"ReplicaSet", "web-5d4f8c", "5d4f8c", policy.Workload{Kind: "Deployment", Name: "web"}},
		{"ReplicaSet", "web-5d4f8c", "", policy.Workload{Kind: "ReplicaSet", Name: "web-5d4f8c"}},
		{"ReplicaSet", "web-5d4f8c", "other", policy.Workload{Kind: "ReplicaSet", Name: "web-5d4f8c"}},
		{"ReplicaSet", "-5d4f8c", "5d4f8c", policy.Workload{Kind: "ReplicaSet", Name: "-5d4f8c"}},
		{"Job", "backup-29384756", "", policy.Workload{Kind: "CronJob", Name: "backup"}},
		{"Job", "backup-2938475", "", policy.Workload{Kind: "Job", Name: "backup-2938475"}},
		{"Job", "backup-once-abcdefgh", "", policy.Workload{Kind: "Job", Name: "backup-once-abcdefgh"}},
		{"Job", "-29384756", "", policy.Workload{Kind: "Job", Name: "-29384756"}},
		{"DaemonSet", "agent", "", policy.Workload{Kind: "DaemonSet", Name: "agent"}},
		{"Node", "node-1", "", policy.Workload{Kind: "Node", Name: "node-1"}}, // of a static pod
	} {
		pod := &corev1.Pod{}
		pod.OwnerReferences = []metav1.OwnerReference{
			{Kind: "Other", Name: "no-controller"},
			{Kind: test.kind, Name: test.name, Controller: &yes},
		}
		if test.hash != "" {
			pod.Labels = map[string]string{"pod-template-hash": test.hash}
		}
		if got := workloadOf(pod); got != test.want {
			t.Errorf("%s %s, hash %q: %+v, want %+v", test.kind, test.name, test.hash, got, test.want)
		}
	}
	if got := workloadOf(&corev1.Pod{}); got != (policy.Workload{}) {
		t.Errorf("a pod of its own belongs to %+v", got)
	}
}
