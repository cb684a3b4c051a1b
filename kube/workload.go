package kube

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netverdict/netverdict/policy"
)

// workloadOf names what people know a pod by. Its owner says so, except that a
// Deployment owns pods through a ReplicaSet and a CronJob through a Job: those two
// in between can be told by their names, without a watch on either.
func workloadOf(pod *corev1.Pod) policy.Workload {
	owner := metav1.GetControllerOfNoCopy(pod)
	if owner == nil {
		return policy.Workload{}
	}
	w := policy.Workload{Kind: owner.Kind, Name: owner.Name}
	switch owner.Kind {
	case "ReplicaSet":
		// The Deployment controller names its ReplicaSets DEPLOYMENT-HASH and labels
		// the pods with HASH (pkg/controller/deployment/sync.go of Kubernetes).
		hash := pod.Labels["pod-template-hash"]
		if name, ok := strings.CutSuffix(w.Name, "-"+hash); ok && hash != "" && name != "" {
			return policy.Workload{Kind: "Deployment", Name: name}
		}
	case "Job":
		if name, ok := cronJobOf(w.Name); ok {
			return policy.Workload{Kind: "CronJob", Name: name}
		}
	}
	return w
}

// cronJobOf takes the time off the name of a Job: the CronJob controller names its
// Jobs CRONJOB-MINUTES, the minutes since 1970 (getJobName in
// pkg/controller/cronjob/utils.go), which have 8 digits from 1989 to 2160.
func cronJobOf(job string) (name string, ok bool) {
	at := len(job) - len("-28000000")
	if at < 1 || job[at] != '-' || strings.Trim(job[at+1:], "0123456789") != "" {
		return "", false
	}
	return job[:at], true
}
