package kubetest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netverdict/netverdict/kube"
	"github.com/netverdict/netverdict/kube/kubetest"
	"github.com/netverdict/netverdict/policy"
)

// All kinds are created, changed and deleted, with the rights of a least
// privileged ServiceAccount, which come only after the start.
func TestSourceFollowsAPIServer(t *testing.T) {
	t.Parallel()
	cp := kubetest.New(t, kubetest.Options{})
	w := writer{t, clientOf(t, cp.Admin())}
	cfg, bind := least(t, cp, w)
	var requests recorder
	requests.wrap(cfg)
	s := watchSource(t, cfg, kube.ClusterOptions{NodeName: "node-1"})
	if !eventually(t, func() bool { _, errs := s.count(); return len(errs) > 0 }) {
		t.Error("missing rights are not reported")
	}
	bind()
	s.until("synced", func(s *policy.Snapshot) bool { return len(s.Namespaces) >= 4 })
	if _, errs := s.count(); len(errs) > 4 || !strings.Contains(errs[0], "is forbidden") || !strings.Contains(errs[0], "ClusterRole") {
		t.Errorf("errors without rights: %q, want one for each kind with the fix", errs)
	}
	follow(t, w, s)
	status := s.cluster.Status()
	if !status.Synced() || !status.Connected() {
		t.Errorf("status %+v, want synced and connected", status)
	}
	for _, req := range requests.all() {
		if accept := req.Header.Get("Accept"); !strings.Contains(accept, "application/vnd.kubernetes.protobuf") {
			t.Errorf("%s accepts %q, want protobuf", req.URL, accept)
		}
	}
}

func follow(t *testing.T, w writer, s *source) {
	t.Helper()
	ctx := t.Context()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	ns, err := w.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
	w.ok(ns, err)
	ns.Labels["env"] = "prod"
	w.ok(w.CoreV1().Namespaces().Update(ctx, ns, metav1.UpdateOptions{}))
	s.until("a namespace with its label", func(s *policy.Snapshot) bool {
		return slices.ContainsFunc(s.Namespaces, func(n *policy.Namespace) bool { return n.Name == "shop" && n.Labels["env"] == "prod" })
	})
	node := w.node("node-1", "192.168.0.1")
	s.until("the node's address", func(s *policy.Snapshot) bool { return len(s.Nodes) == 1 && len(s.Nodes[0].Addrs) == 1 })
	if own := s.cluster.Status().Node; own == nil || own.PodCIDRs[0].String() != "10.0.1.0/24" {
		t.Errorf("own node %+v, want the range 10.0.1.0/24", own)
	}
	pod := w.pod("web", "10.0.1.5", map[string]string{"app": "web"})
	s.until("the pod", func(s *policy.Snapshot) bool {
		p := podNamed(s, "web")
		return p != nil && p.Addrs[0].String() == "10.0.1.5" && len(p.Ports) == 1
	})
	np := w.policy("deny")
	s.until("the policy", func(s *policy.Snapshot) bool { return hasPolicy(s, "deny") })
	irrelevant(t, w, s, pod, node)
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	w.ok(w.NetworkingV1().NetworkPolicies("default").Update(ctx, np, metav1.UpdateOptions{}))
	s.until("the changed policy", func(s *policy.Snapshot) bool {
		return len(s.Policies) == 1 && s.Policies[0].Spec.PolicyTypes[0] == networkingv1.PolicyTypeEgress
	})
	pod, err = w.CoreV1().Pods("default").Get(ctx, "web", metav1.GetOptions{})
	w.ok(pod, err)
	pod.Status.Phase = corev1.PodSucceeded
	w.ok(w.CoreV1().Pods("default").UpdateStatus(ctx, pod, metav1.UpdateOptions{}))
	s.until("no ended pod", func(s *policy.Snapshot) bool { return podNamed(s, "web") == nil })
	w.pod("next", "10.0.1.5", nil)
	s.until("the address with the next pod", func(s *policy.Snapshot) bool { return podNamed(s, "next") != nil })
	w.deletePod("next")
	w.deletePolicy("deny")
	w.ok(nil, w.CoreV1().Nodes().Delete(ctx, "node-1", metav1.DeleteOptions{}))
	s.until("nothing", func(s *policy.Snapshot) bool { return len(s.Pods)+len(s.Policies)+len(s.Nodes) == 0 })
	if s.cluster.Status().Node != nil {
		t.Error("the own node is still shown after its deletion")
	}
}

// irrelevant makes changes that no policy can see.
func irrelevant(t *testing.T, w writer, s *source, pod *corev1.Pod, node *corev1.Node) {
	t.Helper()
	before, _ := s.count()
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	pod, err := w.CoreV1().Pods("default").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
	w.ok(pod, err)
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
	node, err = w.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
	w.ok(node, err)
	seen := func() bool {
		kinds := s.cluster.Status().Kinds
		return kinds[1].Revision == pod.ResourceVersion && kinds[2].Revision == node.ResourceVersion
	}
	if !eventually(t, seen) {
		t.Errorf("status %+v does not show the revisions %s and %s", s.cluster.Status(), pod.ResourceVersion, node.ResourceVersion)
	}
	time.Sleep(100 * time.Millisecond) // five times as long as changes are held back
	if after, _ := s.count(); after != before {
		t.Errorf("%d snapshots after irrelevant changes", after-before)
	}
}

