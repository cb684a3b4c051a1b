package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/netverdict/netverdict/engine/flow/hubble"
)

// flowAgents finds the agents to ask.
type flowAgents interface {
	// List returns those that there are now.
	List(context.Context) ([]flowAgent, error)
	// Watch calls changed with those that there are, at first and whenever they
	// change, until ctx ends.
	Watch(ctx context.Context, changed func([]flowAgent)) error
	// Several reports whether there may be more than one.
	Several() bool
}

// flowAgentOptions are the flags that say whom to ask.
type flowAgentOptions struct {
	server     string
	kubeconfig string
	context    string
	cluster    bool
	namespace  string
	selector   string
	port       uint16
	name       string // of the cluster
}

func (o *flowAgentOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.server, "server", "", "`address` of one agent, or of a hubble-relay: unix:///path or host:port")
	f.BoolVar(&o.cluster, "cluster", false, "all agents of the cluster of the current kubeconfig, or that this pod runs in")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "`path` of a kubeconfig: all agents of that cluster")
	f.StringVar(&o.context, "context", "", "`name` of a context of the kubeconfig: all agents of that cluster")
	f.StringVar(&o.namespace, "agent-namespace", "kube-system", "`namespace` of the agents' pods")
	f.StringVar(&o.selector, "agent-selector", "app.kubernetes.io/name=netverdict,app.kubernetes.io/component=agent", "`selector` of the agents' pods")
	f.Uint16Var(&o.port, "agent-port", 4244, "`port` of the agents' --hubble-listen")
	f.StringVar(&o.name, "cluster-name", hubble.DefaultCluster, "the agents' --hubble-cluster-`name`")
	exclude(cmd, "server", "cluster", "kubeconfig", "context")
}

// find returns the agents that the flags name; without any it is the agent of this
// host if there is one, otherwise those of the cluster.
func (o *flowAgentOptions) find(serverName string) (flowAgents, error) {
	switch {
	case o.server != "":
		return newOneAgent(o.server, serverName)
	case o.cluster || o.kubeconfig != "" || o.context != "":
		return o.clusterAgents(serverName)
	}
	if _, err := os.Stat(defaultHubbleSocket); err == nil {
		return newOneAgent("unix://"+defaultHubbleSocket, "")
	}
	agents, err := o.clusterAgents(serverName)
	if err != nil {
		return nil, fmt.Errorf("whom to ask? There is no agent's socket %s, and no cluster: %w (give --server, --kubeconfig, or a flow log's FILE)", defaultHubbleSocket, err)
	}
	return agents, nil
}

// oneAgent is a fixed one.
type oneAgent flowAgent

func newOneAgent(server, serverName string) (flowAgents, error) {
	if path, ok := strings.CutPrefix(server, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return nil, fmt.Errorf("--server %q: want unix:///path with three slashes", server)
		}
		return oneAgent{name: path, target: server}, nil
	}
	if _, port, err := net.SplitHostPort(server); err != nil || port == "" {
		return nil, fmt.Errorf("--server %q: want unix:///path or host:port", server)
	}
	return oneAgent{name: server, target: "dns:///" + server, serverName: serverName}, nil
}

// List implements flowAgents.
func (a oneAgent) List(context.Context) ([]flowAgent, error) { return []flowAgent{flowAgent(a)}, nil }

// Watch implements flowAgents.
func (a oneAgent) Watch(ctx context.Context, changed func([]flowAgent)) error {
	changed([]flowAgent{flowAgent(a)})
	<-ctx.Done()
	return nil
}

// Several implements flowAgents.
func (oneAgent) Several() bool { return false }

// podAgents are the agents of a cluster.
type podAgents struct {
	client     kubernetes.Interface
	options    *flowAgentOptions
	serverName string
}

func (o *flowAgentOptions) clusterAgents(serverName string) (*podAgents, error) {
	if _, err := labels.Parse(o.selector); err != nil {
		return nil, fmt.Errorf("--agent-selector: %w", err)
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules,
		&clientcmd.ConfigOverrides{CurrentContext: o.context}).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("no kubeconfig is set up, and this is no pod of a cluster")
	}
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	return &podAgents{client: client, options: o, serverName: serverName}, err
}

// Several implements flowAgents.
func (*podAgents) Several() bool { return true }

// List implements flowAgents.
func (p *podAgents) List(ctx context.Context) ([]flowAgent, error) {
	pods, err := p.client.CoreV1().Pods(p.options.namespace).List(ctx, metav1.ListOptions{LabelSelector: p.options.selector})
	if err != nil {
		return nil, fmt.Errorf("find the agents of the cluster: %w", err)
	}
	var agents []flowAgent
	for i := range pods.Items {
		agents = p.append(agents, &pods.Items[i])
	}
	if len(agents) == 0 {
		return nil, fmt.Errorf("find the agents of the cluster: no running pod in namespace %s has the labels %s (see --agent-namespace, --agent-selector)",
			p.options.namespace, p.options.selector)
	}
	return byName(agents), nil
}

// append adds the agent of a pod that runs.
func (p *podAgents) append(agents []flowAgent, pod *corev1.Pod) []flowAgent {
	if pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP == "" {
		return agents
	}
	a := flowAgent{
		name:       pod.Spec.NodeName,
		target:     "passthrough:///" + net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(int(p.options.port))),
		serverName: p.serverName,
	}
	if a.serverName == "" {
		a.serverName = hubble.ServerName(pod.Spec.NodeName, p.options.name)
	}
	return append(agents, a)
}

func byName(agents []flowAgent) []flowAgent {
	slices.SortFunc(agents, func(a, b flowAgent) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.target, b.target))
	})
	return slices.Compact(agents)
}

// Watch implements flowAgents.
func (p *podAgents) Watch(ctx context.Context, changed func([]flowAgent)) error {
	factory := informers.NewSharedInformerFactoryWithOptions(p.client, 0, informers.WithNamespace(p.options.namespace),
		informers.WithTweakListOptions(func(l *metav1.ListOptions) { l.LabelSelector = p.options.selector }))
	pods := factory.Core().V1().Pods()
	dirty := make(chan struct{}, 1)
	mark := func() {
		select {
		case dirty <- struct{}{}:
		default:
		}
	}
	_, err := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { mark() }, UpdateFunc: func(any, any) { mark() }, DeleteFunc: func(any) { mark() },
	})
	if err != nil {
		return fmt.Errorf("watch the agents of the cluster: %w", err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	factory.WaitForCacheSync(ctx.Done())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-dirty:
		}
		list, err := pods.Lister().List(labels.Everything())
		if err != nil {
			return fmt.Errorf("watch the agents of the cluster: %w", err)
		}
		var agents []flowAgent
		for _, pod := range list {
			agents = p.append(agents, pod)
		}
		changed(byName(agents))
	}
}
