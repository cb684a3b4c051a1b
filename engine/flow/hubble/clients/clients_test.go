package clients

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netverdict/netverdict/bench/netlab/cluster"
	"github.com/netverdict/netverdict/engine/flow/hubble"
)

// TestClients runs Hubble's programs on one cluster with real traffic.
func TestClients(t *testing.T) {
	s := newScene(t)
	for _, test := range []struct {
		name string
		run  func(*scene)
	}{
		{"status", testStatus},
		{"follow", testFollow},
		{"formats", testFormats},
		{"filters", testFilters},
		{"refused", testRefused},
		{"tls", testTLS},
		{"relay", testRelay},
		{"forwarded", testForwarded},
		{"audit", testAudit},
	} {
		t.Run(test.name, func(t *testing.T) {
			sub := &scene{T: t, c: s.c, dir: s.dir, hubble: s.hubble, relay: s.relay, servers: s.servers, client: s.client, other: s.other}
			sub.next = s.next
			test.run(sub)
			s.next = sub.next
		})
	}
}

// want checks what a program printed.
func (s *scene) want(out string, patterns ...string) {
	s.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(out) {
			s.Errorf("it does not print %q but:\n%s", p, out)
		}
	}
}

func testStatus(s *scene) {
	s.want(s.observe("node-1", "status"), `Healthcheck \(via unix://.*\): Ok`, `Current/Max Flows: \d+/4,096`, `Flows/s:`)
	s.want(s.observe("node-1", "list", "nodes"), `(?m)^NAME +STATUS +AGE +FLOWS/S +CURRENT/MAX-FLOWS`, `(?m)^node-1 +Connected`)
	s.knockAll()
	s.want(s.observe("node-1", "list", "namespaces"), `(?m)^shop`)
	out, _ := s.background(nil, s.hubble, "watch", "peers", "--server", "unix://"+s.socket("node-1"))
	s.await("three peers", func() bool { return strings.Count(out.String(), "PEER_ADDED") == 3 })
	s.want(out.String(), `172\.31\.255\.2:4244 +node-2 \(TLS.ServerName: node-2\.default\.hubble-grpc\.cilium\.io\)`)
}

func (s *scene) await(what string, cond func() bool) {
	s.Helper()
	for deadline := time.Now().Add(cluster.Patience); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("waited %v for %s", cluster.Patience, what)
		}
	}
}

// testFollow: what is denied appears, with the policy's name, and nothing else.
func testFollow(s *scene) {
	web := s.servers[0]
	out, _ := s.background(nil, s.hubble, "observe", "--follow", "--verdict", "DROPPED", "--from-pod", "shop/other",
		"-o", "json", "--server", "unix://"+s.socket("node-1"))
	// The command does not say when it has subscribed: knock until it has.
	s.await("the first flow", func() bool {
		s.knock(s.other.Host, web)
		return out.lines() != ""
	})
	s.knock(s.client.Host, web) // denied, and another pod's
	var ports []uint32
	for range 5 {
		ports = append(ports, uint32(s.knock(s.other.Host, web)))
	}
	flows := s.expectFlows("follow", out.lines, func(flows []*flowpb.Flow) bool {
		return len(flows) >= 6 && flows[len(flows)-1].GetL4().GetTCP().GetDestinationPort() == ports[4]
	})
	var got []uint32
	for _, f := range flows {
		s.wantDenied(f, "other", "web")
		got = append(got, f.GetL4().GetTCP().GetDestinationPort())
	}
	// A retried SYN may be asked about as well.
	if got = slices.Compact(got[len(got)-len(ports):]); !slices.Equal(got, ports[len(ports)-len(got):]) {
		s.Errorf("ports %v, want %v", got, ports)
	}
}

