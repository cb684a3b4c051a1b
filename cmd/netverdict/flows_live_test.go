package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/flow/hubble"
	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/policy"
)

// street is who lives at which address.
type street map[netip.Addr]*policy.Pod

func (s street) Pod(a netip.Addr) (*policy.Pod, bool) {
	p, ok := s[a]
	return p, ok
}

func streetPod(namespace, name, app string) *policy.Pod {
	return &policy.Pod{NamespacedName: policy.NamespacedName{Namespace: namespace, Name: name}, Labels: map[string]string{"app": app}}
}

var (
	cartAddr, dbAddr, blogAddr = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::2"), netip.MustParseAddr("10.0.0.3")
	worldAddr                  = netip.MustParseAddr("192.0.2.7")

	lane = street{
		cartAddr: streetPod("shop", "cart-1", "cart"), dbAddr: streetPod("shop", "db-0", "db"), blogAddr: streetPod("default", "blog", "blog"),
	}
	laneAddrs = []netip.Addr{cartAddr, dbAddr, blogAddr, worldAddr}
)

func laneRef(name string) policy.PolicyRef {
	return policy.PolicyRef{Kind: "NetworkPolicy", NamespacedName: policy.NamespacedName{Namespace: "shop", Name: name}}
}

var (
	laneAllows = []*policy.Outcome{
		{Verdict: policy.Allow, Reason: policy.ReasonNoPolicy},
		{Verdict: policy.Allow, Reason: policy.ReasonPolicy, Policy: laneRef("let-in"), Rule: 2},
	}
	laneDenies = []*policy.Outcome{
		{Reason: policy.ReasonDefaultDeny, IsolatedBy: []policy.PolicyRef{laneRef("a"), laneRef("b")}},
		{Reason: policy.ReasonPolicy, Policy: laneRef("keep-out"), Rule: 1},
		{Reason: policy.ReasonUnknownPod},
	}
)

// laneRecord is a denied connection from cart to db.
func laneRecord(at time.Time, port uint16) flow.Record {
	return flow.Record{
		Time: at.UnixNano(), Src: cartAddr, Dst: dbAddr, SrcPort: 40000, DstPort: port,
		Protocol: policy.TCP, TCPFlags: 2, Malformed: packet.OK, Names: lane, Revision: 7,
		Decision: policy.Decision{Direction: policy.Ingress, Egress: laneAllows[0], Ingress: laneDenies[0]},
	}
}

func randomRecord(random *mathrand.Rand, at time.Time) flow.Record {
	r := laneRecord(at, uint16(1+random.IntN(4)))
	r.Src, r.Dst = laneAddrs[random.IntN(4)], laneAddrs[random.IntN(4)]
	r.Protocol = []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, policy.ICMP, policy.ICMPv6, 89}[random.IntN(6)]
	if r.Protocol != policy.TCP {
		r.TCPFlags = 0
	}
	if !r.Protocol.HasPorts() {
		r.SrcPort, r.DstPort = 0, 0
	}
	d := &r.Decision
	d.Egress, d.Ingress = laneAllows[random.IntN(2)], laneAllows[random.IntN(2)]
	switch random.IntN(3) {
	case 0:
		d.Verdict = policy.Allow
	case 1:
		d.Ingress = laneDenies[random.IntN(3)]
	case 2:
		d.Direction, d.Egress = policy.Egress, laneDenies[random.IntN(3)]
	}
	return r
}

