//go:build linux

// Package kubelet is a node whose pods are network namespaces of bench/netlab, and
// whose containers are processes in them: Virtual Kubelet's controllers with a
// provider, and a kubelet's own streaming server for exec.
//
//	kube-apiserver ──watch──▶ PodController ──▶ provider ──▶ sandbox: namespace, addresses
//	      │                   NodeController        │            └─▶ containers: processes in a
//	      │                                         │                directory of their own
//	      └── /exec, /containerLogs ──▶ server ─────┘
//
// What a pod gets: addresses of both families, /etc/hosts and /etc/resolv.conf,
// its containers' command, arguments and environment, probes (exec, HTTP, TCP;
// sent from the node, as a kubelet does), restarts, logs, exec, a grace period.
// Host-network pods run in the node's namespace.
//
// There is no registry. Images gives the file tree of the images that a node has;
// a container of any other image waits with ErrImagePull, as on a node that cannot
// reach its registry. Volumes, init containers, security contexts and resources are
// beyond this node: pods that mount volumes or have init containers are refused
// with an event, security contexts and resources are ignored.
package kubelet
