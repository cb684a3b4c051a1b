package kubetest_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/netverdict/netverdict/kube/kubetest"
)

// TestMain builds the servers before any test's own time runs.
func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) != "" {
		os.Exit(orphan())
	}
	if os.Getenv(watcherEnv) != "" {
		os.Exit(watcher())
	}
	for _, program := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if _, err := kubetest.Build(context.Background(), program); err != nil {
			println(err.Error())
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func clientOf(t *testing.T, cfg *rest.Config) *kubernetes.Clientset {
	t.Helper()
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func createNamespace(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func wantNamespace(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	if _, err := client.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{}); err != nil {
		t.Errorf("namespace %s: %v", name, err)
	}
}

func TestDataOutlivesRestartAndKill(t *testing.T) {
	t.Parallel()
	cp := kubetest.New(t, kubetest.Options{})
	client := clientOf(t, cp.Admin())
	url := cp.URL()
	createNamespace(t, client, "before")
	if err := cp.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNamespace(t, client, "before")
	createNamespace(t, client, "between")
	cp.Kill()
	if _, err := client.CoreV1().Namespaces().Get(t.Context(), "before", metav1.GetOptions{}); err == nil {
		t.Error("the API server answers after it was killed")
	}
	if err := cp.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNamespace(t, client, "before")
	wantNamespace(t, client, "between")
	if cp.URL() != url {
		t.Errorf("the URL changed from %s to %s", url, cp.URL())
	}
}

func TestAPIServerAloneIsKilled(t *testing.T) {
	t.Parallel()
	cp := kubetest.New(t, kubetest.Options{})
	client := clientOf(t, cp.Admin())
	createNamespace(t, client, "kept")
	cp.Kill(kubetest.APIServer)
	start := time.Now()
	if err := cp.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("ready %v after the start", time.Since(start).Round(time.Millisecond))
	wantNamespace(t, client, "kept")
	version, err := client.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if version.GitVersion != kubetest.Version() {
		t.Errorf("the server says %s, want %s", version.GitVersion, kubetest.Version())
	}
}

func TestControlPlanesAreIndependent(t *testing.T) {
	t.Parallel()
	var planes [2]*kubetest.ControlPlane
	var wg sync.WaitGroup
	for i := range planes {
		wg.Go(func() {
			cp, err := kubetest.Start(t.Context(), kubetest.Options{})
			if err != nil {
				t.Error(err)
				return
			}
			planes[i] = cp
			t.Cleanup(func() {
				if err := cp.Stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	createNamespace(t, clientOf(t, planes[0].Admin()), "first")
	_, err := clientOf(t, planes[1].Admin()).CoreV1().Namespaces().Get(t.Context(), "first", metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("a namespace of the first control plane in the second: %v, want not found", err)
	}
	strange := planes[0].Admin()
	strange.Host = planes[1].URL()
	if _, err := clientOf(t, strange).Discovery().ServerVersion(); err == nil {
		t.Error("credentials of the first control plane work for the second")
	}
}

func TestRBACDecides(t *testing.T) {
	t.Parallel()
	cp := kubetest.New(t, kubetest.Options{})
	admin := clientOf(t, cp.Admin())
	user, err := cp.RESTConfig(kubetest.User{Name: "alice", Groups: []string{"readers"}})
	if err != nil {
		t.Fatal(err)
	}
	alice := clientOf(t, user)
	account := serviceAccount(t, cp, admin)
	for name, client := range map[string]*kubernetes.Clientset{"alice": alice, "account": account} {
		if _, err := client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("%s lists pods without rights: %v, want forbidden", name, err)
		}
	}
	bindReaders(t, admin)
	for name, client := range map[string]*kubernetes.Clientset{"alice": alice, "account": account} {
		if !eventually(t, func() bool { return mayList(t, client, "pods") }) {
			t.Errorf("%s may not list pods after the binding", name)
		}
		if mayList(t, client, "secrets") {
			t.Errorf("%s may list secrets", name)
		}
	}
}

func serviceAccount(t *testing.T, cp *kubetest.ControlPlane, admin kubernetes.Interface) *kubernetes.Clientset {
	t.Helper()
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "agent"}}
	if _, err := admin.CoreV1().ServiceAccounts("kube-system").Create(t.Context(), sa, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	cfg, err := cp.ServiceAccountConfig(t.Context(), "kube-system", "agent")
	if err != nil {
		t.Fatal(err)
	}
	return clientOf(t, cfg)
}

func bindReaders(t *testing.T, admin kubernetes.Interface) {
	t.Helper()
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "pod-reader"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}}},
	}
	if _, err := admin.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "pod-readers"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects: []rbacv1.Subject{
			{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "readers"},
			{Kind: rbacv1.ServiceAccountKind, Namespace: "kube-system", Name: "agent"},
		},
	}
	if _, err := admin.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func mayList(t *testing.T, client kubernetes.Interface, resource string) bool {
	t.Helper()
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: resource},
	}}
	answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), review, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return answer.Status.Allowed
}