// wantDenied checks a flow from one pod to another that a policy denied.
func (s *scene) wantDenied(f *flowpb.Flow, from, to string) {
	s.Helper()
	by := f.GetIngressDeniedBy()
	if f.GetVerdict() != flowpb.Verdict_DROPPED || f.GetDropReasonDesc() != flowpb.DropReason_POLICY_DENIED ||
		f.GetTrafficDirection() != flowpb.TrafficDirection_INGRESS || f.GetIsReply().GetValue() ||
		len(by) != 1 || by[0].GetKind() != "NetworkPolicy" || by[0].GetNamespace() != "shop" || by[0].GetName() != "client-to-"+to {
		s.Errorf("not what client-to-%s denies: %v", to, f)
	}
	s.wantEnd(f.GetSource(), from)
	s.wantEnd(f.GetDestination(), to)
	if f.GetTime().AsTime().Before(time.Now().Add(-time.Hour)) || f.GetUuid() == "" || f.GetNodeName() == "" {
		s.Errorf("without time, uuid or node: %v", f)
	}
}

func (s *scene) wantEnd(e *flowpb.Endpoint, app string) {
	s.Helper()
	labels := []string{"k8s:app=" + app, "k8s:io.kubernetes.pod.namespace=shop", "k8s:pod-template-hash=5d4f8c"}
	w := e.GetWorkloads()
	if e.GetNamespace() != "shop" || !strings.HasPrefix(e.GetPodName(), app+"-5d4f8c-") || !slices.Equal(e.GetLabels(), labels) ||
		len(w) != 1 || w[0].GetKind() != "Deployment" || w[0].GetName() != app {
		s.Errorf("%v is not a pod of %s", e, app)
	}
}

// testFormats: every output format names the policy.
func testFormats(s *scene) {
	port := s.knock(s.other.Host, s.servers[0])
	for format, pattern := range map[string]string{
		"compact": `shop/other-\S+:\d+ \(unknown\) -> shop/web-\S+:%d \(unknown\) policy-verdict:none INGRESS DENIED BY client-to-web \(NetworkPolicy\) \(TCP Flags: SYN; ingress default-deny by shop/client-to-web\)`,
		"dict":    `(?s)SOURCE: shop/other-\S+\nDESTINATION: shop/web-\S+:%d\n +TYPE: policy-verdict:none INGRESS\n +VERDICT: DENIED BY client-to-web \(NetworkPolicy\)\n +SUMMARY: TCP Flags: SYN; ingress default-deny by shop/client-to-web`,
		"table":   `shop/web-\S+:%d +policy-verdict:none INGRESS +DENIED BY client-to-web`,
		"json":    `"destination_port":%d,.*"ingress_denied_by":\[\{"name":"client-to-web","namespace":"shop"`,
	} {
		out := s.observe("node-1", "observe", "--last", "1", "--verdict", "DROPPED", "--to-port", fmt.Sprint(port), "--print-policy-names", "-o", format)
		s.want(out, fmt.Sprintf(pattern, port))
	}
	// Without the flag the policy is still there.
	s.want(s.observe("node-1", "observe", "--last", "1", "--to-port", fmt.Sprint(port)), `INGRESS DENIED \(TCP Flags: SYN; ingress default-deny by shop/client-to-web\)`)
	s.want(s.observe("node-1", "observe", "--last", "1", "--type", "drop", "--to-port", fmt.Sprint(port)), `Policy denied DROPPED`)
}

// testFilters tries the filters that people use, one kind after another.
func testFilters(s *scene) {
	s.knock(s.other.Host, s.servers[0])
	s.knock(s.client.Host, s.servers[0])
	for args, want := range map[string]string{
		"--from-pod shop/other":                             "other",
		"--from-label app=client":                           "client",
		"--from-label app=client --not --to-label app=x":    "client",
		"--from-workload Deployment/other":                  "other",
		"--from-ip " + s.client.Addrs()[0].String():         "client",
		"--pod shop/client --namespace shop":                "client",
		"--namespace shop --not --from-pod shop/client":     "other",
		"--to-pod shop/web --from-label app!=other":         "client",
		"--protocol tcp --from-pod shop/client":             "client",
		"--tcp-flags SYN --from-pod shop/client":            "client",
		"--ip-version v4 --from-pod shop/client":            "client",
		"--traffic-direction ingress --from-pod shop/ot":    "other",
		"--drop-reason-desc POLICY_DENIED --workload other": "other",
		"--node-name node-1 --from-pod shop/client":         "client",
		"--since 1h --from-pod shop/client":                 "client",
	} {
		flows := s.parse(s.observe("node-1", append([]string{"observe", "--last", "50", "-o", "json"}, strings.Fields(args)...)...))
		if len(flows) == 0 {
			s.Errorf("%s: nothing", args)
		}
		for _, f := range flows {
			if got := f.GetSource().GetWorkloads()[0].GetName(); got != want {
				s.Errorf("%s: a flow of %s, want only of %s", args, got, want)
			}
		}
	}
	for _, args := range []string{"--verdict FORWARDED --to-port 10001", "--node-name node-2", "--until 1h", "--protocol udp", "--to-pod shop/db", "--ip-version v6"} {
		if flows := s.parse(s.observe("node-1", append([]string{"observe", "--last", "50", "-o", "json"}, strings.Fields(args)...)...)); len(flows) > 0 {
			s.Errorf("%s: %v", args, flows)
		}
	}
}

