package kubetest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/netverdict/netverdict/kube"
	"github.com/netverdict/netverdict/kube/kubetest"
	"github.com/netverdict/netverdict/policy"
)

// From the moment a write returns to the callback with it.
func TestSourceLatency(t *testing.T) {
	t.Parallel()
	cp := kubetest.New(t, kubetest.Options{})
	w := writer{t, clientOf(t, cp.Admin())}
	s := watchSource(t, cp.Admin(), kube.ClusterOptions{})
	s.until("synced", func(s *policy.Snapshot) bool { return len(s.Namespaces) > 0 })
	var took []time.Duration
	for i := range 200 {
		name := "p" + strconv.Itoa(i)
		w.policy(name)
		took = append(took, s.until("the policy", func(s *policy.Snapshot) bool { return hasPolicy(s, name) }))
	}
	slices.Sort(took)
	p50, p99 := took[len(took)/2], took[len(took)*99/100]
	t.Logf("API write to callback: p50 %v, p99 %v, most %v", p50, p99, took[len(took)-1])
	if p50 > 200*time.Millisecond { // ten times as long as changes are held back
		t.Error("half of the changes take longer than 200 ms")
	}
}

// watcherEnv makes this program watch with the named kubeconfig, print footprints
// and end with its standard input.
const watcherEnv = "KUBETEST_WATCHER"

// footprint is what a process that watches needs.
type footprint struct {
	FirstSnapshot   time.Duration
	Pods, Policies  int
	HeapBefore      uint64 // bytes that are alive, before the watch
	HeapAfter       uint64 // with the first snapshot
	Resident        int    // KiB after the first snapshot: VmRSS
	ResidentHighest int    // KiB: VmHWM
}

func watcher() int {
	cfg, err := clientcmd.BuildConfigFromFlags("", os.Getenv(watcherEnv))
	if err != nil {
		println(err.Error())
		return 1
	}
	cluster, err := kube.NewCluster(cfg, kube.ClusterOptions{})
	if err != nil {
		println(err.Error())
		return 1
	}
	f := footprint{HeapBefore: liveHeap()}
	start := time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var kept *policy.Snapshot
	err = cluster.Watch(ctx, func(s *policy.Snapshot, _ *kube.Report) {
		if kept != nil {
			return
		}
		kept, f.FirstSnapshot = s, time.Since(start)
		f.Pods, f.Policies = len(s.Pods), len(s.Policies)
		f.Resident, f.ResidentHighest = residentKiB("VmRSS"), residentKiB("VmHWM")
		f.HeapAfter = liveHeap()
		cancel()
	}, func(err error) { println(err.Error()) })
	runtime.KeepAlive(kept)
	if err != nil {
		println(err.Error())
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(f); err != nil {
		println(err.Error())
		return 1
	}
	return 0
}

func liveHeap() uint64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// residentKiB reads a field of /proc/self/status (proc_pid_status(5)).
func residentKiB(field string) int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	lines := bufio.NewScanner(bytes.NewReader(status))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), field+":"); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// BenchmarkSourceMemory measures a process of its own that starts to watch 10,000
// pods and 1,000 policies, all created through the API.
func BenchmarkSourceMemory(b *testing.B) {
	cp := kubetest.New(b, kubetest.Options{})
	const pods, policies = 10_000, 1_000
	populate(b, cp, pods, policies)
	for b.Loop() {
		cmd := exec.CommandContext(b.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), watcherEnv+"="+cp.KubeconfigFile())
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			b.Fatal(err)
		}
		var f footprint
		if err := json.Unmarshal(out, &f); err != nil {
			b.Fatal(err)
		}
		if f.Pods != pods || f.Policies != policies {
			b.Fatalf("%d pods and %d policies, want %d and %d", f.Pods, f.Policies, pods, policies)
		}
		b.ReportMetric(float64(f.HeapAfter-f.HeapBefore)/(1<<20), "heap-MiB")
		b.ReportMetric(float64(f.Resident)/1024, "rss-MiB")
		b.ReportMetric(float64(f.ResidentHighest)/1024, "peak-rss-MiB")
		b.ReportMetric(float64(f.FirstSnapshot.Milliseconds()), "first-snapshot-ms")
	}
}

// populate creates pods of 500 workloads on 100 nodes.
func populate(tb testing.TB, cp *kubetest.ControlPlane, pods, policies int) {
	tb.Helper()
	client, err := kubernetes.NewForConfig(cp.Admin())
	if err != nil {
		tb.Fatal(err)
	}
	const workers = 8
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			for i := worker; i < pods; i += workers {
				if err := createPod(tb.Context(), client, i); err != nil {
					tb.Error(err)
					return
				}
			}
			for i := worker; i < policies; i += workers {
				np := scalePolicy(i)
				if _, err := client.NetworkingV1().NetworkPolicies("default").Create(tb.Context(), np, metav1.CreateOptions{}); err != nil {
					tb.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if tb.Failed() {
		tb.FailNow()
	}
}

func createPod(ctx context.Context, client kubernetes.Interface, i int) error {
	pod := scalePod(i)
	created, err := client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	ip := fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255)
	host := fmt.Sprintf("192.168.0.%d", i%100+1)
	created.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, HostIP: host, HostIPs: []corev1.HostIP{{IP: host}},
	}
	for _, c := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		created.Status.Conditions = append(created.Status.Conditions, corev1.PodCondition{Type: c, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
	}
	_, err = client.CoreV1().Pods("default").UpdateStatus(ctx, created, metav1.UpdateOptions{})
	return err
}

// scalePod is as large as pods usually are: about 4 KiB with its managed fields.
func scalePod(i int) *corev1.Pod {
	workload := strconv.Itoa(i % 500)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: fmt.Sprintf("workload-%s-7d4b9c6f5d-%05d", workload, i),
			Labels:      map[string]string{"app": "workload-" + workload, "pod-template-hash": "7d4b9c6f5d", "tier": strconv.Itoa(i % 5)},
			Annotations: map[string]string{"checksum/config": strings.Repeat("0123456789abcdef", 4)},
		},
		Spec: corev1.PodSpec{NodeName: fmt.Sprintf("node-%d", i%100)},
	}
	for _, name := range []string{"main", "sidecar"} {
		c := corev1.Container{Name: name, Image: "registry.example.org/team/" + name + ":1.2.3", Ports: []corev1.ContainerPort{{Name: name[:4], ContainerPort: 8080}}}
		for e := range 10 {
			c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_%d", e), Value: "a value of some length"})
		}
		pod.Spec.Containers = append(pod.Spec.Containers, c)
	}
	pod.Spec.Containers[1].Ports[0].ContainerPort = 9090
	return pod
}

func scalePolicy(i int) *networkingv1.NetworkPolicy {
	selector := func(n int) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{"app": "workload-" + strconv.Itoa(n%500)}}
	}
	from, port := selector(i+1), intstr.FromInt32(8080)
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("policy-%04d", i)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: selector(i),
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{
					{PodSelector: &from},
					{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("172.16.%d.0/24", i%256)}},
				},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			}},
		},
	}
}
