//go:build linux

package cluster_test

import (
	"fmt"
	"maps"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/bench/netlab/cluster"
)

var allowed, denied = cluster.Allowed, cluster.Denied

// testProtocols: ingress is enforced at the destination's node and egress at the
// source's, for TCP and UDP over IPv4 and IPv6, from the same node and from others.
func testProtocols(s *scene) {
	server := s.pod("server", "node-2", cluster.TCP("", 80), cluster.TCP("", 81), cluster.UDP("", 53), cluster.UDP("", 54))
	near, client, other := s.pod("near", "node-2"), s.pod("client", "node-1"), s.pod("other", "node-3")
	everybody := func(check func(from *netlab.Host, to *cluster.Pod, p corev1.Protocol, port uint16) []cluster.Check) (all []cluster.Check) {
		for _, from := range []*cluster.Pod{near, client, other} {
			all = append(all, check(from.Host, server, tcp, 80)...)
			all = append(all, check(from.Host, server, udp, 53)...)
		}
		return all
	}
	s.demand("without a policy", everybody(allowed))
	s.apply("server", `
podSelector: {matchLabels: {app: server}}
ingress:
- from: [{podSelector: {matchLabels: {app: client}}}]
  ports: [{protocol: TCP, port: 80}, {protocol: UDP, port: 53}]
`)
	s.demand("with an ingress policy",
		allowed(client.Host, server, tcp, 80), allowed(client.Host, server, udp, 53),
		denied(client.Host, server, tcp, 81), denied(client.Host, server, udp, 54),
		denied(other.Host, server, tcp, 80), denied(other.Host, server, udp, 53),
		denied(near.Host, server, tcp, 80), denied(near.Host, server, udp, 53))
	s.apply("client", `
podSelector: {matchLabels: {app: client}}
policyTypes: [Egress]
egress: [{ports: [{protocol: UDP}]}]
`)
	s.demand("with an egress policy", denied(client.Host, server, tcp, 80), allowed(client.Host, server, udp, 53))
	s.drop("client")
	s.drop("server")
	s.demand("after the policies", everybody(allowed))
}

// testServices: decisions are about the pods behind a ClusterIP, at both ends.
func testServices(s *scene) {
	client, other := s.pod("client", "node-1"), s.pod("other", "node-3")
	var backends []*cluster.Pod
	for i, node := range []string{"node-2", "node-3"} {
		object := cluster.ServerPod(s.namespace, fmt.Sprintf("web-%d", i), node, map[string]string{"app": "web"},
			cluster.TCP("http", 8080), cluster.UDP("dns", 5353))
		backends = append(backends, s.create(object))
	}
	service := s.service("web", "web", corev1.ServicePort{Name: "http", Port: 80, TargetPort: intstr.FromString("http")},
		corev1.ServicePort{Name: "dns", Port: 53, Protocol: udp, TargetPort: intstr.FromInt32(5353)})
	s.demand("without a policy", s.through(client.Host, service, true), s.through(other.Host, service, true))
	s.apply("web", `
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{podSelector: {matchLabels: {app: client}}}]
  ports: [{port: http}, {protocol: UDP, port: 5353}]
`)
	s.demand("with an ingress policy", s.through(client.Host, service, true), s.through(other.Host, service, false))
	s.apply("client", `
podSelector: {matchLabels: {app: client}}
policyTypes: [Egress]
egress: [{to: [{podSelector: {matchLabels: {app: nobody}}}]}]
`)
	s.demand("with an egress policy", s.through(client.Host, service, false))
	s.apply("client", `
podSelector: {matchLabels: {app: client}}
policyTypes: [Egress]
egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]
`)
	s.demand("with another egress policy", s.through(client.Host, service, true))
	s.delete(backends[0])
	s.demand("with one backend", s.through(client.Host, service, true), s.through(other.Host, service, false))
}

func (s *scene) service(name, app string, ports ...corev1.ServicePort) *corev1.Service {
	s.Helper()
	service, err := s.c.Client().CoreV1().Services(s.namespace).Create(s.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": app}, Ports: ports,
			IPFamilyPolicy: new(corev1.IPFamilyPolicyRequireDualStack),
		},
	}, metav1.CreateOptions{})
	s.ok(err)
	return service
}

