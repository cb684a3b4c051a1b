package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Queue is the kernel's queue as a Source.
type Queue struct {
	cfg     Config
	file    *os.File        // the socket
	raw     syscall.RawConn // of file
	table   *procTable
	copySeq uint32 // nlmsg_seq of the request that set the copy mode
	// opened is where the loop's clock starts: time.Since reads the monotonic clock
	// alone, at half the price of time.Now.
	opened time.Time

	// Owned by the loop's thread.
	fd       int
	in       *receiver
	out      answers
	pkt      Packet
	lastID   uint32        // of the packet read last
	judged   uint64        // packets of this batch that Handle was called for
	timed    bool          // this batch
	began    time.Duration // since opened, if timed
	nextTick time.Time
	failed   error // of a send during Release, returned by the loop's next one

	counters counters

	woken    atomic.Bool
	stopping atomic.Bool
	started  atomic.Bool
	kicks    sync.RWMutex  // held for writing when the socket is closed
	done     chan struct{} // closed when everything is freed
	free     sync.Once
	freeErr  error
	last     atomic.Pointer[KernelStats] // set when closed
}

// Run implements Source.
func (q *Queue) Run(ctx context.Context, h Handler) (err error) {
	if q.started.Swap(true) {
		return fmt.Errorf("run queue %d: %w", q.cfg.Num, ErrClosed)
	}
	defer func() { err = errors.Join(err, q.release()) }()
	defer context.AfterFunc(ctx, q.stop)()

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	restore, err := setNice(q.cfg.Nice)
	if err != nil {
		return fmt.Errorf("queue %d: %w", q.cfg.Num, err)
	}
	defer restore()

	// Inside control the descriptor cannot be closed, and so not reused, under us.
	err = control(q.file, func(fd int) error {
		q.fd = fd
		defer q.answerRest()
		return q.loop(h)
	})
	if err != nil {
		return fmt.Errorf("run queue %d: %w", q.cfg.Num, err)
	}
	return nil
}

// Wake implements Source. It sends a message that asks for nothing but an
// acknowledgement, which ends the loop's wait for a message. When the receive
// buffer has no room for it there are packets in it, and no wait.
func (q *Queue) Wake() {
	if !q.woken.Swap(true) {
		q.kick()
	}
}

// stop makes the loop end.
func (q *Queue) stop() {
	q.stopping.Store(true)
	q.kick()
}

// noop is a NLMSG_NOOP that wants an acknowledgement (netlink_rcv_skb in
// net/netlink/af_netlink.c).
var noop = func() []byte {
	b := make([]byte, sizeofNlmsghdr)
	binary.NativeEndian.PutUint32(b[0:], sizeofNlmsghdr)
	binary.NativeEndian.PutUint16(b[4:], unix.NLMSG_NOOP)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	return b
}()

// kick interrupts the loop's wait. An error means that the socket is closed, or
// that the kernel is out of memory and the loop will look after idleWait.
func (q *Queue) kick() {
	q.kicks.RLock()
	defer q.kicks.RUnlock()
	_ = q.raw.Control(func(fd uintptr) {
		for {
			if _, err := unix.Write(int(fd), noop); err != unix.EINTR {
				return
			}
		}
	})
}

// Stats implements Source.
func (q *Queue) Stats() Stats {
	s := q.counters.stats()
	if last := q.last.Load(); last != nil {
		s.Kernel = *last
		return s
	}
	if line, ok, err := q.table.read(q.cfg.Num); ok && err == nil {
		s.Kernel = line.KernelStats
	}
	return s
}

// Close implements Source.
func (q *Queue) Close() error {
	q.stop()
	if !q.started.Swap(true) {
		return q.release()
	}
	<-q.done
	return q.freeErr
}

// release closes the socket, which unbinds the queue: the kernel drops what is
// still in it. When it returns the queue number is free: os.File would put the
// close off to the end of a kick, and return before.
func (q *Queue) release() error {
	q.free.Do(func() {
		last := q.Stats().Kernel
		q.last.Store(&last)
		q.kicks.Lock()
		defer q.kicks.Unlock()
		if err := errors.Join(q.file.Close(), q.table.close()); err != nil {
			q.freeErr = fmt.Errorf("close queue %d: %w", q.cfg.Num, err)
		}
		close(q.done)
	})
	return q.freeErr
}
