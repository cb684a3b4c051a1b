package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/bench/gen"
	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/policytest"
)

// cluster says what an agent is given.
type cluster struct {
	pods     int // of a generated cluster
	policies int // of a generated cluster
	server   int // policies that select the server, the last of which allows the client
}

// agent runs the product on the node with a cluster's manifests.
func (s *suite) agent(c cluster, flags ...string) func(context.Context, *stage) (*running, error) {
	return func(ctx context.Context, st *stage) (*running, error) {
		manifests, err := s.manifests(c)
		if err != nil {
			return nil, err
		}
		socket := filepath.Join(s.dir, "status.sock")
		args := append([]string{"agent", "--manifests", manifests, "--node-name", nodeName, "--status-socket", socket}, flags...)
		p, err := st.start(ctx, nil, s.binary, args...)
		if err != nil {
			return nil, err
		}
		if err := st.enforcing(ctx, p, s.binary, socket); err != nil {
			return nil, errors.Join(err, p.end())
		}
		return &running{pids: []int{p.cmd.Process.Pid}, stop: p.end}, nil
	}
}

// startTime bounds how long an agent may take to load the biggest cluster.
const startTime = 2 * time.Minute

// enforcing waits until an agent says that it enforces.
func (s *stage) enforcing(ctx context.Context, p *process, binary, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		err := s.exec(ctx, s.node.Host, binary, "status", "--socket", socket)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-p.done:
			return errors.New("the agent ended before it enforced anything")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// manifests writes a cluster's objects to a file, once.
func (s *suite) manifests(c cluster) (path string, err error) {
	path = filepath.Join(s.dir, fmt.Sprintf("%d-%d-%d.yaml", c.pods, c.policies, c.server))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	snapshot := gen.New(1, gen.Size{Pods: c.pods, Policies: c.policies}).Snapshot
	for _, p := range snapshot.Policies {
		p.TypeMeta = policyType
	}
	c.addStage(snapshot)
	return path, os.WriteFile(path, policytest.Manifests(snapshot), 0o600)
}

// addStage adds the stage's own objects to a generated cluster.
func (c cluster) addStage(s *policy.Snapshot) {
	s.Namespaces = append(s.Namespaces, &policy.Namespace{Name: nodeName})
	s.Nodes = append(s.Nodes, &policy.Node{Name: nodeName, PodCIDRs: []netip.Prefix{podCIDR}})
	for name, addr := range map[string]netip.Addr{"client": clientAddr, "server": serverAddr} {
		s.Pods = append(s.Pods, &policy.Pod{
			NamespacedName: policy.NamespacedName{Namespace: nodeName, Name: name},
			Labels:         map[string]string{"app": name}, NodeName: nodeName,
			Addrs: []netip.Addr{addr}, Phase: policy.PhaseRunning, Created: time.Unix(1, 0),
		})
	}
	for i := range c.server {
		peer := fmt.Sprintf("peer-%d", i)
		if i == c.server-1 {
			peer = "client"
		}
		s.Policies = append(s.Policies, allowFrom(fmt.Sprintf("server-%05d", i), peer))
	}
}

var policyType = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}

// allowFrom is a policy that lets an application reach the server's ports.
func allowFrom(name, app string) *networkingv1.NetworkPolicy {
	ports := []networkingv1.NetworkPolicyPort{
		{Protocol: new(corev1.ProtocolTCP), Port: new(intstr.FromInt32(acceptPort)), EndPort: new(int32(sinkPort))},
		{Protocol: new(corev1.ProtocolUDP), Port: new(intstr.FromInt32(udpPort)), EndPort: new(int32(lastPort))},
	}
	return &networkingv1.NetworkPolicy{
		TypeMeta:   policyType,
		ObjectMeta: metav1.ObjectMeta{Namespace: nodeName, Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}}},
				Ports: ports,
			}},
		},
	}
}
