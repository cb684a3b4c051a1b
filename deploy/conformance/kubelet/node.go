//go:build linux

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/node"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/netverdict/netverdict/bench/netlab"
)

// Options configure a node.
type Options struct {
	// Node is the namespace; its name is the node's, its addresses too, and its pods
	// get theirs from its PodCIDRs. The first of each is of the primary family.
	Node *netlab.Node
	// Client does what a kubelet does.
	Client kubernetes.Interface
	// Images are those that the node has.
	Images []Image
	// DNS are the name servers of its pods.
	DNS []netip.Addr
	// Dir is for the pods' files, on the file system of the images' programs.
	Dir string
	// Listener, a TCP one, is where the API server reaches the node: its address goes
	// into the Node object as the one of type ExternalDNS.
	Listener net.Listener
	// Version is what the node says that it is a kubelet of.
	Version string
	// Log is told what goes wrong.
	Log *slog.Logger
}

// Node is a node that runs pods.
type Node struct {
	opts      Options
	addresses *addresses
	provider  *provider
	log       *slog.Logger
	server    *http.Server
	cancel    context.CancelFunc
	stop      chan struct{} // ends the informers
	pods      *node.PodController
	nodes     *node.NodeController
	events    record.EventBroadcaster
}

// workers reconcile pods; most of their time they wait for the kernel.
const workers = 8

// Start registers the node and returns when it runs pods. Stop ends them.
func Start(ctx context.Context, opts Options) (*Node, error) {
	n := &Node{opts: opts, stop: make(chan struct{}), addresses: newAddresses(opts.Node.PodCIDRs()), log: opts.Log.With("node", opts.Node.Name())}
	n.provider = &provider{node: n, pods: map[types.NamespacedName]*pod{}}
	if err := os.MkdirAll(filepath.Join(opts.Dir, "pods"), 0o755); err != nil {
		return nil, fmt.Errorf("start node %s: %w", opts.Node.Name(), err)
	}
	if err := n.control(); err != nil {
		return nil, fmt.Errorf("start node %s: %w", opts.Node.Name(), err)
	}
	n.server = &http.Server{Handler: n.routes(), ReadHeaderTimeout: 30 * time.Second}
	go func() {
		if err := n.server.Serve(opts.Listener); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("the kubelet's API ended", "error", err)
		}
	}()
	var run context.Context
	run, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() { _ = n.pods.Run(run, workers) }() // Err tells
	if err := await(ctx, n.pods); err != nil {
		return nil, errors.Join(fmt.Errorf("start node %s: run pods: %w", opts.Node.Name(), err), n.Stop())
	}
	go func() { _ = n.nodes.Run(run) }()
	if err := await(ctx, n.nodes); err != nil {
		return nil, errors.Join(fmt.Errorf("start node %s: register: %w", opts.Node.Name(), err), n.Stop())
	}
	return n, nil
}

func await(ctx context.Context, c interface {
	Ready() <-chan struct{}
	Done() <-chan struct{}
	Err() error
}) error {
	select {
	case <-c.Ready():
		return nil
	case <-c.Done():
		return c.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// control makes Virtual Kubelet's controllers and what they watch.
func (n *Node) control() error {
	name, client := n.opts.Node.Name(), n.opts.Client
	mine := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", name).String()
	}))
	all := informers.NewSharedInformerFactory(client, 0)
	n.events = record.NewBroadcaster()
	n.events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events(metav1.NamespaceAll)})
	var err error
	n.pods, err = node.NewPodController(node.PodControllerConfig{
		PodClient:         client.CoreV1(),
		PodInformer:       mine.Core().V1().Pods(),
		EventRecorder:     n.events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: name}),
		Provider:          n.provider,
		ConfigMapInformer: all.Core().V1().ConfigMaps(),
		SecretInformer:    all.Core().V1().Secrets(),
		ServiceInformer:   all.Core().V1().Services(),
	})
	if err != nil {
		return err
	}
	n.nodes, err = node.NewNodeController(node.NewNaiveNodeProvider(), n.object(), client.CoreV1().Nodes(),
		node.WithNodeEnableLeaseV1(client.CoordinationV1().Leases(corev1.NamespaceNodeLease), node.DefaultLeaseDuration))
	if err != nil {
		return err
	}
	return n.watch(mine, all)
}

// watch starts the informers: the controllers have asked for theirs.
func (n *Node) watch(factories ...informers.SharedInformerFactory) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, f := range factories {
		f.Start(n.stop)
		for kind, synced := range f.WaitForCacheSync(ctx.Done()) {
			if !synced {
				return fmt.Errorf("list %v: the API server did not answer within a minute", kind)
			}
		}
	}
	return nil
}

// object is what the node registers as.
func (n *Node) object() *corev1.Node {
	name := n.opts.Node.Name()
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
	}}}
	for _, p := range n.opts.Node.PodCIDRs() {
		o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, p.String())
	}
	o.Spec.PodCIDR = o.Spec.PodCIDRs[0]
	o.Status.Capacity = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("64Gi"),
		corev1.ResourcePods: resource.MustParse("110"), corev1.ResourceEphemeralStorage: resource.MustParse("64Gi"),
	}
	o.Status.Allocatable = o.Status.Capacity
	o.Status.NodeInfo = corev1.NodeSystemInfo{
		KubeletVersion: n.opts.Version, OperatingSystem: "linux", Architecture: "amd64", ContainerRuntimeVersion: "netns://1",
	}
	o.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
		LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
	}}
	for _, a := range n.opts.Node.Addrs() {
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	api := netip.MustParseAddrPort(n.opts.Listener.Addr().String())
	o.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(api.Port())
	o.Status.Addresses = append(o.Status.Addresses,
		corev1.NodeAddress{Type: corev1.NodeHostName, Address: name},
		corev1.NodeAddress{Type: corev1.NodeExternalDNS, Address: api.Addr().String()})
	return o
}

// image finds what the node has of an image.
func (n *Node) image(name string) *Image {
	for i := range n.opts.Images {
		if n.opts.Images[i].Repository == repository(name) {
			return &n.opts.Images[i]
		}
	}
	return nil
}

// Stop ends the node's pods at once and the controllers. The Node object stays.
func (n *Node) Stop() error {
	n.cancel()
	defer close(n.stop)
	<-n.pods.Done()
	n.provider.endAll()
	n.events.Shutdown()
	return n.server.Close()
}
