// Package engine is the packet path: it wires the kernel hook, the queue, the
// decoder, the flow cache, the decision tree and the flow records together.
//
//	          ┌──────────────────────────── one worker per queue ────────────────────────────┐
//	queue ─▶ packet.Decode ─▶ cache (LRU, stamped with the tree) ─▶ Tree.Decide ─▶ verdict mark ─▶ queue
//	          └────────────────────────────────────┬──────────────────────────────────────────┘
//	                                               ▼
//	                                flow.Ring ─▶ flow.Collector ─▶ sinks
//
//	Apply(tree) ─▶ hook: Prepare ─▶ Switch ─▶ swap the tree (one atomic store) ─▶ hook: Finish
//
// The order in Apply is what makes a change exact; see README.md.
package engine
