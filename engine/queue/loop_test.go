package queue

import (
	"errors"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/engine/queue/queuetest"
)

func TestDeadSocketEndsTheLoop(t *testing.T) {
	q := &Queue{fd: -1, in: newReceiver(1, 0), out: newAnswers(1, 1)}
	if _, err := q.receive(); !errors.Is(err, unix.EBADF) {
		t.Errorf("receive: %v", err)
	}
	if err := q.answer(1, Answer{}); err != nil {
		t.Errorf("answer with room in the buffer: %v", err)
	}
	if err := q.send(); !errors.Is(err, unix.EBADF) {
		t.Errorf("send: %v", err)
	}
	q.Release(2, Answer{}) // no room: has to send, cannot say so
	q.out.reset()
	if err := q.send(); !errors.Is(err, unix.EBADF) {
		t.Errorf("send after a release that failed: %v", err)
	}
}

func TestSendRetries(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	q := &Queue{fd: fds[0], out: newAnswers(1, 1)}
	for err == nil { // fill the socket
		_, err = unix.Write(fds[0], q.out.buf[:maxVerdict])
	}
	go func() {
		for q.counters.sendRetries.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		drain(fds[1])
	}()
	if err := errors.Join(q.answer(1, Answer{Action: Accept}), q.send()); err != nil {
		t.Fatal(err)
	}
	if q.counters.sendRetries.Load() == 0 {
		t.Error("no retry on a full socket")
	}
	if got := q.counters.stats().Accepted; got != 1 {
		t.Errorf("1 answer sent, %d counted", got)
	}
	for _, err := range []error{unix.EINTR, unix.ENOBUFS, unix.ENOMEM} {
		if got := q.waitToSend(err); got != nil {
			t.Errorf("%v is not tried again: %v", err, got)
		}
	}
	q.stopping.Store(true)
	if got := q.waitToSend(unix.ENOBUFS); got == nil {
		t.Error("a loop that is told to stop waits for memory")
	}
}

// drain reads all that is there.
func drain(fd int) {
	b := make([]byte, maxVerdict)
	for {
		if _, err := unix.Read(fd, b); err != nil {
			return
		}
	}
}

func TestErrorMessages(t *testing.T) {
	q := &Queue{copySeq: 77}
	if err := q.takeError(message{kind: errorMessage, seq: 77}); err != nil {
		t.Errorf("acknowledgement: %v", err)
	}
	for _, errno := range []unix.Errno{unix.ENOENT, unix.EPERM, 4000} {
		if err := q.takeError(message{kind: errorMessage, errno: errno}); err != nil {
			t.Errorf("%v about a verdict ends the loop: %v", errno, err)
		}
	}
	if err := q.takeError(message{kind: errorMessage, errno: unix.EINVAL, seq: 77}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a copy mode that was refused: %v", err)
	}
	got := q.counters.stats().Errors
	if got[unix.ENOENT] != 1 || got[unix.EPERM] != 1 || got[unix.EINVAL] != 1 || got[0] != 1 {
		t.Errorf("counted %v", got)
	}
}

func TestMalformedAndUnidentifiedAreCounted(t *testing.T) {
	q := &Queue{out: newAnswers(1, 4)}
	for _, k := range []kind{malformedPacket, unidentified, ignorable} {
		if err := q.take(message{kind: k}, nil); err != nil {
			t.Fatal(err)
		}
	}
	s := q.counters.stats()
	if s.Packets != 1 || s.Malformed != 1 || s.Unidentified != 1 || q.out.counts[Drop] != 1 {
		t.Errorf("%+v, answers %v", s, q.out.counts)
	}
}

func TestFindLine(t *testing.T) {
	const table = "    7  16908     3 2   256     4     5       99  1\n65535 4294962923  0 2 65531 0 0 1  1\nshort\n"
	want := procLine{portID: 16908, KernelStats: KernelStats{Waiting: 3, QueueDropped: 4, UserDropped: 5}}
	if got, ok := findLine([]byte(table), 7); !ok || got != want {
		t.Errorf("queue 7: %+v, %v", got, ok)
	}
	if got, ok := findLine([]byte(table), 65535); !ok || got.portID != 4294962923 {
		t.Errorf("queue 65535: %+v, %v", got, ok)
	}
	if _, ok := findLine([]byte(table), 8); ok {
		t.Error("queue 8 found")
	}
}

// batchCounter accepts all and says how many when the batch is answered.
type batchCounter struct {
	batch int64
	total *atomic.Int64
}

func (c *batchCounter) Handle(*Packet) Answer { c.batch++; return Answer{Action: Accept} }
func (c *batchCounter) BatchEnd()             { c.total.Add(c.batch); c.batch = 0 }

// From socket to verdict, with real packets, nothing is allocated.
func TestLoopDoesNotAllocate(t *testing.T) {
	const packets, window = 20000, 256
	ns := queuetest.New(t)
	ns.QueueUDP(testNum)
	ns.Discard()
	var q *Queue
	ns.Do(func() (err error) { q, err = Open(Config{Num: testNum}); return err })
	blaster := ns.Blaster(netip.MustParseAddr("127.0.0.1"))
	start(t, q, &batchCounter{total: blaster.Decided})
	round := func() {
		if err := blaster.Send(packets, window); err != nil {
			t.Fatal(err)
		}
	}
	round()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	round()
	runtime.ReadMemStats(&after)
	// The runtime itself allocates now and then; a packet must not.
	if n := after.Mallocs - before.Mallocs; n > packets/200 {
		t.Errorf("%d allocations for %d packets", n, packets)
	}
	if s := q.Stats(); s.Accepted != 2*packets || s.Errors != nil {
		t.Errorf("%+v", s)
	}
}

func BenchmarkParseAndAnswer(b *testing.B) {
	in := full()
	a := newAnswers(1, 1)
	var p Packet
	b.ReportAllocs()
	for b.Loop() {
		if m, _ := parse(in, &p); m.kind != packetMessage {
			b.Fatalf("%+v", m)
		}
		a.add(p.ID, Answer{Action: Repeat, SetMark: true, Mark: p.Mark})
		a.reset()
	}
}