// Objects change while the source cannot reach the API server, and the server has
// forgotten what happened when it can again.
func TestSourceConvergesAfterOutage(t *testing.T) {
	t.Parallel()
	for _, forget := range []bool{false, true} {
		t.Run(fmt.Sprintf("forgotten=%v", forget), func(t *testing.T) {
			t.Parallel()
			cp := kubetest.New(t, kubetest.Options{})
			w := writer{t, clientOf(t, cp.Admin())}
			w.pod("gone", "10.0.1.5", nil)
			w.policy("gone")
			r, cfg := newRelay(t, cp)
			var requests recorder
			requests.wrap(cfg)
			s := watchSource(t, cfg, kube.ClusterOptions{})
			s.until("the first objects", func(s *policy.Snapshot) bool { return podNamed(s, "gone") != nil && hasPolicy(s, "gone") })
			before, others := requests.lists()
			if before != 4 || others != 0 {
				t.Errorf("%d lists as streams and %d others, want one stream for each kind", before, others)
			}
			r.cut()
			w.deletePod("gone")
			w.deletePolicy("gone")
			w.pod("new", "10.0.1.5", nil)
			w.policy("new")
			if forget {
				w.ok(nil, cp.Restart(t.Context(), kubetest.APIServer))
			}
			time.Sleep(3 * time.Second)
			if podNamed(s.last(), "gone") == nil || s.cluster.Status().Connected() {
				t.Error("without a server the last state is not kept, or the status does not say so")
			}
			r.connect()
			took := s.until("the new objects", func(s *policy.Snapshot) bool {
				return podNamed(s, "new") != nil && hasPolicy(s, "new") && podNamed(s, "gone") == nil && !hasPolicy(s, "gone")
			})
			t.Logf("converged %v after the return of the server", took.Round(time.Millisecond))
			if took > 2*time.Second {
				t.Error("that is more than 2 s")
			}
			if after, _ := requests.lists(); forget && after <= before {
				t.Error("the watches were resumed, so this tested no expiry")
			}
			if _, errs := s.count(); len(errs) == 0 || len(errs) > 3 || !strings.Contains(errs[0], "connection refused") {
				t.Errorf("errors %q, want the refused connection once", errs)
			}
		})
	}
}

func TestSourceSurvivesKilledAPIServer(t *testing.T) {
	t.Parallel()
	cp := kubetest.New(t, kubetest.Options{})
	w := writer{t, clientOf(t, cp.Admin())}
	w.pod("kept", "10.0.1.5", nil)
	s := watchSource(t, cp.Admin(), kube.ClusterOptions{})
	s.until("the pod", func(s *policy.Snapshot) bool { return podNamed(s, "kept") != nil })
	cp.Kill()
	if !eventually(t, func() bool { return !s.cluster.Status().Connected() }) {
		t.Error("the status does not show the loss")
	}
	time.Sleep(3 * time.Second)
	calls, _ := s.count()
	w.ok(nil, cp.Resume(t.Context()))
	w.policy("new")
	took := s.until("the policy", func(s *policy.Snapshot) bool { return hasPolicy(s, "new") && podNamed(s, "kept") != nil })
	t.Logf("converged %v after the first write to the returned server", took.Round(time.Millisecond))
	if took > 2*time.Second {
		t.Error("that is more than 2 s")
	}
	if after, _ := s.count(); after <= calls {
		t.Error("no snapshot said that the error is over")
	}
}

func TestSourceStartsBeforeTheAPIServer(t *testing.T) {
	t.Parallel()
	cp := kubetest.New(t, kubetest.Options{})
	w := writer{t, clientOf(t, cp.Admin())}
	w.policy("first")
	cp.Kill(kubetest.APIServer)
	s := watchSource(t, cp.Admin(), kube.ClusterOptions{})
	time.Sleep(2 * time.Second)
	calls, errs := s.count()
	if calls != 0 || len(errs) != 1 || !strings.Contains(errs[0], "connection refused") {
		t.Errorf("without a server: %d snapshots, errors %q; want none and one", calls, errs)
	}
	w.ok(nil, cp.Resume(t.Context()))
	took := s.until("the policy", func(s *policy.Snapshot) bool { return hasPolicy(s, "first") })
	t.Logf("first snapshot %v after the server was ready", took.Round(time.Millisecond))
}

// A server of today keeps what older ones took.
func TestSourceEnforcesOldPolicies(t *testing.T) {
	t.Parallel()
	cp := kubetest.New(t, kubetest.Options{APIServerArgs: []string{"--feature-gates=StrictIPCIDRValidation=false"}})
	w := writer{t, clientOf(t, cp.Admin())}
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "old"}}
	for _, cidr := range []string{"010.0.0.0/8", "10.0.0.7/8", "::ffff:10.0.0.0/104"} {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
			From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: cidr}}},
		})
	}
	w.ok(w.NetworkingV1().NetworkPolicies("default").Create(t.Context(), np, metav1.CreateOptions{}))
	s := watchSource(t, cp.Admin(), kube.ClusterOptions{})
	s.until("the policy", func(s *policy.Snapshot) bool { return hasPolicy(s, "old") })
	if _, err := policy.Compile(s.last()); err != nil {
		t.Errorf("the snapshot does not compile: %v", err)
	}
	if rules := len(s.last().Policies[0].Spec.Ingress); rules != 2 {
		t.Errorf("%d rules are left, want the two whose meaning is known", rules)
	}
	var text []string
	for _, n := range s.lastReport().Notices {
		text = append(text, n.String())
	}
	if all := strings.Join(text, "\n"); !strings.Contains(all, "NetworkPolicy default/old: spec.ingress[2].from[0]: ") {
		t.Errorf("notices:\n%s\nwant one about the third rule", all)
	}
}
