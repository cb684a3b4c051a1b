// Package policy decides connections by Kubernetes NetworkPolicy. It is a pure
// library: API objects in, decisions out; no I/O, no goroutine, no client.
//
//	Snapshot ──Compile──▶ Tree ──Decide──▶ Decision
//	                        ├──Explain──▶ the same walk, with its steps
//	                        └──Compare──▶ what another tree revokes or adds
//
// Compile draws the stages of a compilation, Tree how a decision is looked up;
// README.md says why, and teaches precedence by example.
package policy