// flowServer is a real server of flows, without an agent.
func newFlowServer(t *testing.T, node string) *hubble.Server {
	t.Helper()
	s, err := hubble.New(hubble.Options{NodeName: node})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serveFlows serves until the returned function is called.
func serveFlows(t *testing.T, s *hubble.Server, l net.Listener, opts ...grpc.ServerOption) (stop func()) {
	t.Helper()
	g := grpc.NewServer(append(hubble.ServerOptions(), opts...)...)
	s.Register(g)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := g.Serve(l); err != nil {
			t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() { g.Stop(); <-ended })
	t.Cleanup(stop)
	return stop
}

// serveSocket serves on a socket, whose --server it returns.
func serveSocket(t *testing.T, s *hubble.Server) (server string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hubble.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serveFlows(t, s, l)
	return "unix://" + path
}

// flowsRun is a run of the flows verb with -o json.
type flowsRun struct {
	t      *testing.T
	lines  journal[flow.Line]
	stderr lockedBuffer
	cancel context.CancelFunc
	ended  chan struct{}
	err    error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// startFlows runs the verb with other agents than its flags name, if given.
func startFlows(t *testing.T, agents flowAgents, args ...string) *flowsRun {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &flowsRun{t: t, cancel: cancel, ended: make(chan struct{})}
	out, in := io.Pipe()
	e := env{strings.NewReader(""), in, &r.stderr}
	o := &flowsOptions{}
	cmd := newFlowsCommand(e, o)
	if err := cmd.ParseFlags(append(args, "-o=json")); err != nil {
		t.Fatal(err)
	}
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	go func() {
		if agents != nil {
			r.err = o.ask(ctx, e, agents)
		} else {
			r.err = o.live(ctx, e)
		}
		in.Close()
	}()
	go func() {
		defer close(r.ended)
		for l, err := range flow.ReadJSON(out) {
			if err != nil {
				t.Error(err)
			}
			r.lines.add(l)
		}
	}()
	t.Cleanup(func() { cancel(); <-r.ended })
	return r
}

// wait waits for the end.
func (r *flowsRun) wait() ([]flow.Line, error) {
	r.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(agentPatience):
		r.t.Fatalf("netverdict flows does not end; it said: %s", r.stderr.String())
	}
	lines, _ := r.lines.since(0)
	return lines, r.err
}

// await waits until there are n lines, and returns them.
func (r *flowsRun) await(n int) []flow.Line {
	r.t.Helper()
	limit := time.After(agentPatience)
	for {
		lines, more := r.lines.since(0)
		if len(lines) >= n {
			return lines
		}
		select {
		case <-more:
		case <-r.ended:
			r.t.Fatalf("netverdict flows ended (%v) with %d lines, want %d; it said: %s", r.err, len(lines), n, r.stderr.String())
		case <-limit:
			r.t.Fatalf("%d lines, want %d; netverdict flows said: %s", len(lines), n, r.stderr.String())
		}
	}
}

// ports are the destination ports of lines, which tell flows apart here.
func ports(lines []flow.Line) (ports []int) {
	for _, l := range lines {
		ports = append(ports, int(l.Destination.Port))
	}
	return ports
}

func (r *flowsRun) demandPorts(want ...int) {
	r.t.Helper()
	if diff := cmp.Diff(want, ports(r.await(len(want)))); diff != "" {
		r.t.Errorf("-want +got\n%s", diff)
	}
}

// subscribed waits until a server has followers: flows from then on are theirs.
func subscribed(t *testing.T, s *hubble.Server, n int64) {
	t.Helper()
	for deadline := time.Now().Add(agentPatience); s.Stats().Subscribers < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d subscribers, want %d", s.Stats().Subscribers, n)
		}
	}
}

