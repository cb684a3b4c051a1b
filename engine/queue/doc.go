// Package queue takes packets from a netfilter queue (NFQUEUE) and writes the
// verdicts back.
//
//	           kernel                          one locked OS thread                the owner
//	                              ┌───────────────────────────────────────┐
//	NFQUEUE ─▶ socket buffer ─▶ recvmmsg ─▶ parse ─▶ Handler.Handle ──────┼──▶ decode, decide
//	   ▲                          │                       │ Answer         │
//	   │                          │                       ▼                │
//	   └──── reinjected ◀──── one write ◀──────── verdict messages ◀───────┼─── Release(id, Answer)
//	                              │                       then BatchEnd    │     of a packet on hold
//	                              └──────────▲────────────────────────────┘
//	                                         └── Wake, from any goroutine; OnWake and OnTick on this thread
//
// go-nfqueue opens and configures the socket; its own reader is never
// started. The loop here reads many messages with one system call into buffers
// made once, parses them where they lie and answers them with one write, so a
// packet costs no allocation and, under load, a fraction of a system call.
//
// A packet is answered exactly once: at once, later when its owner asked to
// hold it, or, when the loop ends, with the verdict for packets nobody judged
// (drop, or accept if the queue fails open). A message that cannot be parsed is
// dropped, not skipped: the kernel would keep its packet, and the slot it
// occupies, for as long as the socket lives.
package queue
