//go:build linux

// Package rig runs a whole Kubernetes cluster for conformance tests, without
// containers.
//
//	this process, in a network, mount and PID namespace of its own
//	┌───────────────────────────────────────────────────────────────────────────┐
//	│  etcd ◀─ kube-apiserver ◀─ kube-controller-manager, kube-scheduler, tests  │
//	│              │     ▲                                                      │
//	│  exec, logs  ▼     │ relay, one a node                                    │
//	│  kubelets (package kubelet)                                               │
//	└──────┬─────────────▲──────────────────────────────────────────────────────┘
//	       │ pods        │ 127.0.0.1:6443
//	  ┌────▼─────────────┴───────────────────┐   ┌──────────┐
//	  │ node-1                               │   │ node-2 … │
//	  │   kube-proxy (iptables mode)         ├───┤          │
//	  │   netverdict agent (install.yaml)    │   │          │
//	  └───┬──────────────────┬───────────────┘   └──────────┘
//	  ┌───┴──────┐     ┌─────┴────┐
//	  │ pod      │     │ pod      │   agnhost
//	  └──────────┘     └──────────┘
//
// Control plane, nodes, relays and agents are those of bench/netlab/cluster. Where
// that has stand-ins, this has upstream's own programs; only the kubelet is ours.
package rig
