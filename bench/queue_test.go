// Package bench_test measures the packet path from the outside.
package bench_test

import (
	"context"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	nfqueue "github.com/florianl/go-nfqueue/v2"

	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/engine/queue/queuetest"
	"github.com/netverdict/netverdict/engine/seccomp"
	"github.com/netverdict/netverdict/engine/seccomp/seccomptest"
)

// window is how many packets may be undecided at a time: enough for any batch,
// and few enough that no buffer ever overflows.
const window = 1024

// BenchmarkQueueAcceptAll compares our receive/answer loop with go-nfqueue's
// usual callback: every packet of a fast UDP sender is accepted, across a veth
// pair into a namespace that discards it. An operation is a packet. The sender is
// a process of its own; what is allocated is counted in ours alone. An agent's loop is
// confined (--seccomp), so the first two say what that costs.
func BenchmarkQueueAcceptAll(b *testing.B) {
	b.Run("ours", func(b *testing.B) { acceptAll(b, acceptWithQueue) })
	b.Run("ours-confined", func(b *testing.B) { acceptAll(b, acceptConfined) })
	b.Run("go-nfqueue-callback", func(b *testing.B) { acceptAll(b, acceptWithCallback) })
}

// queueNum is free in the benchmark's own namespace.
const queueNum = 5

// acceptAll sends b.N packets through a queue that start's loop accepts, and
// demands that each was decided.
func acceptAll(b *testing.B, start func(*testing.B, *queuetest.Namespace, *atomic.Int64)) {
	sender, sink := queuetest.New(b), queuetest.New(b)
	sender.Connect(sink)
	sender.QueueUDP(queueNum)
	sink.Discard()
	blaster := sender.Blaster(netip.MustParseAddr("10.77.0.2"))

	start(b, sender, blaster.Decided)
	send := func(count int) {
		if err := blaster.Send(count, window); err != nil {
			b.Fatal(err)
		}
	}
	send(2 * window) // warm up
	runtime.GC()

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.ResetTimer()
	began := time.Now()
	send(b.N)
	elapsed := time.Since(began)
	b.StopTimer()
	runtime.ReadMemStats(&after)

	b.ReportMetric(float64(b.N)/elapsed.Seconds(), "packets/s")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(b.N), "allocs/packet")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(b.N), "B/packet")
	if got, want := blaster.Decided.Load(), int64(2*window+b.N); got != want {
		b.Fatalf("%d packets decided, %d sent", got, want)
	}
}

// acceptor counts a batch when its answers were written.
type acceptor struct {
	batch    int64
	accepted *atomic.Int64
}

func (a *acceptor) Handle(*queue.Packet) queue.Answer {
	a.batch++
	return queue.Answer{Action: queue.Accept}
}

func (a *acceptor) BatchEnd() {
	a.accepted.Add(a.batch)
	a.batch = 0
}

func acceptWithQueue(b *testing.B, in *queuetest.Namespace, accepted *atomic.Int64) {
	acceptOn(b, in, accepted, func() {})
}

func acceptConfined(b *testing.B, in *queuetest.Namespace, accepted *atomic.Int64) {
	acceptOn(b, in, accepted, func() {
		runtime.LockOSThread() // and never unlock it
		seccomptest.ConfineThread(b, seccomp.Enforcing())
	})
}

// acceptOn prepares the thread that accepts.
func acceptOn(b *testing.B, in *queuetest.Namespace, accepted *atomic.Int64, prepare func()) {
	var q *queue.Queue
	in.Do(func() (err error) {
		q, err = queue.Open(queue.Config{Num: queueNum})
		return err
	})
	ended := make(chan error, 1)
	go func() {
		prepare()
		ended <- q.Run(context.Background(), &acceptor{accepted: accepted})
	}()
	b.Cleanup(func() {
		if err := q.Close(); err != nil {
			b.Error(err)
		}
		if err := <-ended; err != nil {
			b.Error(err)
		}
		if s := q.Stats(); s.Kernel.QueueDropped+s.Kernel.UserDropped > 0 || s.Errors != nil {
			b.Errorf("packets were lost or verdicts refused: %+v", s)
		}
	})
}

func acceptWithCallback(b *testing.B, in *queuetest.Namespace, accepted *atomic.Int64) {
	var nf *nfqueue.Nfqueue
	in.Do(func() (err error) {
		nf, err = nfqueue.Open(&nfqueue.Config{
			NfQueue:      queueNum,
			MaxQueueLen:  8192,
			MaxPacketLen: 256,
			Copymode:     nfqueue.NfQnlCopyPacket,
		})
		return err
	})
	if err := nf.Con.SetReadBuffer(4 << 20); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	accept := func(a nfqueue.Attribute) int {
		if err := nf.SetVerdict(*a.PacketID, nfqueue.NfAccept); err != nil {
			b.Error(err)
		}
		accepted.Add(1)
		return 0
	}
	fail := func(err error) int {
		if ctx.Err() == nil {
			b.Error(err)
		}
		return 1
	}
	if err := nf.RegisterWithErrorFunc(ctx, accept, fail); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cancel()
		nf.Close()
	})
}
