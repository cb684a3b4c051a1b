package queue

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Stats counts since the source was opened.
type Stats struct {
	// Packets is the number of packets read, the malformed included.
	Packets uint64
	// Batches is the number of receive calls that brought at least one message;
	// Packets divided by it is the mean batch.
	Batches uint64
	// Accepted, Dropped and Repeated count answers written, releases included.
	Accepted, Dropped, Repeated uint64
	// Held counts packets put on hold, Released those of them answered since.
	Held, Released uint64
	// Malformed counts packets dropped because their message could not be
	// parsed; Unidentified counts messages in which not even a packet id was
	// found, so that nothing could be answered.
	Malformed, Unidentified uint64
	// Overruns counts ENOBUFS on receive: the kernel had no room in the socket
	// buffer and told us so.
	Overruns uint64
	// SendRetries counts writes that had to be repeated.
	SendRetries uint64
	// Errors counts, by errno, the errors that the kernel sent about verdicts.
	// ENOENT is a packet that was gone when its answer came, for instance
	// because its interface went down. nil when there were none.
	Errors map[unix.Errno]uint64

	Latency Latency
	Kernel  KernelStats
}

// KernelStats is the queue's line in /proc/net/netfilter/nfnetlink_queue
// (seq_show in net/netfilter/nfnetlink_queue.c) when Stats was called, or the
// last one read before the queue was closed.
type KernelStats struct {
	// Waiting is the number of packets in the queue: unread, being judged, or on hold.
	Waiting uint32
	// QueueDropped counts packets dropped because the queue was full (Config.MaxLen).
	QueueDropped uint32
	// UserDropped counts packets dropped because the socket's receive buffer was
	// full (Config.ReceiveBuffer).
	UserDropped uint32
}

// errnoSlots covers the errnos that have names: the last is EHWPOISON, 133
// (asm-generic/errno.h).
const errnoSlots = 134

// counters is written by the loop's thread and read by anyone.
type counters struct {
	packets, batches                  atomic.Uint64
	answered                          [actions]atomic.Uint64
	released, malformed, unidentified atomic.Uint64
	overruns, sendRetries             atomic.Uint64
	errors                            [errnoSlots]atomic.Uint64
	latencies                         latencies
}

// countError counts an errno the kernel sent; those without a name share slot 0.
func (c *counters) countError(e unix.Errno) {
	if e >= errnoSlots {
		e = 0
	}
	c.errors[e].Add(1)
}

func (c *counters) stats() Stats {
	s := Stats{
		Packets:      c.packets.Load(),
		Batches:      c.batches.Load(),
		Accepted:     c.answered[Accept].Load(),
		Dropped:      c.answered[Drop].Load(),
		Repeated:     c.answered[Repeat].Load(),
		Held:         c.answered[Hold].Load(),
		Released:     c.released.Load(),
		Malformed:    c.malformed.Load(),
		Unidentified: c.unidentified.Load(),
		Overruns:     c.overruns.Load(),
		SendRetries:  c.sendRetries.Load(),
		Latency:      c.latencies.stats(),
	}
	for e := range c.errors {
		if n := c.errors[e].Load(); n > 0 {
			if s.Errors == nil {
				s.Errors = make(map[unix.Errno]uint64)
			}
			s.Errors[unix.Errno(e)] = n
		}
	}
	return s
}
