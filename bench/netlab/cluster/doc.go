//go:build linux

// Package cluster runs a Kubernetes cluster in a box: a real etcd and
// kube-apiserver, nodes that are network namespaces with a real netverdict agent
// process each, and pods that are namespaces behind their node. It needs root,
// and touches nothing of the machine's own namespace.
//
//	            this process (the machine's own namespace)
//	┌──────────────────────────────────────────────────────────────────────┐
//	│ kubetest: etcd ◀─ kube-apiserver ◀─── Client, kubectl                │
//	│                        ▲       ▲                                     │
//	│        relays, one a node    kubelets, scheduler, namespace          │
//	│        (Cut, Mend)           controller, Service DNAT                │
//	└─────────────▲──────────────────────────┬─────────────────────────────┘
//	              │ 127.0.0.1:6443           │ makes and removes pods
//	  ┌───────────┴──────────────────────────▼───────┐  ┌────────────────┐
//	  │ node-1: 172.31.255.1, fd6e:7600::1           │  │ node-2 …       │
//	  │ netverdict agent (install.yaml's arguments   │  │                │
//	  │   and ServiceAccount), rules, sets, NFQUEUE  │  │                │
//	  └───┬───────────────────────┬──────────────────┘  └───────┬────────┘
//	  ┌───┴────────────┐   ┌──────┴─────────┐                   │
//	  │ shop/web       │   │ shop/client    │           10.244.2.0/24
//	  │ 10.244.1.1     │   │ 10.244.1.2     │           fd00:244:2::/64
//	  │ fd00:244:1::1  │   │ fd00:244:1::2  │
//	  └────────────────┘   └────────────────┘
//
// A test takes one and works with pods as it would with kubectl:
//
//	c := cluster.New(t, cluster.Options{})
//	web, err := c.CreatePod(ctx, cluster.ServerPod("shop", "web", "node-1", labels, cluster.TCP("http", 80)))
//	client, err := c.CreatePod(ctx, cluster.ServerPod("shop", "client", "node-2", nil))
//	...
//	who, err := cluster.Reach(ctx, client.Host, corev1.ProtocolTCP, web.Targets(80)[0]) // "shop/web"
//
// # What runs in a pod
//
// A container with a command runs that program of this machine in the pod's
// namespace. For every other container there is a server on each port that it
// declares: on TCP ports netlab's ServeHTTP, which tells who answered, on UDP
// ports ServeUDP. Pod.Host makes any other server or client of netlab there.
// There are no images, volumes, probes and logs. A pod is Ready as soon as its
// servers listen, and ends without delay when it is deleted. Its node then gives
// its addresses, the lowest free ones first, to the next pod: reuse is at once.
//
// # What stands in for controllers
//
// Pods without a node are bound to the one with the fewest pods. Namespaces that
// are deleted are emptied and finalized. With Options.Services each ClusterIP is
// translated on every node to the Ready pods that its selector matches, named
// target ports included. Nothing else is done: no Deployments, no EndpointSlices,
// no node ports.
//
// # What is left behind, and when
//
// Nothing, after Close: New arranges that for the end of the test, panics
// included, and for SIGINT, SIGTERM and SIGHUP. After kill -9 the namespaces and
// all processes are gone too; the directory in os.TempDir with logs and keys stays.
package cluster
