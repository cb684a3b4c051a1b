//go:build linux

// Package seccomp confines an agent, and the commands that it runs, to the system
// calls that they need (seccomp(2)).
//
//	calls.go: Agent, the list ─┬─▶ Program ─▶ Install: the agent, upon itself, at its start
//	                           └─▶ OCI ─▶ deploy/seccomp/netverdict.json: a container runtime
//
// README.md says how the list was found and how to renew it.
package seccomp