// TestFlowsSameFlow: what comes over the wire is the line that the agent's flow
// log has, with labels and the node.
func TestFlowsSameFlow(t *testing.T) {
	t.Parallel()
	random := mathrand.New(mathrand.NewPCG(1, 2))
	records := make([]flow.Record, 500)
	start := time.Now().Add(-time.Minute)
	for i := range records {
		records[i] = randomRecord(random, start.Add(time.Duration(i)*time.Millisecond))
	}
	records[7] = flow.Record{
		Time: records[7].Time, Malformed: packet.BadVersion, Names: lane, Revision: 7,
		Decision: policy.Decision{Egress: &policy.Outcome{Reason: policy.ReasonMalformed}, Ingress: &policy.Outcome{Reason: policy.ReasonMalformed}},
	}
	s := newFlowServer(t, "node-1")
	s.Flows(records)
	lines, err := startFlows(t, nil, "--server="+serveSocket(t, s), "--last=1000").wait()
	if err != nil || len(lines) != len(records) {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	for i := range records {
		want := flow.NewLine(&records[i])
		want.Node = "node-1"
		for _, end := range []*flow.Endpoint{&want.Source, &want.Destination} {
			if p, ok := lane[end.IP]; ok {
				end.Labels = p.Labels
			}
		}
		got := lines[i]
		if want.Policy == "" && want.IsolatedBy == nil && want.Egress.Policy+want.Ingress.Policy == "" && want.Egress.IsolatedBy == nil && want.Ingress.IsolatedBy == nil {
			want.Revision = 0 // the messages have it with policies only
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Fatalf("record %d: -want +got\n%s", i, diff)
		}
	}
}

// flowsFilterArgs are values of every filter.
var flowsFilterArgs = []string{
	"--pod=shop/cart", "--from-pod=shop/db,blog", "--to-pod=/db", "--pod=shop/", "--namespace=shop", "--from-namespace=default", "--to-namespace=shop,default",
	"--label=app=cart", "--from-label=app in (db,blog)", "--to-label=!app", "--label=app!=db", "--ip=10.0.0.1", "--from-ip=10.0.0.0/8", "--to-ip=fd00::/16,192.0.2.7",
	"--port=1", "--port=2,3", "--protocol=tcp", "--protocol=icmp", "--protocol=89,udp", "--verdict=deny", "--verdict=allow", "--verdict=audit,allow",
	"--direction=ingress", "--reason=default-deny", "--reason=policy,no-policy", "--policy=shop/let-in", "--policy=/a,/keep-out",
}

// TestFlowsFiltersAgree: whatever filters a server is asked for, the answer is
// what the same filters leave of all flows, the last ones too.
func TestFlowsFiltersAgree(t *testing.T) {
	t.Parallel()
	random := mathrand.New(mathrand.NewPCG(3, 4))
	s := newFlowServer(t, "node-1")
	records := make([]flow.Record, 400)
	start := time.Now().Add(-time.Minute)
	for i := range records {
		records[i] = randomRecord(random, start.Add(time.Duration(i)*time.Millisecond))
	}
	s.Flows(records)
	server := serveSocket(t, s)
	all, err := startFlows(t, nil, "--server="+server, "--last=1000").wait()
	if err != nil || len(all) != len(records) {
		t.Fatalf("%d lines, %v", len(all), err)
	}
	sizes := map[bool]int{}
	for range 200 {
		args := []string{"--server=" + server, "--last=" + strconv.Itoa(1+random.IntN(500))}
		for range 1 + random.IntN(4) {
			if random.IntN(3) == 0 {
				args = append(args, "--not")
			}
			args = append(args, flowsFilterArgs[random.IntN(len(flowsFilterArgs))])
		}
		o := &flowsOptions{}
		if err := newFlowsCommand(env{}, o).ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		var want []flow.Line
		for i := range all {
			if o.filters.match(&all[i]) {
				want = append(want, all[i])
			}
		}
		want = want[max(0, len(want)-o.last):]
		got, _ := startFlows(t, nil, args...).wait()
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Fatalf("%s: -want +got\n%s", strings.Join(args, " "), diff)
		}
		sizes[len(want) > 0]++
	}
	if sizes[true] < 50 || sizes[false] == 0 {
		t.Errorf("answers with and without flows: %v", sizes)
	}
}

// TestFlowsFollow: what is remembered, then what comes; nothing twice, nothing
// left out between them.
func TestFlowsFollow(t *testing.T) {
	t.Parallel()
	s := newFlowServer(t, "node-1")
	for port := range uint16(5) {
		s.Flows([]flow.Record{laneRecord(time.Now(), port+1)})
	}
	server := serveSocket(t, s)
	new := startFlows(t, nil, "--server="+server, "-f", "--verdict=deny")
	last := startFlows(t, nil, "--server="+server, "-f", "--last=2")
	filtered := startFlows(t, nil, "--server="+server, "-f", "--last=2", "--policy=shop/a", "--not", "--port=4")
	since := startFlows(t, nil, "--server="+server, "-f", "--since=1h")
	last.demandPorts(4, 5)
	subscribed(t, s, 4)
	s.Flows([]flow.Record{laneRecord(time.Now(), 6)})
	new.demandPorts(6)
	s.Lost(9, time.Now())
	new.demandPorts(6, 0) // the loss
	last.demandPorts(4, 5, 6, 0)
	filtered.demandPorts(3, 5, 6, 0)
	since.demandPorts(1, 2, 3, 4, 5, 6, 0)
	s.Flows([]flow.Record{laneRecord(time.Now(), 7)})
	new.demandPorts(6, 0, 7)
	last.demandPorts(4, 5, 6, 0, 7)
	filtered.demandPorts(3, 5, 6, 0, 7)
	since.demandPorts(1, 2, 3, 4, 5, 6, 0, 7)
	if l := new.await(3)[1]; l.Lost != 9 {
		t.Errorf("lost line %+v", l)
	}
	for _, r := range []*flowsRun{new, last, filtered, since} {
		r.cancel()
		if _, err := r.wait(); err != nil {
			t.Errorf("stopped: %v", err)
		}
	}
	until := startFlows(t, nil, "--server="+server, "-f", "--last=1", "--until="+time.Now().Add(50*time.Millisecond).Format(time.RFC3339Nano))
	if lines, err := until.wait(); err != nil || len(lines) != 2 || lines[0].Destination.Port != 7 { // and the loss
		t.Errorf("until: %v, %v", ports(lines), err)
	}
}

