package queue

import (
	"fmt"
	"time"
)

// Config describes a queue. The zero value of a field means its default.
type Config struct {
	// Num is the queue number, as in the NFQUEUE rule's --queue-num.
	Num uint16
	// MaxLen is how many packets may be in the queue, unread, being judged or on
	// hold, before the kernel drops new ones (accepts them, with FailOpen).
	// Default 8192.
	MaxLen uint32
	// CopyRange is how many bytes of each packet are copied, from the layer 3
	// header on. Default 256: room for any headers a decision needs, with a
	// generous run of IPv6 extension headers. At most 65531.
	CopyRange uint32
	// ReceiveBuffer is the socket's receive buffer in bytes (SO_RCVBUFFORCE; the
	// kernel doubles it for its own accounting and charges about 1 KiB for each
	// small packet). Default 8 MiB.
	ReceiveBuffer int
	// Batch is the largest number of packets read, and answers written, at once.
	// A packet never waits for others to fill a batch. Default 64: up to 256 no
	// difference could be measured, and the answers to 64 packets stay within
	// NLMSG_GOODSIZE, from where on the kernel allocates differently
	// (netlink_alloc_large_skb in net/netlink/af_netlink.c).
	Batch int
	// FailOpen accepts packets that nobody judged: those that do not fit in the
	// queue (NFQA_CFG_F_FAIL_OPEN), and those unanswered when Run ends.
	FailOpen bool
	// Nice is the priority of the worker thread alone, from -20 to 19, while Run
	// runs; zero leaves it as it is. Below zero needs CAP_SYS_NICE.
	Nice int
	// Tick is how often a handler that is a Ticker is called. OnTick comes no
	// earlier than Tick after the last one and, unless a batch takes longer, no
	// later than one and a half Tick. Zero means never.
	Tick time.Duration
}

const (
	defaultMaxLen        = 8192
	defaultCopyRange     = 256
	defaultReceiveBuffer = 8 << 20
	defaultBatch         = 64

	// maxCopyRange is what the kernel limits the range to: an attribute's length
	// has 16 bits (nfqnl_set_mode in net/netfilter/nfnetlink_queue.c).
	maxCopyRange = 0xffff - sizeofNlattr
	// maxBatch is UIO_MAXIOV in linux/uio.h, where recvmmsg stops.
	maxBatch = 1024
	// minTick keeps the loop from doing nothing but ticks.
	minTick = time.Millisecond
)

func (c *Config) setDefaults() {
	if c.MaxLen == 0 {
		c.MaxLen = defaultMaxLen
	}
	if c.CopyRange == 0 {
		c.CopyRange = defaultCopyRange
	}
	if c.ReceiveBuffer == 0 {
		c.ReceiveBuffer = defaultReceiveBuffer
	}
	if c.Batch == 0 {
		c.Batch = defaultBatch
	}
}

func (c *Config) validate() error {
	switch {
	case c.CopyRange > maxCopyRange:
		return fmt.Errorf("queue %d: copy range %d: want at most %d", c.Num, c.CopyRange, maxCopyRange)
	case c.ReceiveBuffer < 0:
		return fmt.Errorf("queue %d: receive buffer %d: want a positive number of bytes", c.Num, c.ReceiveBuffer)
	case c.Batch < 0 || c.Batch > maxBatch:
		return fmt.Errorf("queue %d: batch %d: want 1 to %d", c.Num, c.Batch, maxBatch)
	case c.Nice < -20 || c.Nice > 19:
		return fmt.Errorf("queue %d: nice %d: want -20 to 19", c.Num, c.Nice)
	case c.Tick != 0 && c.Tick < minTick:
		return fmt.Errorf("queue %d: tick %v: want at least %v", c.Num, c.Tick, minTick)
	}
	return nil
}
