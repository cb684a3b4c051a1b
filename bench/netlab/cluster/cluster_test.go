//go:build linux

package cluster_test

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/netverdict/netverdict/bench/netlab/cluster"
)

const (
	tcp = corev1.ProtocolTCP
	udp = corev1.ProtocolUDP
)

// TestCluster is what issue 3 demands of a cluster, on one: three nodes with an
// agent each, pods of real traffic. The first tests run at once, in namespaces of
// their own; the others need the cluster to themselves.
func TestCluster(t *testing.T) {
	c := cluster.New(t, cluster.Options{Services: true})
	t.Run("together", func(t *testing.T) {
		for name, test := range map[string]func(*scene){
			"protocols":    testProtocols,
			"services":     testServices,
			"named ports":  testNamedPorts,
			"pod labels":   testPodLabels,
			"namespaces":   testNamespaceLabels,
			"reuse":        testAddressReuse,
			"host network": testHostNetwork,
			"node traffic": testNodeTraffic,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(newScene(t, c))
			})
		}
	})
	t.Run("queue", func(t *testing.T) { testQueue(newScene(t, c)) })
	t.Run("latency", func(t *testing.T) { testLatency(newScene(t, c)) })
	t.Run("outage", func(t *testing.T) { testOutage(newScene(t, c)) })
}

// scene is a namespace of a test, with what it needs to write to it.
type scene struct {
	testing.TB
	c         *cluster.Cluster
	namespace string
}

func newScene(t testing.TB, c *cluster.Cluster) *scene {
	t.Helper()
	parts := strings.Split(t.Name(), "/")
	s := &scene{t, c, strings.ToLower(strings.ReplaceAll(parts[len(parts)-1], "_", "-"))}
	s.newNamespace(s.namespace, nil)
	return s
}

// newNamespace creates a namespace that goes with the test.
func (s *scene) newNamespace(name string, labels map[string]string) {
	s.Helper()
	s.ok(s.c.CreateNamespace(s.Context(), name, labels))
	s.Cleanup(func() {
		ctx := context.Background()
		if err := s.c.DeleteNamespace(ctx, name); err != nil {
			s.Error(err)
		}
	})
}

func (s *scene) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// within bounds a wait for what must happen.
func (s *scene) within() context.Context {
	ctx, cancel := context.WithTimeout(s.Context(), cluster.Patience)
	s.Cleanup(cancel)
	return ctx
}

// pod makes a pod with the label app=name.
func (s *scene) pod(name, node string, ports ...corev1.ContainerPort) *cluster.Pod {
	s.Helper()
	return s.create(cluster.ServerPod(s.namespace, name, node, map[string]string{"app": name}, ports...))
}

func (s *scene) create(object *corev1.Pod) *cluster.Pod {
	s.Helper()
	p, err := s.c.CreatePod(s.within(), object)
	s.ok(err)
	return p
}

func (s *scene) delete(p *cluster.Pod) {
	s.Helper()
	s.ok(s.c.DeletePod(s.within(), p))
}

// apply creates or replaces a NetworkPolicy of the scene's namespace, given its
// name and its spec in YAML.
func (s *scene) apply(name, spec string) *networkingv1.NetworkPolicy {
	s.Helper()
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name}}
	s.ok(yaml.UnmarshalStrict([]byte(spec), &np.Spec))
	policies := s.c.Client().NetworkingV1().NetworkPolicies(s.namespace)
	created, err := policies.Create(s.Context(), np, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		created, err = policies.Update(s.Context(), np, metav1.UpdateOptions{})
	}
	s.ok(err)
	return created
}

func (s *scene) drop(policy string) {
	s.Helper()
	s.ok(s.c.Client().NetworkingV1().NetworkPolicies(s.namespace).Delete(s.Context(), policy, metav1.DeleteOptions{}))
}

// demand is cluster.Demand of this test.
func (s *scene) demand(when string, checks ...[]cluster.Check) {
	s.Helper()
	cluster.Demand(s, when, checks...)
}
