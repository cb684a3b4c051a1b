// Package kubetest runs a real Kubernetes control plane for tests: etcd and
// kube-apiserver, built from their Go modules, on a loopback address with TLS and
// RBAC. There are no controllers, no scheduler and no kubelet: objects stay as
// they are written, until a test writes them again.
//
//	servers.mod ─▶ go build, once per version ─▶ user cache directory
//	                                                   │
//	Options ─▶ ports, certificates, keys ─▶ etcd ◀── kube-apiserver ◀── RESTConfig, Kubeconfig
//	                    (a directory of its own)
//
// A test takes one and forgets about it:
//
//	cp := kubetest.New(t, kubetest.Options{})
//	client, err := kubernetes.NewForConfig(cp.Admin())
//
// Any number of control planes may run at once, in one process or in several.
// Data outlives Kill, Shutdown and Restart, and goes with Stop. Should the test
// itself be killed, the kernel kills the servers with it, on Linux, which is also
// the only system this runs on.
//
// What follows from the missing controllers: a deleted namespace stays Terminating
// until a test finalizes it, ServiceAccounts must be created by hand (so the
// admission plugin that demands one of every pod is off), and pods get neither node
// nor address unless a test binds them and writes their status.
//
// The package is a module of its own, so that users of netverdict never download
// the Kubernetes server. servers.mod is a third one, embedded here and never a
// dependency of anything: k8s.io/kubernetes needs replacements, which only a main
// module can make. To change versions, copy servers.mod and servers.sum to go.mod
// and go.sum in an empty directory, edit the versions there (k8s.io/kubernetes
// v1.X.Y goes with v0.X.Y of each replaced module), run go mod tidy, copy them back.
package kubetest
