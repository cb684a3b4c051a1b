// Package clients builds Hubble's own clients, the hubble command and hubble-relay,
// unmodified from their Go module, and its tests use them on the agents of a
// cluster in a box (bench/netlab/cluster).
//
//	programs.mod ─▶ go build, once per version ─▶ user cache directory
//	                                                    │
//	agents of three nodes ◀─ hubble (socket, TCP) ◀─────┤
//	          └──────────── hubble-relay ◀─ hubble ◀────┘
//
// It is a module of its own: the programs depend on most of what Cilium does.
package clients