// testRefused: what the server cannot do is said, not silently nothing.
func testRefused(s *scene) {
	for args, want := range map[string]string{
		"--to-fqdn example.org":        `InvalidArgument.*whitelist\[0\]\.destination_fqdn: not supported`,
		"--http-method GET":            `InvalidArgument.*http_method`,
		"--type trace":                 `InvalidArgument.*event_type`,
		"--cel-expression true":        `InvalidArgument.*experimental`,
		"--service kube-system/coredn": `InvalidArgument.*_service: not supported`,
	} {
		out, err := netlabOutput(s.Context(), s.hubble, append(strings.Fields("observe --last 5 --server unix://"+s.socket("node-1")), strings.Fields(args)...)...)
		if err == nil || !regexp.MustCompile(want).MatchString(err.Error()) {
			s.Errorf("%s: %v, want %q; it prints %q", args, err, want, out)
		}
	}
	_, err := netlabOutput(s.Context(), s.hubble, "observe", "agent-events", "--last", "1", "--server", "unix://"+s.socket("node-1"))
	if err == nil || !strings.Contains(err.Error(), "Unimplemented") {
		s.Errorf("agent events: %v", err)
	}
}

// testTLS: over TCP only who has a certificate of the authority is answered.
func testTLS(s *scene) {
	node := s.c.Node("node-3").Host
	server := "--server=tls://172.31.255.1:4244"
	name := "--tls-server-name=node-1.default.hubble-grpc.cilium.io"
	ca := "--tls-ca-cert-files=" + s.file("ca.crt")
	with := func(who string) []string {
		return []string{"--tls-client-cert-file=" + s.file(who+".crt"), "--tls-client-key-file=" + s.file(who+".key")}
	}
	out, err := on(s.Context(), node, s.hubble, append([]string{"status", server, name, ca}, with("client")...)...)
	if err != nil {
		s.Errorf("with a certificate: %v\n%s", err, out)
	}
	for what, args := range map[string][]string{
		"without a certificate":     {server, name, ca},
		"with a stranger's":         append([]string{server, name, ca}, with("stranger")...),
		"without TLS":               {"--server=172.31.255.1:4244"},
		"trusting, and without any": {server, "--tls-allow-insecure"},
	} {
		for _, verb := range []string{"status", "observe"} {
			if out, err := on(s.Context(), node, s.hubble, append([]string{verb, "--timeout=10s"}, args...)...); err == nil {
				s.Errorf("hubble %s %s is answered:\n%s", verb, what, out)
			}
		}
	}
}

