package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"

	"github.com/netverdict/netverdict/policy"
)

// api is a fake API server: client-go's, and a switch that makes it fail.
type api struct {
	*fake.Clientset
	down atomic.Pointer[error]

	mu      sync.Mutex
	watches []apiwatch.Interface // opened so far
}

func newAPI(objects ...runtime.Object) *api { return &api{Clientset: fake.NewClientset(objects...)} }

// fail makes requests fail and ends those that last.
func (a *api) fail(err error) {
	a.down.Store(&err)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.watches {
		w.Stop()
	}
	a.watches = nil
}

func (a *api) recover() { a.down.Store(nil) }

func (a *api) check() error {
	if err := a.down.Load(); err != nil {
		return *err
	}
	return nil
}

func (a *api) listers() (out [kinds]lister) {
	core, networking := a.CoreV1(), a.NetworkingV1()
	out[namespaceKind] = listerOf(a, core.Namespaces().List, core.Namespaces().Watch)
	out[podKind] = listerOf(a, core.Pods("").List, core.Pods("").Watch)
	out[nodeKind] = listerOf(a, core.Nodes().List, core.Nodes().Watch)
	out[policyKind] = listerOf(a, networking.NetworkPolicies("").List, networking.NetworkPolicies("").Watch)
	return out
}

func listerOf[L runtime.Object](a *api, list func(context.Context, metav1.ListOptions) (L, error),
	watch func(context.Context, metav1.ListOptions) (apiwatch.Interface, error)) lister {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			if err := a.check(); err != nil {
				return nil, err
			}
			return list(ctx, opts)
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (apiwatch.Interface, error) {
			if err := a.check(); err != nil {
				return nil, err
			}
			w, err := watch(ctx, opts)
			if err == nil {
				a.mu.Lock()
				defer a.mu.Unlock()
				a.watches = append(a.watches, w)
			}
			return w, err
		},
	}, a.Clientset)
}

// clusterEvents are the calls of a running Watch.
type clusterEvents struct {
	t         *testing.T
	cluster   *Cluster
	snapshots chan *policy.Snapshot
	reports   chan *Report
	errs      chan error
}

func watchCluster(t *testing.T, sources [kinds]lister, opts ClusterOptions) *clusterEvents {
	t.Helper()
	e := &clusterEvents{
		t: t, cluster: newCluster("test", sources, opts),
		snapshots: make(chan *policy.Snapshot, 1000), reports: make(chan *Report, 1000), errs: make(chan error, 1000),
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- e.cluster.Watch(ctx, func(s *policy.Snapshot, r *Report) { e.snapshots <- s; e.reports <- r }, func(err error) { e.errs <- err })
	}()
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
	return e
}

func (e *clusterEvents) next() *policy.Snapshot {
	e.t.Helper()
	select {
	case s := <-e.snapshots:
		return s
	case <-time.After(patience):
		e.t.Fatalf("no snapshot; status: %+v", e.cluster.Status())
		return nil
	}
}

// until waits for a snapshot with a property, skipping others.
func (e *clusterEvents) until(what string, ok func(*policy.Snapshot) bool) *policy.Snapshot {
	e.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case s := <-e.snapshots:
			if ok(s) {
				return s
			}
		case <-deadline:
			e.t.Fatalf("no snapshot with %s; status: %+v", what, e.cluster.Status())
		}
	}
}

func (e *clusterEvents) nextError() error {
	e.t.Helper()
	select {
	case err := <-e.errs:
		return err
	case <-time.After(patience):
		e.t.Fatal("no error")
		return nil
	}
}

// quiet demands that nothing is called for a while.
func (e *clusterEvents) quiet() {
	e.t.Helper()
	select {
	case s := <-e.snapshots:
		e.t.Errorf("an unexpected snapshot: %+v", s)
	case err := <-e.errs:
		e.t.Errorf("an unexpected error: %v", err)
	case <-time.After(150 * time.Millisecond):
	}
}

func apiPod(name, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"app": name}, ResourceVersion: "7"},
		Spec:       corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{Name: "main"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
}

func apiNode(name, ip string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDR: "10.0.1.0/24", PodCIDRs: []string{"10.0.1.0/24"}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}},
	}
}

func apiPolicy(name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
}

var quick = ClusterOptions{NodeName: "node-1", Coalesce: 10 * time.Millisecond, RetryMax: 30 * time.Millisecond}