// through checks every port of a Service at each of its ClusterIPs.
func (s *scene) through(from *netlab.Host, service *corev1.Service, pass bool) (out []cluster.Check) {
	for _, ip := range service.Spec.ClusterIPs {
		for _, port := range service.Spec.Ports {
			check := cluster.Check{From: from, Protocol: port.Protocol, To: netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(port.Port))}
			if pass {
				check.Want = cluster.Anybody
			}
			out = append(out, check)
		}
	}
	return out
}

// testNamedPorts: a name is another number on each pod, and a protocol is part of it.
func testNamedPorts(s *scene) {
	client := s.pod("client", "node-1")
	labels := map[string]string{"app": "web"}
	a := s.create(cluster.ServerPod(s.namespace, "a", "node-2", labels, cluster.TCP("web", 8080), cluster.TCP("admin", 9090), cluster.UDP("", 8080)))
	b := s.create(cluster.ServerPod(s.namespace, "b", "node-3", labels, cluster.TCP("web", 9090), cluster.TCP("admin", 8080), cluster.UDP("web-udp", 9090)))
	s.apply("web", "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: web}, {protocol: UDP, port: web-udp}]}]}")
	s.demand("by name",
		allowed(client.Host, a, tcp, 8080), denied(client.Host, a, tcp, 9090), denied(client.Host, a, udp, 8080),
		allowed(client.Host, b, tcp, 9090), denied(client.Host, b, tcp, 8080), allowed(client.Host, b, udp, 9090))
	s.apply("client", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{ports: [{port: admin}]}]}")
	s.apply("web", "{podSelector: {matchLabels: {app: web}}, ingress: [{}]}")
	s.demand("by name at the source",
		denied(client.Host, a, tcp, 8080), allowed(client.Host, a, tcp, 9090),
		denied(client.Host, b, tcp, 9090), allowed(client.Host, b, tcp, 8080), denied(client.Host, b, udp, 9090))
}

// testPodLabels: a pod that changes its labels changes what it may do, as a peer
// and as a subject.
func testPodLabels(s *scene) {
	server, client := s.pod("server", "node-1", cluster.TCP("", 80), cluster.UDP("", 53)), s.pod("client", "node-2")
	s.apply("server", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]}")
	both := func(check func(*netlab.Host, *cluster.Pod, corev1.Protocol, uint16) []cluster.Check) []cluster.Check {
		return append(check(client.Host, server, tcp, 80), check(client.Host, server, udp, 53)...)
	}
	s.demand("before", both(denied))
	s.label(client, `{"role": "friend"}`)
	s.demand("as a friend", both(allowed))
	s.label(client, `{"role": null}`)
	s.demand("no friend any more", both(denied))
	s.label(server, `{"app": "other"}`)
	s.demand("when nothing selects the server", both(allowed))
	s.label(server, `{"app": "server"}`)
	s.demand("when something does again", both(denied))
}

func (s *scene) label(p *cluster.Pod, labels string) {
	s.Helper()
	_, err := s.c.Client().CoreV1().Pods(p.Namespace).Patch(s.Context(), p.Name, types.MergePatchType,
		[]byte(`{"metadata": {"labels": `+labels+`}}`), metav1.PatchOptions{})
	s.ok(err)
}

// testNamespaceLabels: so does a namespace.
func testNamespaceLabels(s *scene) {
	visitors := s.namespace + "-visitors"
	s.newNamespace(visitors, nil)
	server := s.pod("server", "node-3", cluster.TCP("", 80))
	client := s.create(cluster.ServerPod(visitors, "client", "node-1", nil))
	s.apply("server", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]}")
	relabel := func(team string) {
		_, err := s.c.Client().CoreV1().Namespaces().Patch(s.Context(), visitors, types.MergePatchType,
			[]byte(`{"metadata": {"labels": {"team": `+team+`}}}`), metav1.PatchOptions{})
		s.ok(err)
	}
	s.demand("without the label", denied(client.Host, server, tcp, 80))
	relabel(`"a"`)
	s.demand("with the label", allowed(client.Host, server, tcp, 80))
	relabel(`"b"`)
	s.demand("with another label", denied(client.Host, server, tcp, 80))
	relabel(`null`)
	s.demand("without it again", denied(client.Host, server, tcp, 80))
}

