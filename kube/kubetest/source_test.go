package kubetest_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/netverdict/netverdict/kube"
	"github.com/netverdict/netverdict/kube/kubetest"
	"github.com/netverdict/netverdict/policy"
)

// These are the tests of kube.Cluster against a real API server. They live here
// because the main module must not depend on kubetest.

const patience = 30 * time.Second

// source is a running kube.Cluster and what it last said.
type source struct {
	t       *testing.T
	cluster *kube.Cluster

	mu        sync.Mutex
	snapshot  *policy.Snapshot
	report    *kube.Report
	snapshots int
	errs      []string
	called    chan struct{} // holds one token after a call
}

func watchSource(t *testing.T, cfg *rest.Config, opts kube.ClusterOptions) *source {
	t.Helper()
	cluster, err := kube.NewCluster(cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	s := &source{t: t, cluster: cluster, called: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cluster.Watch(ctx, s.onSnapshot, s.onError) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("Watch did not return")
		}
	})
	return s
}

func (s *source) onSnapshot(snapshot *policy.Snapshot, r *kube.Report) {
	s.mu.Lock()
	s.snapshot, s.report = snapshot, r
	s.snapshots++
	s.mu.Unlock()
	s.call()
}

func (s *source) onError(err error) {
	s.mu.Lock()
	s.errs = append(s.errs, err.Error())
	s.mu.Unlock()
	s.call()
}

func (s *source) call() {
	select {
	case s.called <- struct{}{}:
	default:
	}
}

// until waits for a property and returns how long that took.
func (s *source) until(what string, ok func(*policy.Snapshot) bool) time.Duration {
	s.t.Helper()
	start := time.Now()
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		met := s.snapshot != nil && ok(s.snapshot)
		s.mu.Unlock()
		if met {
			return time.Since(start)
		}
		select {
		case <-s.called:
		case <-deadline:
			s.t.Fatalf("never %s; errors %q; status %+v", what, s.errs, s.cluster.Status())
		}
	}
}

func (s *source) count() (snapshots int, errs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshots, slices.Clone(s.errs)
}

func (s *source) last() *policy.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot
}

func (s *source) lastReport() *kube.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.report
}

// relay stands between the source and the API server and can be cut, while others
// go on changing objects.
type relay struct {
	t      *testing.T
	addr   string
	target string

	mu       sync.Mutex
	listener net.Listener // nil while cut
	conns    map[net.Conn]bool
}

func newRelay(t *testing.T, cp *kubetest.ControlPlane) (*relay, *rest.Config) {
	t.Helper()
	r := &relay{t: t, addr: "127.0.0.1:0", target: strings.TrimPrefix(cp.URL(), "https://"), conns: map[net.Conn]bool{}}
	r.connect()
	t.Cleanup(r.cut)
	cfg := cp.Admin()
	cfg.Host = "https://" + r.addr
	return r, cfg
}

func (r *relay) connect() {
	r.t.Helper()
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.listener, r.addr = l, l.Addr().String()
	r.mu.Unlock()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // cut
			}
			go r.serve(conn)
		}
	}()
}

func (r *relay) serve(conn net.Conn) {
	defer conn.Close()
	out, err := net.Dial("tcp", r.target)
	if err != nil {
		return // the API server is away
	}
	defer out.Close()
	r.mu.Lock()
	r.conns[conn], r.conns[out] = true, true
	r.mu.Unlock()
	go func() {
		_, _ = io.Copy(out, conn) // ends when either side does
		_ = out.Close()
		_ = conn.Close()
	}()
	_, _ = io.Copy(conn, out)
}

func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != nil {
		_ = r.listener.Close()
	}
	for c := range r.conns {
		_ = c.Close()
	}
	r.listener, r.conns = nil, map[net.Conn]bool{}
}

// recorder remembers the requests of a client.
type recorder struct {
	mu       sync.Mutex
	requests []*http.Request
}

func (r *recorder) wrap(cfg *rest.Config) {
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			r.mu.Lock()
			r.requests = append(r.requests, req)
			r.mu.Unlock()
			return next.RoundTrip(req)
		})
	})
}

func (r *recorder) all() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// lists counts the lists that were asked for as streams, and all others.
func (r *recorder) lists() (streams, others int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, req := range r.requests {
		switch q := req.URL.Query(); {
		case q.Get("sendInitialEvents") == "true":
			streams++
		case q.Get("watch") == "":
			others++
		}
	}
	return streams, others
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// writer writes objects and fails the test if it cannot.
type writer struct {
	t *testing.T
	*kubernetes.Clientset
}

func (w writer) ok(_ any, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w writer) pod(name, ip string, labels map[string]string) *corev1.Pod {
	w.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: labels},
		Spec: corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{
			Name: "main", Image: "example.org/app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		}}},
	}
	created, err := w.CoreV1().Pods("default").Create(w.t.Context(), pod, metav1.CreateOptions{})
	w.ok(created, err)
	created.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}
	created, err = w.CoreV1().Pods("default").UpdateStatus(w.t.Context(), created, metav1.UpdateOptions{})
	w.ok(created, err)
	return created
}

func (w writer) node(name, ip string) *corev1.Node {
	w.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.0.1.0/24"}, PodCIDR: "10.0.1.0/24"}}
	created, err := w.CoreV1().Nodes().Create(w.t.Context(), node, metav1.CreateOptions{})
	w.ok(created, err)
	created.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
	created, err = w.CoreV1().Nodes().UpdateStatus(w.t.Context(), created, metav1.UpdateOptions{})
	w.ok(created, err)
	return created
}

func (w writer) policy(name string) *networkingv1.NetworkPolicy {
	w.t.Helper()
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	created, err := w.NetworkingV1().NetworkPolicies("default").Create(w.t.Context(), np, metav1.CreateOptions{})
	w.ok(created, err)
	return created
}

func (w writer) deletePod(name string) {
	w.t.Helper()
	w.ok(nil, w.CoreV1().Pods("default").Delete(w.t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
}

func (w writer) deletePolicy(name string) {
	w.t.Helper()
	w.ok(nil, w.NetworkingV1().NetworkPolicies("default").Delete(w.t.Context(), name, metav1.DeleteOptions{}))
}

func podNamed(s *policy.Snapshot, name string) *policy.Pod {
	for _, p := range s.Pods {
		if p.Name == name {
			return p
		}
	}
	return nil
}

func hasPolicy(s *policy.Snapshot, name string) bool {
	return slices.ContainsFunc(s.Policies, func(np *networkingv1.NetworkPolicy) bool { return np.Name == name })
}

// least creates a ServiceAccount with what the source needs, except for the
// binding, which the returned function makes.
func least(t *testing.T, cp *kubetest.ControlPlane, admin kubernetes.Interface) (*rest.Config, func()) {
	t.Helper()
	w := writer{t: t}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "agent"}}
	w.ok(admin.CoreV1().ServiceAccounts("kube-system").Create(t.Context(), sa, metav1.CreateOptions{}))
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "agent"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"namespaces", "pods", "nodes"}, Verbs: []string{"list", "watch"}},
		{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies"}, Verbs: []string{"list", "watch"}},
	}}
	w.ok(admin.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}))
	cfg, err := cp.ServiceAccountConfig(t.Context(), "kube-system", "agent")
	w.ok(cfg, err)
	return cfg, func() {
		binding := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "agent"},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "agent"},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "kube-system", Name: "agent"}},
		}
		w.ok(admin.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}))
	}
}