func TestClusterFollowsObjects(t *testing.T) {
	t.Parallel()
	a := newAPI(apiPod("web", "10.0.1.5"), apiNode("node-1", "192.168.0.1"), apiPolicy("deny"))
	e := watchCluster(t, a.listers(), quick)
	s := e.next()
	if len(s.Pods) != 1 || len(s.Nodes) != 1 || len(s.Policies) != 1 || len(s.Namespaces) != 0 {
		t.Fatalf("the first snapshot has %d pods, %d nodes, %d policies, %d namespaces, want 1, 1, 1, 0", len(s.Pods), len(s.Nodes), len(s.Policies), len(s.Namespaces))
	}
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := a.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"env": "prod"}}}, metav1.CreateOptions{})
	must(err)
	e.until("the namespace", func(s *policy.Snapshot) bool {
		return len(s.Namespaces) == 1 && s.Namespaces[0].Labels["env"] == "prod"
	})
	moved := apiPod("web", "10.0.1.6")
	_, err = a.CoreV1().Pods("shop").Update(ctx, moved, metav1.UpdateOptions{})
	must(err)
	e.until("the new address", func(s *policy.Snapshot) bool {
		return len(s.Pods) == 1 && s.Pods[0].Addrs[0].String() == "10.0.1.6"
	})
	if n := e.cluster.Status().Kinds[podKind].Objects; n != 1 {
		t.Errorf("the status counts %d pods after a change of one, want 1", n)
	}
	must(a.NetworkingV1().NetworkPolicies("shop").Delete(ctx, "deny", metav1.DeleteOptions{}))
	e.until("no policy", func(s *policy.Snapshot) bool { return len(s.Policies) == 0 })
	must(a.CoreV1().Pods("shop").Delete(ctx, "web", metav1.DeleteOptions{}))
	e.until("no pod", func(s *policy.Snapshot) bool { return len(s.Pods) == 0 })
	status := e.cluster.Status()
	if !status.Synced() || !status.Connected() || status.Node == nil || status.Node.PodCIDRs[0].String() != "10.0.1.0/24" {
		t.Errorf("status %+v, want synced, connected, and the own node with its range", status)
	}
}

func TestIrrelevantChangesMakeNoSnapshot(t *testing.T) {
	t.Parallel()
	a := newAPI(apiPod("web", "10.0.1.5"), apiNode("node-1", "192.168.0.1"))
	e := watchCluster(t, a.listers(), quick)
	first := e.next()
	p := apiPod("web", "10.0.1.5")
	p.Annotations = map[string]string{"checked": "yes"}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	n := apiNode("node-1", "192.168.0.1")
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, LastHeartbeatTime: metav1.Now()}}
	ended, waiting := apiPod("job", "10.0.1.5"), apiPod("waiting", "")
	ended.Status.Phase = corev1.PodSucceeded
	waiting.Status = corev1.PodStatus{Phase: corev1.PodPending}
	ctx := t.Context()
	_, errPod := a.CoreV1().Pods("shop").Update(ctx, p, metav1.UpdateOptions{})
	_, errNode := a.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{})
	_, errEnded := a.CoreV1().Pods("shop").Create(ctx, ended, metav1.CreateOptions{})
	_, errWaiting := a.CoreV1().Pods("shop").Create(ctx, waiting, metav1.CreateOptions{})
	if err := errors.Join(errPod, errNode, errEnded, errWaiting); err != nil {
		t.Fatal(err)
	}
	e.quiet()
	pod := e.cluster.Status().Kinds[podKind]
	if pod.LastEvent.IsZero() || !pod.Pending.IsZero() || pod.Objects != 1 {
		t.Errorf("status of pods %+v, want events, nothing pending, one object", pod)
	}
	p = p.DeepCopy()
	p.Labels = map[string]string{"app": "other"}
	if _, err := a.CoreV1().Pods("shop").Update(ctx, p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if second := e.next(); second.Nodes[0] != first.Nodes[0] {
		t.Error("the unchanged node is not shared between snapshots")
	}
}