// testAddressReuse: an address is judged by who holds it now.
func testAddressReuse(s *scene) {
	server := s.pod("server", "node-2", cluster.TCP("", 80), cluster.UDP("", 53))
	s.apply("server", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}")
	first := s.pod("client", "node-1")
	s.demand("the first holder", allowed(first.Host, server, tcp, 80), allowed(first.Host, server, udp, 53))
	second := s.inherit(first, cluster.ServerPod(s.namespace, "stranger", "node-1", map[string]string{"app": "stranger"}, cluster.TCP("", 80)))
	s.demand("the second holder", denied(second.Host, server, tcp, 80), denied(second.Host, server, udp, 53))
	third := s.inherit(second, cluster.ServerPod(s.namespace, "client", "node-1", map[string]string{"app": "client"}))
	s.demand("the third holder", allowed(third.Host, server, tcp, 80), allowed(third.Host, server, udp, 53))
	// The same for the address of a server.
	other := s.pod("other", "node-3")
	s.demand("a policed server", denied(other.Host, server, tcp, 80))
	open := s.inherit(server, cluster.ServerPod(s.namespace, "open", "node-2", nil, cluster.TCP("", 80)))
	s.demand("a server that nothing selects", allowed(other.Host, open, tcp, 80))
	again := s.inherit(open, cluster.ServerPod(s.namespace, "server", "node-2", map[string]string{"app": "server"}, cluster.TCP("", 80)))
	s.demand("a policed server again", denied(other.Host, again, tcp, 80), allowed(third.Host, again, tcp, 80))
}

// inherit deletes a pod and creates another on its node, until that has the same
// addresses: other tests take addresses meanwhile.
func (s *scene) inherit(from *cluster.Pod, object *corev1.Pod) *cluster.Pod {
	s.Helper()
	want := from.Addrs()
	s.delete(from)
	for i := 0; ; i++ {
		heir := s.create(object)
		if heir.Addrs()[0] == want[0] && heir.Addrs()[1] == want[1] {
			return heir
		}
		if i == 100 {
			s.Fatalf("after %d pods none has the addresses %v", i, want)
		}
		// It keeps what it has, under another name.
		object = object.DeepCopy()
		object.Name = fmt.Sprintf("%s-%d", object.Name, i)
	}
}

// testHostNetwork: pods in the host's network are nodes to policies: no selector
// picks them, neither as subject nor as peer.
func testHostNetwork(s *scene) {
	server, client := s.pod("server", "node-2", cluster.TCP("", 80), cluster.UDP("", 53)), s.pod("client", "node-3")
	daemon := func(node string, port int32) *cluster.Pod {
		object := cluster.ServerPod(s.namespace, "daemon-"+node, node, map[string]string{"app": "daemon"}, cluster.TCP("", port))
		object.Spec.HostNetwork = true
		object.Spec.Containers[0].Ports[0].HostPort = port
		return s.create(object)
	}
	far, own := daemon("node-1", 18080), daemon("node-2", 18080)
	s.apply("server", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {}}]}]}")
	s.apply("daemon", "{podSelector: {matchLabels: {app: daemon}}, policyTypes: [Ingress, Egress]}")
	s.demand("host network",
		allowed(client.Host, server, tcp, 80),
		denied(far.Host, server, tcp, 80), denied(far.Host, server, udp, 53),
		allowed(own.Host, server, tcp, 80), allowed(own.Host, server, udp, 53),
		allowed(client.Host, far, tcp, 18080), allowed(server.Host, own, tcp, 18080))
	var blocks string
	for _, a := range far.Addrs() {
		blocks += fmt.Sprintf("{ipBlock: {cidr: %s/%d}}, ", a, a.BitLen())
	}
	s.apply("server", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: ["+blocks+"]}]}")
	s.demand("host network by address",
		denied(client.Host, server, tcp, 80),
		allowed(far.Host, server, tcp, 80), allowed(far.Host, server, udp, 53), allowed(own.Host, server, tcp, 80))
}

