package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/netverdict/netverdict/kube"
	"github.com/netverdict/netverdict/policy"
)

// source is where an agent's snapshots come from. Watch calls onSnapshot with the
// initial state and then with every new one; after onError the last one stays
// valid. It returns nil when ctx ends.
type source interface {
	Watch(ctx context.Context, onSnapshot func(*policy.Snapshot, *kube.Report), onError func(error)) error
	String() string
}

// manifestSource is a directory or file of manifests.
type manifestSource struct {
	path    string
	options kube.Options
}

func (s *manifestSource) Watch(ctx context.Context, onSnapshot func(*policy.Snapshot, *kube.Report), onError func(error)) error {
	return kube.Watch(ctx, s.path, s.options, onSnapshot, onError)
}

func (s *manifestSource) String() string { return "manifests " + s.path }

// clusterSource is an API server.
type clusterSource struct {
	*kube.Cluster
	host string
}

func (s *clusterSource) String() string { return "API server " + s.host }

// changedAt is when the oldest change came that the snapshot at hand is the first to
// show; it is to be called from onSnapshot. Files do not say when they changed.
func changedAt(s source) time.Time {
	if c, ok := s.(*clusterSource); ok {
		if pending := c.Status().Pending(); !pending.IsZero() {
			return pending
		}
	}
	return time.Now()
}

// newClusterSource uses a kubeconfig, or without one the service account of the
// pod that this process runs in.
func newClusterSource(kubeconfig, nodeName string) (*clusterSource, error) {
	cfg, err := restConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	if nodeName == "" {
		return nil, errors.New("--node-name is missing: which node's pods are to be policed? (in a DaemonSet, set $NODE_NAME from spec.nodeName)")
	}
	c, err := kube.NewCluster(cfg, kube.ClusterOptions{NodeName: nodeName})
	if err != nil {
		return nil, err
	}
	return &clusterSource{c, cfg.Host}, nil
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("read kubeconfig %s: %w", kubeconfig, err)
		}
		return cfg, nil
	}
	cfg, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("no policies to enforce: not in a cluster, so give --manifests or --kubeconfig")
	}
	return cfg, err
}
