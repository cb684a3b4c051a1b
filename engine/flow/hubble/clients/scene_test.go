package clients

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/bench/netlab/cluster"
)

// port is the one that the policies of the scene allow; every other is denied.
const port = 80

// scene is a cluster of three nodes. On each is a server that only the client may
// reach, and only on one port, and the client is on the second node:
//
//	node-1: shop/web    node-2: shop/db, shop/client    node-3: shop/cache, shop/other
type scene struct {
	*testing.T
	c       *cluster.Cluster
	dir     string // sockets and keys
	hubble  string // the programs
	relay   string
	servers []*cluster.Pod // web, db, cache: one on each node
	client  *cluster.Pod
	other   *cluster.Pod

	mu   sync.Mutex
	next uint16
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{T: t, dir: t.TempDir(), next: 10000}
	var err error
	s.hubble, err = Build(t.Context(), Hubble)
	s.ok(err)
	s.relay, err = Build(t.Context(), Relay)
	s.ok(err)
	s.certificates()
	s.c = cluster.New(t, cluster.Options{NoAgent: true})
	s.ok(s.c.CreateNamespace(t.Context(), "shop", nil))
	for i, name := range []string{"web", "db", "cache"} {
		s.servers = append(s.servers, s.pod(name, fmt.Sprintf("node-%d", i+1), cluster.TCP("http", port)))
		s.isolate(name)
	}
	s.client, s.other = s.pod("client", "node-2"), s.pod("other", "node-3")
	for _, n := range s.c.Nodes() {
		a, err := n.StartAgent("--hubble-socket="+s.socket(n.Name()), "--hubble-listen=:4244",
			"--hubble-tls-cert="+s.file("server.crt"), "--hubble-tls-key="+s.file("server.key"), "--hubble-tls-client-ca="+s.file("ca.crt"))
		s.ok(err)
		s.ok(a.AwaitReady(t.Context()))
	}
	return s
}

func (s *scene) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *scene) file(name string) string   { return filepath.Join(s.dir, name) }
func (s *scene) socket(node string) string { return s.file(node + ".sock") }

// pod makes a pod as a Deployment's controllers would.
func (s *scene) pod(name, node string, ports ...corev1.ContainerPort) *cluster.Pod {
	s.Helper()
	yes := true
	object := cluster.ServerPod("shop", name+"-5d4f8c-x2v4z", node, map[string]string{"app": name, "pod-template-hash": "5d4f8c"}, ports...)
	object.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name + "-5d4f8c", UID: "1", Controller: &yes}}
	p, err := s.c.CreatePod(s.Context(), object)
	s.ok(err)
	return p
}

// isolate lets only the client reach a server, on one port.
func (s *scene) isolate(server string) {
	s.Helper()
	app := func(name string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
	}
	from := app("client")
	policy := &networkingv1.NetworkPolicy{}
	policy.Name = "client-to-" + server
	policy.Spec.PodSelector = app(server)
	policy.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &from}},
		Ports: []networkingv1.NetworkPolicyPort{{Port: httpPort()}},
	}}
	_, err := s.c.Client().NetworkingV1().NetworkPolicies("shop").Create(s.Context(), policy, metav1.CreateOptions{})
	s.ok(err)
}

// knock tries to reach a server on a port that was never used before and returns
// it: the deny set answers a second attempt by itself.
func (s *scene) knock(from *netlab.Host, to *cluster.Pod) uint16 {
	s.Helper()
	s.mu.Lock()
	s.next++
	p := s.next
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(s.Context(), cluster.Silence)
	defer cancel()
	if who, err := cluster.Reach(ctx, from, corev1.ProtocolTCP, to.Targets(p)[0]); err == nil {
		s.Errorf("%s answers on port %d", who, p)
	}
	return p
}

// knockAll has each server deny something, each on its node.
func (s *scene) knockAll() {
	s.Helper()
	for _, server := range s.servers {
		s.knock(s.other.Host, server)
	}
}

// observe runs hubble on this machine against the agent of a node.
func (s *scene) observe(node string, args ...string) string {
	s.Helper()
	out, err := netlabOutput(s.Context(), s.hubble, append(args, "--server", "unix://"+s.socket(node))...)
	if err != nil {
		s.Fatalf("hubble %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// expectFlows waits until a command prints flows that satisfy all, as JSON.
func (s *scene) expectFlows(what string, run func() string, enough func([]*flowpb.Flow) bool) []*flowpb.Flow {
	s.Helper()
	deadline := time.Now().Add(cluster.Patience)
	for {
		flows := s.parse(run())
		if enough(flows) {
			return flows
		}
		if time.Now().After(deadline) {
			s.Fatalf("%s: after %v there are only %d flows: %v", what, cluster.Patience, len(flows), flows)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// parse reads what hubble observe -o json prints.
func (s *scene) parse(out string) (flows []*flowpb.Flow) {
	s.Helper()
	for line := range strings.Lines(out) {
		resp := &observerpb.GetFlowsResponse{}
		if err := resp.UnmarshalJSON([]byte(line)); err != nil {
			s.Fatalf("%q: %v", line, err)
		}
		if f := resp.GetFlow(); f != nil {
			flows = append(flows, f)
		}
	}
	return flows
}

// certificates makes an authority, and what server and clients need of it.
func (s *scene) certificates() {
	s.Helper()
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
	}
	ca := template("authority")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage, ca.DNSNames, ca.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil, nil
	caKey := s.certificate("ca", ca, ca, nil)
	s.certificate("server", template("*.default.hubble-grpc.cilium.io"), ca, caKey)
	s.certificate("client", template("client"), ca, caKey)
	stranger := template("stranger")
	s.certificate("stranger", stranger, stranger, nil)
}

// certificate writes NAME.crt and NAME.key, signed by itself if there is no key.
func (s *scene) certificate(name string, template, parent *x509.Certificate, by *ecdsa.PrivateKey) *ecdsa.PrivateKey {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.ok(err)
	if by == nil {
		by = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	s.ok(err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	s.ok(err)
	s.ok(os.WriteFile(s.file(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	s.ok(os.WriteFile(s.file(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
	return key
}