// testNodeTraffic: a node always reaches its own pods (kubelet's probes), and is
// reached by them; other nodes are peers like any other.
func testNodeTraffic(s *scene) {
	pod := s.pod("pod", "node-1", cluster.TCP("", 80), cluster.UDP("", 53))
	object := cluster.ServerPod(s.namespace, "server", "node-1", nil, cluster.TCP("", 18081), cluster.UDP("", 18081))
	object.Spec.HostNetwork = true
	home := s.create(object)
	object = cluster.ServerPod(s.namespace, "server-2", "node-2", nil, cluster.TCP("", 18081))
	object.Spec.HostNetwork = true
	away := s.create(object)
	s.apply("nothing", "{podSelector: {matchLabels: {app: pod}}, policyTypes: [Ingress, Egress]}")
	s.demand("isolated in both directions",
		allowed(s.c.Node("node-1").Host, pod, tcp, 80), allowed(s.c.Node("node-1").Host, pod, udp, 53),
		denied(s.c.Node("node-2").Host, pod, tcp, 80), denied(s.c.Node("node-2").Host, pod, udp, 53),
		allowed(pod.Host, home, tcp, 18081), allowed(pod.Host, home, udp, 18081), denied(pod.Host, away, tcp, 18081),
		allowed(pod.Host, pod, tcp, 80))
}

// testQueue: where no policy selects a pod of a node, the kernel asks nobody.
func testQueue(s *scene) {
	server, client := s.pod("server", "node-1", cluster.TCP("", 80), cluster.UDP("", 53)), s.pod("client", "node-2")
	third := s.pod("third", "node-3", cluster.TCP("", 80))
	talk := func() {
		s.demand("traffic", allowed(client.Host, server, tcp, 80), allowed(client.Host, server, udp, 53),
			allowed(third.Host, server, tcp, 80), allowed(client.Host, third, tcp, 80))
	}
	s.settle(talk) // packets of pods that an agent has not heard of wait in the queue
	s.idle(map[string]bool{"node-1": true, "node-2": true, "node-3": true}, talk)
	// It revokes something: the kernel may remember what passed before it.
	s.apply("server", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}")
	s.await("node-1 has a policy", func() bool { return s.status("node-1").Policed > 0 })
	s.idle(map[string]bool{"node-1": false, "node-2": true, "node-3": true}, func() {
		s.demand("traffic", allowed(client.Host, server, tcp, 80), denied(third.Host, server, tcp, 80), allowed(client.Host, third, tcp, 80))
	})
	s.drop("server")
	s.await("node-1 has none", func() bool { return s.status("node-1").Policed == 0 })
	s.settle(talk)
	s.idle(map[string]bool{"node-1": true, "node-2": true, "node-3": true}, talk)
}

// settle talks until no packet of it was queued: until each node's kernel has been told
// of its pods, which may be a moment after their packets were let through.
func (s *scene) settle(talk func()) {
	s.Helper()
	s.await("traffic that nobody is asked about", func() bool {
		before := s.allQueued()
		talk()
		return maps.Equal(before, s.allQueued())
	})
}

func (s *scene) allQueued() map[string][2]uint64 {
	s.Helper()
	all := map[string][2]uint64{}
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		all[node] = s.queued(node)
	}
	return all
}

// idle runs fn and checks on which nodes no packet was queued, by the kernel's
// count and by the agent's.
func (s *scene) idle(want map[string]bool, fn func()) {
	s.Helper()
	before := map[string][2]uint64{}
	for name := range want {
		before[name] = s.queued(name)
	}
	fn()
	for name, idle := range want {
		now := s.queued(name)
		if (now == before[name]) != idle {
			s.Errorf("%s: queued packets by the kernel's and the agent's count went from %v to %v, want that unchanged: %v", name, before[name], now, idle)
		}
	}
}

func (s *scene) queued(node string) [2]uint64 {
	s.Helper()
	kernel, err := s.c.Node(node).QueuedPackets()
	s.ok(err)
	var agent uint64
	for _, q := range s.status(node).Queues {
		agent += q.Packets
	}
	return [2]uint64{kernel, agent}
}

func (s *scene) status(node string) *cluster.Status {
	s.Helper()
	status, err := s.c.Node(node).Agent().Status(s.within())
	s.ok(err)
	return status
}

func (s *scene) await(what string, cond func() bool) {
	s.Helper()
	ctx := s.within()
	for !cond() {
		if ctx.Err() != nil {
			s.Fatalf("waited %v for: %s", cluster.Patience, what)
		}
	}
}