// eventually gives the server's own watch of its roles a moment.
func eventually(t *testing.T, ok func() bool) bool {
	t.Helper()
	for range 100 {
		if ok() {
			return true
		}
		time.Sleep(50 * time.Millisecond)
	}
	return false
}

func TestKubeconfigWorksForKubectl(t *testing.T) {
	t.Parallel()
	cp := kubetest.New(t, kubetest.Options{})
	kubectl, err := kubetest.Build(t.Context(), "kubectl")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), kubectl, "--kubeconfig", cp.KubeconfigFile(), "get", "namespaces", "-o", "name")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "namespace/default\n") {
		t.Errorf("%v: %v\n%s", cmd, err, out)
	}
	user, err := cp.RESTConfig(kubetest.User{Name: "bob"})
	if err != nil {
		t.Fatal(err)
	}
	text, err := kubetest.Kubeconfig(user)
	if err != nil {
		t.Fatal(err)
	}
	read, err := clientcmd.RESTConfigFromKubeConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	if read.Host != cp.URL() || !bytes.Equal(read.CertData, user.CertData) {
		t.Errorf("the kubeconfig of bob reads as %s", read)
	}
}

func TestFailedStartShowsTheLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := kubetest.Start(t.Context(), kubetest.Options{Dir: dir, APIServerArgs: []string{"--no-such-flag"}})
	if err == nil {
		t.Fatal("started with an unknown flag")
	}
	for _, want := range []string{"kube-apiserver ended while it started", "unknown flag: --no-such-flag", filepath.Join(dir, "kube-apiserver.log")} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
}

func TestStartGivesUp(t *testing.T) {
	t.Parallel()
	_, err := kubetest.Start(t.Context(), kubetest.Options{StartTimeout: 50 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "not ready 50ms after the start") {
		t.Errorf("Start: %v, want a timeout", err)
	}
}

func TestForeignAddressIsRefused(t *testing.T) {
	t.Parallel()
	_, err := kubetest.Start(t.Context(), kubetest.Options{Listen: netip.MustParseAddr("192.0.2.1")})
	if err == nil || !strings.Contains(err.Error(), "free port of 192.0.2.1") {
		t.Errorf("Start: %v, want an error about the address", err)
	}
}

func TestStopLeavesNothing(t *testing.T) {
	t.Parallel()
	cp, err := kubetest.Start(t.Context(), kubetest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := cp.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(cp.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if pids := running(t, cp.Dir()); len(pids) != 0 {
		t.Errorf("processes %v still run", pids)
	}
	if err := cp.Stop(); err != nil {
		t.Errorf("second Stop: %v", err)
	}
	if err := cp.Resume(t.Context()); err == nil {
		t.Error("Resume after Stop succeeded")
	}
}

// orphanEnv makes this program start a control plane in the named directory and
// wait to be killed.
const orphanEnv = "KUBETEST_ORPHAN"

func orphan() int {
	if _, err := kubetest.Start(context.Background(), kubetest.Options{Dir: os.Getenv(orphanEnv)}); err != nil {
		println(err.Error())
		return 1
	}
	if _, err := os.Stdout.WriteString("ready\n"); err != nil {
		return 1
	}
	select {}
}

func TestServersDieWithTheTest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), orphanEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ready [6]byte
	_, readErr := out.Read(ready[:])
	if pids := running(t, dir); readErr != nil || len(pids) != 2 {
		t.Errorf("%d servers run before the kill (%v), want 2", len(pids), readErr)
	}
	_ = cmd.Process.Signal(syscall.SIGKILL)
	_ = cmd.Wait() // killed
	if !eventually(t, func() bool { return len(running(t, dir)) == 0 }) {
		t.Errorf("processes %v outlived the test", running(t, dir))
	}
}

// running lists the processes that have the directory in their command line.
func running(t *testing.T, dir string) []int {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, path := range paths {
		line, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(line, []byte(dir)) {
			continue // ended meanwhile, or not ours
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}
