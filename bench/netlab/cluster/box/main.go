//go:build linux

// Command box runs a cluster in a box in the foreground, with a few pods, until
// it is interrupted, and tells how to use it. See `make cluster`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netverdict/netverdict/bench/netlab/cluster"
	"github.com/netverdict/netverdict/kube/kubetest"
)

func main() {
	var o cluster.Options
	flag.IntVar(&o.Nodes, "nodes", 3, "how many nodes")
	flag.StringVar(&o.Name, "name", "box", "part of the names of network namespaces; clusters that run at once must differ in it")
	empty := flag.Bool("empty", false, "make no pods")
	flag.BoolVar(&o.NoAgent, "no-agent", false, "start no agents: nothing is enforced")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: box [flags] [-- arguments of every agent]\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	o.AgentArgs = flag.Args()
	o.Named, o.Services = true, true
	o.Logf = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := run(ctx, o, *empty); err != nil {
		fmt.Fprintf(os.Stderr, "box: %v\n", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// run shows a cluster until ctx ends, and removes it. A panic removes it too.
func run(ctx context.Context, o cluster.Options, empty bool) (err error) {
	fmt.Println("Starting etcd, kube-apiserver, nodes and agents (the first time they are built, up to 7 minutes) …")
	c, err := cluster.Start(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		fmt.Println("\nRemoving the cluster …")
		err = errors.Join(err, c.Close())
	}()
	kubectl, err := kubetest.Build(ctx, "kubectl")
	if err != nil {
		return err
	}
	if !empty {
		if err := populate(ctx, c); err != nil {
			return err
		}
	}
	explain(c, o.Name, kubectl, empty)
	watchAgents(ctx, c)
	return nil
}

// populate makes a web server with a Service, and two clients.
func populate(ctx context.Context, c *cluster.Cluster) error {
	const shop = "shop"
	if err := c.CreateNamespace(ctx, shop, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i, name := range []string{"web", "client", "other"} {
		node := c.Nodes()[i%len(c.Nodes())].Name()
		var ports []corev1.ContainerPort
		if name == "web" {
			ports = []corev1.ContainerPort{cluster.TCP("http", 80), cluster.UDP("dns", 53)}
		}
		if _, err := c.CreatePod(ctx, cluster.ServerPod(shop, name, node, map[string]string{"app": name}, ports...)); err != nil {
			return err
		}
	}
	_, err := c.Client().CoreV1().Services(shop).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "web"}, IPFamilyPolicy: new(corev1.IPFamilyPolicyPreferDualStack),
			Ports: []corev1.ServicePort{{Port: 80}},
		},
	}, metav1.CreateOptions{})
	return err
}

func explain(c *cluster.Cluster, name, kubectl string, empty bool) {
	first := c.Nodes()[0]
	fmt.Printf(`
%d nodes are up. In another terminal, as root:

  export KUBECONFIG=%s PATH=%s:%s:$PATH
  kubectl get nodes,pods,services -A -o wide
`, len(c.Nodes()), c.KubeconfigFile(), filepath.Dir(kubectl), filepath.Dir(c.Binary()))
	if !empty {
		explainPods(c, name)
	}
	fmt.Printf(`
Make pods of your own; a server answers on each port that they declare (HTTP on TCP ports, an echo on UDP ones),
and a command runs on this machine, as root, in the pod's network namespace:

  kubectl run mine --image=any --port=8080 --overrides='{"spec":{"nodeName":%q}}'
  ip netns                                  # nv-%s-NAMESPACE.POD and nv-%s-NODE: for ip netns exec
`, first.Name(), name, name)
	if a := first.Agent(); a != nil {
		fmt.Printf(`
What the agent of %s does (others: %s/NODE/):

  tail -f %s            # its flow log
  tail -f %s            # its messages
  netverdict status --socket %s
`, first.Name(), c.Dir(), a.Stdout.Path(), a.Stderr.Path(), a.Socket())
	}
	fmt.Println("\nCtrl-C here removes everything.")
}

func explainPods(c *cluster.Cluster, name string) {
	web := c.Pod("shop", "web").Targets(80)
	fmt.Printf(`
Pods shop/web, shop/client and shop/other are there. Each is a network namespace:

  ip netns exec nv-%[1]s-shop.client curl -m 3 http://%[2]s
  ip netns exec nv-%[1]s-shop.other curl -m 3 'http://%[3]s'

Now only the client may, and the other waits in vain:

kubectl apply -f - <<END
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-client, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
END
`, name, web[0], web[1])
}

// watchAgents tells of agents that end, until ctx does.
func watchAgents(ctx context.Context, c *cluster.Cluster) {
	for _, n := range c.Nodes() {
		a := n.Agent()
		if a == nil {
			continue
		}
		go func() {
			<-a.Done()
			if ctx.Err() == nil {
				fmt.Fprintf(os.Stderr, "%s ended: %v; its messages are in %s\n", a.Name, a.ExitError(), a.Stderr.Path())
			}
		}()
	}
	<-ctx.Done()
}