// TestFlowsAnswers are the ends that a run may have.
func TestFlowsAnswers(t *testing.T) {
	t.Parallel()
	s := newFlowServer(t, "node-1")
	s.Flows([]flow.Record{laneRecord(time.Now(), 1)})
	server := serveSocket(t, s)
	if _, err := startFlows(t, nil, "--server="+server).wait(); err != nil {
		t.Errorf("one flow: %v", err)
	}
	if _, err := startFlows(t, nil, "--server="+server, "--port=9").wait(); err != errAnswerNo {
		t.Errorf("no such flow: %v", err)
	}
	if _, err := startFlows(t, nil, "--server=unix:///nowhere/hubble.sock").wait(); err == nil || !strings.Contains(err.Error(), "no agent runs here") {
		t.Errorf("no socket: %v", err)
	}
	if _, err := startFlows(t, nil, "--server=127.0.0.1:1", "-f").wait(); err == nil || !strings.Contains(err.Error(), "give --tls-ca") {
		t.Errorf("no certificates: %v", err)
	}
}

// flowPKI has files of an authority, of a client, and of servers.
type flowPKI struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newFlowPKI(t *testing.T) *flowPKI {
	t.Helper()
	p := &flowPKI{t: t, dir: t.TempDir()}
	p.cert, p.key = p.issue("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	p.issue("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	p.issue("servers", &x509.Certificate{
		DNSNames: []string{"*.default.hubble-grpc.cilium.io"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return p
}

// issue writes NAME.crt and NAME.key.
func (p *flowPKI) issue(name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	template.SerialNumber, template.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	by, byKey := p.cert, p.key
	if by == nil {
		by, byKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, &key.PublicKey, byKey)
	if err != nil {
		p.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(name+".crt", "CERTIFICATE", der)
	p.write(name+".key", "PRIVATE KEY", raw)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return cert, key
}

func (p *flowPKI) write(file, kind string, der []byte) {
	p.t.Helper()
	if err := os.WriteFile(p.path(file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *flowPKI) path(file string) string { return filepath.Join(p.dir, file) }

// clientArgs are the flags of a client.
func (p *flowPKI) clientArgs() []string {
	return []string{"--tls-ca=" + p.path("ca.crt"), "--tls-cert=" + p.path("client.crt"), "--tls-key=" + p.path("client.key")}
}

func (p *flowPKI) serverOption() grpc.ServerOption {
	p.t.Helper()
	config, err := hubble.TLSFiles{Cert: p.path("servers.crt"), Key: p.path("servers.key"), ClientCA: p.path("ca.crt")}.
		Config(func(err error) { p.t.Error(err) })
	if err != nil {
		p.t.Fatal(err)
	}
	return grpc.Creds(credentials.NewTLS(config))
}

// flowTown is a cluster of agents, each on an address of loopback.
type flowTown struct {
	t      *testing.T
	pki    *flowPKI
	client *fake.Clientset
	port   uint16
	stops  map[string]func()
}

func newFlowTown(t *testing.T) *flowTown {
	t.Helper()
	return &flowTown{t: t, pki: newFlowPKI(t), client: fake.NewClientset(), stops: map[string]func(){}}
}

// agents finds those of the town.
func (c *flowTown) agents() *podAgents {
	return &podAgents{client: c.client, options: &flowAgentOptions{
		namespace: "kube-system", selector: "app.kubernetes.io/name=netverdict", port: c.port, name: "default",
	}}
}

// add starts the agent of node i, or only its pod.
func (c *flowTown) add(i int, s *hubble.Server) {
	c.t.Helper()
	name, ip := fmt.Sprintf("node-%d", i), fmt.Sprintf("127.0.0.%d", 10+i)
	if s != nil {
		l, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(int(c.port))))
		if err != nil {
			c.t.Fatal(err)
		}
		c.port = uint16(l.Addr().(*net.TCPAddr).Port)
		c.stops[name] = serveFlows(c.t, s, l, c.pki.serverOption())
	}
	_, err := c.client.CoreV1().Pods("kube-system").Create(context.Background(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "netverdict-" + name, Labels: map[string]string{"app.kubernetes.io/name": "netverdict"}},
		Spec:       corev1.PodSpec{NodeName: name},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip},
	}, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
}

// remove deletes the pod of node i and ends its agent.
func (c *flowTown) remove(i int) {
	c.t.Helper()
	name := fmt.Sprintf("node-%d", i)
	if err := c.client.CoreV1().Pods("kube-system").Delete(context.Background(), "netverdict-"+name, metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
	c.stops[name]()
}

// TestFlowsCluster asks three agents over mutual TLS: flows are merged by time,
// and an agent that cannot be asked is named.
func TestFlowsCluster(t *testing.T) {
	t.Parallel()
	c := newFlowTown(t)
	start := time.Now().Add(-time.Minute)
	for i := range 3 {
		s := newFlowServer(t, fmt.Sprintf("node-%d", i))
		for n := range 20 {
			s.Flows([]flow.Record{laneRecord(start.Add(time.Duration(3*n+i)*time.Second), uint16(3*n+i+1))})
		}
		c.add(i, s)
	}
	lines, err := startFlows(t, c.agents(), append(c.pki.clientArgs(), "--last=7")...).wait()
	if diff := cmp.Diff([]int{54, 55, 56, 57, 58, 59, 60}, ports(lines)); err != nil || diff != "" {
		t.Errorf("%v, -want +got\n%s", err, diff)
	}
	if lines[0].Node != "node-2" || lines[1].Node != "node-0" {
		t.Errorf("nodes %s, %s", lines[0].Node, lines[1].Node)
	}
	c.add(3, nil) // its agent does not answer
	r := startFlows(t, c.agents(), append(c.pki.clientArgs(), "--last=2")...)
	lines, err = r.wait()
	if len(lines) != 2 || err == nil || !strings.Contains(err.Error(), "agents that could not be asked: 1 of 4") {
		t.Errorf("%d lines, %v", len(lines), err)
	}
	if said := r.stderr.String(); !strings.Contains(said, "ask the agent at node-3: ") {
		t.Errorf("it said %q", said)
	}
	wrong := c.pki.clientArgs()
	c.pki.issue("stranger", &x509.Certificate{DNSNames: []string{"x"}})
	wrong[0] = "--tls-ca=" + c.pki.path("stranger.crt")
	r = startFlows(t, c.agents(), wrong...)
	if _, err := r.wait(); err == nil || !strings.Contains(r.stderr.String(), "with --tls-ca") {
		t.Errorf("with another authority: %v, it said %q", err, r.stderr.String())
	}
	if _, err := (&podAgents{client: fake.NewClientset(), options: c.agents().options}).List(t.Context()); err == nil || !strings.Contains(err.Error(), "no running pod in namespace kube-system") {
		t.Errorf("an empty cluster: %v", err)
	}
}

// TestFlowsClusterFollow follows agents that come, go and come back.
func TestFlowsClusterFollow(t *testing.T) {
	t.Parallel()
	c := newFlowTown(t)
	first, second, third := newFlowServer(t, "node-0"), newFlowServer(t, "node-1"), newFlowServer(t, "node-2")
	c.add(0, first)
	c.add(1, second)
	r := startFlows(t, c.agents(), append(c.pki.clientArgs(), "-f")...)
	subscribed(t, first, 1)
	subscribed(t, second, 1)
	first.Flows([]flow.Record{laneRecord(time.Now(), 1)})
	r.demandPorts(1)
	second.Flows([]flow.Record{laneRecord(time.Now(), 2)})
	r.demandPorts(1, 2)
	third.Flows([]flow.Record{laneRecord(time.Now(), 3)}) // before anybody asks
	c.add(2, third)
	r.demandPorts(1, 2, 3)
	c.remove(0)
	second.Flows([]flow.Record{laneRecord(time.Now(), 4)})
	r.demandPorts(1, 2, 3, 4)
	// The agent at node-1 is started anew; its pod stays.
	c.stops["node-1"]()
	second.Flows([]flow.Record{laneRecord(time.Now(), 5)})
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.11", strconv.Itoa(int(c.port))))
	if err != nil {
		t.Fatal(err)
	}
	serveFlows(t, second, l, c.pki.serverOption())
	r.demandPorts(1, 2, 3, 4, 5)
	r.cancel()
	if _, err := r.wait(); err != nil {
		t.Errorf("stopped: %v", err)
	}
	if said := r.stderr.String(); !strings.Contains(said, "the agent at node-0 has gone") || !strings.Contains(said, "node-1: ") {
		t.Errorf("it said %q", said)
	}
}
