package queue

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// loop receives, asks the handler and answers until it is told to stop.
func (q *Queue) loop(h Handler) error {
	waker, _ := h.(Waker)
	ticker, _ := h.(Ticker)
	if ticker != nil && q.cfg.Tick != 0 {
		q.nextTick = time.Now().Add(q.cfg.Tick)
	}
	for {
		if err := q.callOwner(waker, ticker); err != nil {
			return err
		}
		if q.stopping.Load() {
			return nil
		}
		n, err := q.receive()
		if err != nil {
			return err
		}
		if err := q.answerBatch(n, h); err != nil {
			return err
		}
	}
}

// callOwner makes the calls that are due besides packets, and sends the answers
// that came of them.
func (q *Queue) callOwner(waker Waker, ticker Ticker) error {
	if q.woken.Load() && q.woken.Swap(false) && waker != nil {
		waker.OnWake()
	}
	if !q.nextTick.IsZero() {
		if now := time.Now(); !now.Before(q.nextTick) {
			q.nextTick = now.Add(q.cfg.Tick)
			ticker.OnTick(now)
		}
	}
	return q.send()
}

// receive reads a batch of datagrams; none after a time without any, or when
// the call was interrupted. What it returns as an error is a dead socket.
func (q *Queue) receive() (int, error) {
	n, err := q.in.receive(q.fd)
	switch err {
	case nil:
		q.counters.batches.Add(1)
		return n, nil
	case unix.EAGAIN, unix.EINTR:
		return 0, nil
	case unix.ENOBUFS, unix.ENOMEM:
		q.counters.overruns.Add(1)
		return 0, nil
	}
	return 0, fmt.Errorf("receive packets: %w", err)
}

// answerBatch judges the datagrams just received and sends the answers.
func (q *Queue) answerBatch(n int, h Handler) error {
	q.startClock()
	q.judged = 0
	for i := range n {
		for b := q.in.datagram(i); len(b) > 0; {
			var m message
			m, b = parse(b, &q.pkt)
			if err := q.take(m, h); err != nil {
				return err
			}
		}
	}
	if q.judged == 0 {
		return q.send()
	}
	q.counters.packets.Add(q.judged)
	if err := q.send(); err != nil {
		return err
	}
	q.stopClock()
	h.BatchEnd()
	return q.send()
}

// startClock times the batch at hand, if it is one that is timed: the first is.
func (q *Queue) startClock() {
	q.timed = q.counters.batches.Load()%timedBatches == 1
	if q.timed {
		q.began = time.Since(q.opened)
	}
}

func (q *Queue) stopClock() {
	if q.timed {
		q.counters.latencies.observe(time.Since(q.opened)-q.began, q.judged)
	}
}

// take deals with one message; q.pkt is the packet in it, if it is one.
func (q *Queue) take(m message, h Handler) error {
	switch m.kind {
	case packetMessage:
		q.lastID = q.pkt.ID
		q.judged++
		return q.answer(q.pkt.ID, h.Handle(&q.pkt))
	case malformedPacket:
		q.lastID = q.pkt.ID
		q.counters.packets.Add(1)
		q.counters.malformed.Add(1)
		return q.answer(q.pkt.ID, Answer{})
	case unidentified:
		q.counters.unidentified.Add(1)
	case errorMessage:
		return q.takeError(m)
	}
	return nil
}

// takeError counts what the kernel says about a verdict. Only the request that
// set the copy mode must not fail: without it the queue stays silent.
func (q *Queue) takeError(m message) error {
	if m.errno == 0 {
		return nil // Wake's acknowledgement
	}
	q.counters.countError(m.errno)
	if m.seq == q.copySeq {
		return fmt.Errorf("set copy range %d: %w", q.cfg.CopyRange, m.errno)
	}
	return nil
}

// answer adds an answer to those to be sent, sending them first when there is
// no room.
func (q *Queue) answer(id uint32, a Answer) error {
	if a.Action == Hold {
		q.counters.answered[Hold].Add(1)
		return nil
	}
	if q.out.full() {
		if err := q.send(); err != nil {
			return err
		}
	}
	q.out.add(id, a)
	return nil
}

// Release implements Source.
func (q *Queue) Release(id uint32, a Answer) {
	if a.Action == Hold {
		return
	}
	q.counters.released.Add(1)
	if err := q.answer(id, a); err != nil {
		q.failed = err
	}
}

// send writes all answers with one system call. To netlink a write is whole or
// not at all; what the kernel thinks of single verdicts comes back as messages.
func (q *Queue) send() error {
	if q.failed != nil || q.out.empty() {
		return q.failed
	}
	for {
		_, err := unix.Write(q.fd, q.out.buf)
		if err == nil {
			break
		}
		if err := q.waitToSend(err); err != nil {
			return err
		}
		q.counters.sendRetries.Add(1)
	}
	for action, n := range q.out.counts {
		if n > 0 {
			q.counters.answered[action].Add(n)
		}
	}
	q.out.reset()
	return nil
}

// sendPause is how long to wait for the kernel to find memory.
const sendPause = time.Millisecond

// waitToSend returns nil when it makes sense to try again: the socket was full,
// the kernel had no memory for the message (ENOBUFS in netlink_sendmsg), or a
// signal came.
func (q *Queue) waitToSend(err error) error {
	switch err {
	case unix.EINTR:
		return nil
	case unix.EAGAIN:
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(q.fd), Events: unix.POLLOUT}}, int(idleWait.Milliseconds()))
		if err == nil || err == unix.EINTR {
			return nil
		}
	case unix.ENOBUFS, unix.ENOMEM:
		if !q.stopping.Load() {
			time.Sleep(sendPause)
			return nil
		}
	}
	return fmt.Errorf("write %d bytes of verdicts: %w", len(q.out.buf), err)
}

// answerRest answers, when the loop ends, every packet in the queue: those on
// hold, those read, and those nobody has read yet. NFQNL_MSG_VERDICT_BATCH goes
// for all packets up to an id (nfq_id_after in net/netfilter/nfnetlink_queue.c
// compares as signed numbers, so any id ahead of the last one covers them all).
func (q *Queue) answerRest() {
	verdict := uint32(nfDrop)
	if q.cfg.FailOpen {
		verdict = nfAccept
	}
	_ = q.send() // what was decided comes first; the socket may be the reason we are here
	q.out.reset()
	const ahead = 1 << 30
	q.out.put(msgVerdictBatch, q.lastID+ahead, verdict, false, 0)
	_ = q.send() // if it cannot be written the kernel drops them when the socket is closed
}
