package kube

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/netverdict/netverdict/policy"
)

// BenchmarkPodChange is what one changed pod costs up to the callback, except for
// the time it waits for others.
func BenchmarkPodChange(b *testing.B) {
	const pods = 10_000
	var got *policy.Snapshot
	o := newOwner(newCluster("test", [kinds]lister{}, ClusterOptions{}), func(s *policy.Snapshot, _ *Report) { got = s }, func(err error) { b.Fatal(err) })
	stores := newStores(b.Context(), o)
	do := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
		(<-o.events)()
	}
	var all []any
	for i := range pods {
		all = append(all, apiPod(fmt.Sprintf("pod-%05d", i), fmt.Sprintf("10.0.%d.%d", i>>8, i&255)))
	}
	do(stores[podKind].Replace(all, "1"))
	for i := 0; b.Loop(); i++ {
		p := all[i%pods].(*corev1.Pod)
		p.Labels = map[string]string{"app": fmt.Sprint("changed-", i)}
		do(stores[podKind].Update(p))
		o.publish()
	}
	if len(got.Pods) != pods {
		b.Fatalf("%d pods, want %d", len(got.Pods), pods)
	}
}