func TestBurstsCoalesce(t *testing.T) {
	t.Parallel()
	a := newAPI()
	const window = 200 * time.Millisecond
	e := watchCluster(t, a.listers(), ClusterOptions{Coalesce: window})
	e.next()
	start := time.Now()
	for i := range 50 {
		if _, err := a.CoreV1().Pods("shop").Create(t.Context(), apiPod(fmt.Sprintf("p%d", i), fmt.Sprintf("10.0.1.%d", i)), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	snapshots := 0
	e.until("all pods", func(s *policy.Snapshot) bool { snapshots++; return len(s.Pods) == 50 })
	if most := int(time.Since(start)/window) + 2; snapshots > most { // at the start, at the end of each window
		t.Errorf("%d snapshots in %v, want at most %d", snapshots, time.Since(start), most)
	}
}

func TestColdStartAndOutageAreReportedOnce(t *testing.T) {
	t.Parallel()
	a := newAPI(apiPod("web", "10.0.1.5"))
	a.fail(errors.New("refused for the test"))
	e := watchCluster(t, a.listers(), quick)
	seen := map[string]bool{}
	for range kinds { // the text names the kind when the error is no network error
		err := e.nextError()
		if !strings.Contains(err.Error(), "watch the API server at test: ") || !strings.Contains(err.Error(), "refused for the test") || seen[err.Error()] {
			t.Errorf("error %v, want each one once, with the server", err)
		}
		seen[err.Error()] = true
	}
	e.quiet() // many retries later
	if status := e.cluster.Status(); status.Synced() || status.Connected() || status.Kinds[podKind].Error == "" {
		t.Errorf("status without a server: %+v", status)
	}
	a.recover()
	if s := e.next(); len(s.Pods) != 1 {
		t.Errorf("%d pods after the server came, want 1", len(s.Pods))
	}
	if status := e.cluster.Status(); !status.Connected() || status.Kinds[podKind].Error != "" {
		t.Errorf("status with a server: %+v", status)
	}
}

func TestEndOfAnOutageIsASnapshot(t *testing.T) {
	t.Parallel()
	a := newAPI(apiPod("web", "10.0.1.5"))
	e := watchCluster(t, a.listers(), quick)
	first := e.next()
	a.fail(errors.New("refused for the test"))
	for range kinds {
		_ = e.nextError() // which fails the test if there is none
	}
	if status := e.cluster.Status(); !status.Synced() || status.Connected() {
		t.Errorf("status in an outage %+v, want synced and not connected", status)
	}
	e.quiet()
	a.recover()
	if s := e.next(); len(s.Pods) != 1 || s.Pods[0] != first.Pods[0] {
		t.Errorf("snapshot after the outage %+v, want that of before", s)
	}
	a.fail(errors.New("refused for the test"))
	_ = e.nextError() // the same text is news again
}

// A watch that the server ends because it has forgotten the revision.
func TestExpiredWatchListsAgain(t *testing.T) {
	t.Parallel()
	a := newAPI(apiPod("web", "10.0.1.5"), apiPod("gone", "10.0.1.6"))
	sources := a.listers()
	broken := make(chan *apiwatch.FakeWatcher, 100)
	lists := atomic.Int32{}
	inner := sources[podKind].(cache.ListerWatcherWithContext)
	sources[podKind] = cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			lists.Add(1)
			return inner.ListWithContext(ctx, opts)
		},
		WatchFuncWithContext: func(context.Context, metav1.ListOptions) (apiwatch.Interface, error) {
			w := apiwatch.NewFake()
			broken <- w
			return w, nil
		},
	}, a.Clientset)
	e := watchCluster(t, sources, quick)
	e.until("both pods", func(s *policy.Snapshot) bool { return len(s.Pods) == 2 })
	if err := a.CoreV1().Pods("shop").Delete(t.Context(), "gone", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w := <-broken
	w.Error(&metav1.Status{Status: metav1.StatusFailure, Code: 410, Reason: metav1.StatusReasonExpired, Message: "too old resource version"})
	e.until("the deletion that the watch missed", func(s *policy.Snapshot) bool { return len(s.Pods) == 1 })
	if n := lists.Load(); n < 2 {
		t.Errorf("%d lists, want another one", n)
	}
	select {
	case err := <-e.errs:
		t.Errorf("an expired watch is reported as an error: %v", err)
	default:
	}
}

func TestMalformedObjectsDoNotHarmOthers(t *testing.T) {
	t.Parallel()
	bad, badNode := apiPod("bad", "10.0.1.300"), apiNode("node-2", "not-an-address")
	badNode.Spec.PodCIDRs = []string{"10.0.2.0/99"}
	half := apiPod("half", "10.0.1.7")
	half.Status.PodIPs = append(half.Status.PodIPs, corev1.PodIP{IP: "fd00::zz"})
	e := watchCluster(t, newAPI(bad, half, apiPod("good", "10.0.1.5"), badNode).listers(), quick)
	s, r := e.next(), <-e.reports
	if len(s.Pods) != 2 || len(s.Nodes) != 1 || len(s.Nodes[0].Addrs) != 0 {
		t.Errorf("snapshot %+v, want the good pod, half of the other, and the node without its address", s)
	}
	var text strings.Builder
	for _, n := range r.Notices {
		fmt.Fprintln(&text, n)
	}
	for _, want := range []string{"API server: Pod shop/bad: ", "Pod shop/half: ", "Node node-2: "} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the notices lack %q:\n%s", want, text.String())
		}
	}
}

// The annotation of a namespace takes effect when it is set, changed, and removed;
// a mode that does not exist is told of, and enforces.
func TestNamespaceModeIsFollowed(t *testing.T) {
	t.Parallel()
	a := newAPI(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	e := watchCluster(t, a.listers(), quick)
	e.next()
	<-e.reports
	for _, step := range []struct {
		mode   string
		audit  bool
		notice string
	}{
		{"audit", true, ""},
		{"adit", false, `API server: Namespace shop: metadata.annotations[netverdict.io/mode]: "adit" is neither`},
		{"audit", true, ""},
		{"enforce", false, ""},
	} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Annotations: map[string]string{"netverdict.io/mode": step.mode}}}
		if _, err := a.CoreV1().Namespaces().Update(t.Context(), ns, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		s, r := e.next(), <-e.reports
		if s.Namespaces[0].Audit != step.audit {
			t.Errorf("mode %q: audited %t", step.mode, s.Namespaces[0].Audit)
		}
		text := ""
		for _, n := range r.Notices {
			text += n.String()
		}
		if !strings.HasPrefix(text, step.notice) || (text == "") != (step.notice == "") {
			t.Errorf("mode %q: notices %q, want %q", step.mode, text, step.notice)
		}
	}
}