// testRelay merges the flows of three agents, of which it learns from one, over
// TCP, as it would from the Service hubble-peer.
func testRelay(s *scene) {
	node := s.c.Node("node-2").Host
	s.background(node, s.relay, "serve", "--peer-service=172.31.255.1:4244", "--listen-address=127.0.0.1:4245",
		"--health-listen-address=127.0.0.1:4222", "--gops=false", "--disable-server-tls", "--retry-timeout=1s",
		"--tls-hubble-client-cert-file="+s.file("client.crt"), "--tls-hubble-client-key-file="+s.file("client.key"),
		"--tls-hubble-server-ca-files="+s.file("ca.crt"))
	hubble := func(args ...string) string {
		out, err := on(s.Context(), node, s.hubble, append(args, "--server=127.0.0.1:4245")...)
		if err != nil {
			return err.Error() + out
		}
		return out
	}
	s.await("the relay to be connected with three nodes", func() bool {
		return strings.Contains(hubble("status"), "Connected Nodes: 3/3")
	})
	s.want(hubble("list", "nodes"), `(?m)^node-1 +Connected`, `(?m)^node-2 +Connected`, `(?m)^node-3 +Connected`)
	s.want(hubble("list", "nodes", "-o", "wide"), `172\.31\.255\.3:4244`)

	s.knockAll()
	flows := s.expectFlows("relay", func() string {
		return hubble("observe", "--last", "20", "--verdict", "DROPPED", "--from-pod", "shop/other", "-o", "json")
	}, fromAllNodes)
	for _, f := range flows {
		to := map[string]string{"node-1": "web", "node-2": "db", "node-3": "cache"}[f.GetNodeName()]
		s.wantDenied(f, "other", to)
	}

	out, _ := s.background(node, s.hubble, "observe", "--follow", "--verdict", "DROPPED", "-o", "json", "--server=127.0.0.1:4245")
	s.await("the relay to merge what follows", func() bool {
		s.knockAll()
		// It sorts, and lets go of what it has when for a second nothing comes.
		time.Sleep(2 * time.Second)
		return fromAllNodes(s.parse(out.lines()))
	})
}

// testForwarded: while somebody follows, every allowed connection is reported once,
// also those that the kernel lets pass by itself.
func testForwarded(s *scene) {
	web := s.servers[0]
	out, _ := s.background(nil, s.hubble, "observe", "--follow", "--verdict", "FORWARDED", "--to-pod", "shop/web", "-o", "json", "--server", "unix://"+s.socket("node-1"))
	get := func() {
		s.Helper()
		ctx, cancel := context.WithTimeout(s.Context(), cluster.Patience)
		defer cancel()
		if _, err := cluster.Reach(ctx, s.client.Host, corev1.ProtocolTCP, web.Targets(port)[0]); err != nil {
			s.Fatal(err)
		}
	}
	s.await("the first flow", func() bool {
		get()
		return out.lines() != ""
	})
	const more = 10
	for range more {
		get()
	}
	flows := s.expectFlows("allowed flows", out.lines, func(flows []*flowpb.Flow) bool { return len(flows) > more })
	ports, unasked := map[uint32]bool{}, 0
	for _, f := range flows {
		by := f.GetIngressAllowedBy()
		if rule, ok := hubble.Rule(by[0]); len(by) != 1 || by[0].GetName() != "client-to-web" || rule != 0 || !ok {
			s.Errorf("allowed by %v", by)
		}
		s.wantEnd(f.GetSource(), "client")
		s.wantEnd(f.GetDestination(), "web")
		p := f.GetL4().GetTCP().GetSourcePort()
		if ports[p] {
			s.Errorf("the connection from port %d is there twice", p)
		}
		ports[p] = true
		if f.GetL4().GetTCP().GetFlags() == nil {
			unasked++
		}
	}
	if unasked == 0 {
		s.Error("the kernel has let nothing pass by itself, so this shows little")
	}
}

// testAudit: what an audited namespace's policies would deny is told so.
func testAudit(s *scene) {
	patch := []byte(`{"metadata":{"annotations":{"netverdict.io/mode":"audit"}}}`)
	_, err := s.c.Client().CoreV1().Namespaces().Patch(s.Context(), "shop", types.MergePatchType, patch, metav1.PatchOptions{})
	s.ok(err)
	s.await("an audited flow", func() bool {
		s.knock(s.other.Host, s.servers[0]) // it passes, and nobody listens on the port
		return s.observe("node-1", "observe", "--verdict", "AUDIT", "--last", "1", "--from-pod", "shop/other", "--to-pod", "shop/web") != ""
	})
	s.want(s.observe("node-1", "observe", "--verdict", "AUDIT", "--last", "1"), `INGRESS AUDITED \(TCP Flags: SYN; ingress default-deny by shop/client-to-web, only audited\)`)
}

func fromAllNodes(flows []*flowpb.Flow) bool {
	nodes := map[string]bool{}
	for _, f := range flows {
		nodes[f.GetNodeName()] = true
	}
	return len(nodes) == 3
}
