package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netverdict/netverdict/bench/gen"
	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/policy/policytest"
)

const (
	nodeName      = "profiled"
	healthAddress = "127.0.0.1:8051"
	pprofAddress  = "127.0.0.1:6060"
	serverPort    = 80
	startTime     = 2 * time.Minute
)

// lab.yaml: three pods of the profiled node; the server lets only the client in.
const labManifest = `apiVersion: v1
kind: Namespace
metadata: {name: lab}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: lab}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
`

const podManifest = `---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: lab, labels: {app: %[1]s}}
spec: {nodeName: ` + nodeName + `, containers: [{name: main, image: none}]}
status: {phase: Running, podIP: %[2]s, podIPs: [{ip: %[2]s}]}
`

// stage is a node with pods and an agent.
type stage struct {
	lab                     *netlab.Lab
	node                    *netlab.Node
	client, server, scanner *netlab.Host
	dir                     string // of manifests
	agent                   *netlab.Cmd
	ended                   chan error // of the agent
}

func newStage(ctx context.Context, program string) (s *stage, err error) {
	s = &stage{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.lab, err = netlab.New(netlab.Options{}); err != nil {
		return nil, err
	}
	if s.node, err = s.lab.AddNode("node", netlab.NodeOptions{}); err != nil {
		return nil, err
	}
	manifests := labManifest
	for i, host := range []**netlab.Host{&s.client, &s.server, &s.scanner} {
		name, addr := []string{"client", "server", "scanner"}[i], netip.AddrFrom4([4]byte{172, 30, 0, byte(i + 1)})
		if *host, err = s.node.AddHost(name, addr); err != nil {
			return nil, err
		}
		manifests += fmt.Sprintf(podManifest, name, addr)
	}
	if _, err = s.server.ServeHTTP(serverPort); err != nil {
		return nil, err
	}
	if err := s.writeManifests(manifests); err != nil {
		return nil, err
	}
	return s, s.startAgent(ctx, program)
}

// writeManifests adds a cluster to what is about the lab.
func (s *stage) writeManifests(lab string) (err error) {
	if s.dir, err = os.MkdirTemp("", "netverdict-profile-"); err != nil {
		return err
	}
	cluster := gen.New(1, gen.Size{Pods: 10_000, Policies: 1_000})
	for _, p := range cluster.Snapshot.Policies {
		p.TypeMeta = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(s.dir, "lab.yaml"), []byte(lab), 0o644),
		os.WriteFile(filepath.Join(s.dir, "cluster.yaml"), policytest.Manifests(cluster.Snapshot), 0o644))
}

// startAgent returns when the agent enforces. Without the kernel's memory every
// connection is decided in user space.
func (s *stage) startAgent(ctx context.Context, program string) error {
	program, err := filepath.Abs(program)
	if err != nil {
		return err
	}
	s.agent = s.node.Command(ctx, program, "agent", "--manifests", s.dir, "--node-name", nodeName,
		"--health-address", healthAddress, "--pprof", pprofAddress, "--allow-timeout=0", "--deny-timeout=0")
	s.agent.Stderr = os.Stderr
	if err := s.agent.Start(); err != nil {
		s.agent = nil
		return fmt.Errorf("start %s: %w (make build)", program, err)
	}
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.agent.Wait() }()
	return s.awaitReady(ctx)
}

func (s *stage) awaitReady(ctx context.Context) error {
	for end := time.Now().Add(startTime); ; time.Sleep(100 * time.Millisecond) {
		_, err := s.get(ctx, healthAddress, "/readyz")
		if err == nil {
			return nil
		}
		select {
		case ended := <-s.ended:
			s.ended <- ended // for close
			return fmt.Errorf("the agent ended: %w", ended)
		default:
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("the agent is not ready: %w", err)
		}
	}
}

// get asks the agent, on the node's loopback.
func (s *stage) get(ctx context.Context, address, path string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
			err = s.node.Do(func() error {
				c, err = new(net.Dialer).DialContext(ctx, "tcp", address)
				return err
			})
			return c, err
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return body, err
}

func (s *stage) profile(ctx context.Context, seconds int) ([]byte, error) {
	return s.get(ctx, pprofAddress, fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds))
}

// close removes everything.
func (s *stage) close() {
	var err error
	if s.agent != nil {
		_ = s.agent.Process.Kill() // it may have ended
		<-s.ended
	}
	if s.lab != nil {
		err = errors.Join(err, s.lab.Close())
	}
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "profile: clean up:", err)
	}
}
