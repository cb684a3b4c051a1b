package engine

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/flow/hubble"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/engine/queue/queuetest"
	"github.com/netverdict/netverdict/policy"
)

const (
	watchedRate  = 50_000 // decisions a second
	watchedBurst = 500    // decisions between two looks at the clock
	watchedRound = 10_000 // decisions with and without subscribers, in turn
	watchers     = 3
	watcherPause = 2 * time.Millisecond // a subscriber reads 500 flows a second at most
)

// BenchmarkWatched measures what three subscribers that are a hundred times too slow
// cost a worker: the CPU time of its thread for a packet, at 50,000 packets a
// second, without them (alone) and with them (watched). One iteration is a round of
// each. It checks that every record reaches each subscriber or is reported to it as
// lost.
//
// With a queue it is all that the thread does for a packet: receive, decide, record,
// answer. Without one it is the deciding and recording only, in which a difference
// shows many times enlarged.
//
// Denied flows are recorded in both cases. Allowed ones are only while somebody
// wants them, so there the difference has the price of making the record.
func BenchmarkWatched(b *testing.B) {
	for _, v := range []policy.Verdict{policy.Deny, policy.Allow} {
		b.Run("queue/"+v.String(), func(b *testing.B) { benchWatched(b, newWatchedRig(b, v).withQueue()) })
		b.Run("handle/"+v.String(), func(b *testing.B) { benchWatched(b, newWatchedRig(b, v)) })
	}
}

func benchWatched(b *testing.B, r *watchedRig) {
	r.round() // warm up
	var alone, watched, ratios []float64
	for i := 0; b.Loop(); i++ {
		var with, without float64
		if i%2 == 0 {
			without = r.round()
		}
		subs := r.subscribe()
		with = r.round()
		r.settle(subs)
		if i%2 == 1 {
			without = r.round()
		}
		alone, watched, ratios = append(alone, without), append(watched, with), append(ratios, with/without)
	}
	b.ReportMetric(median(alone), "alone-ns/packet")
	b.ReportMetric(median(watched), "watched-ns/packet")
	b.ReportMetric(median(ratios), "ratio") // of neighbours in time: what else runs here matters less
	b.ReportMetric(float64(r.told.Load())/float64(watchers*len(watched)*watchedRound), "lost/offered")
	b.ReportMetric(float64(r.collector.Stats().Lost), "ring-lost")
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// watchedRig is a worker whose records go to a server with subscribers on a socket.
type watchedRig struct {
	b         *testing.B
	worker    *worker
	verdict   policy.Verdict
	collector *flow.Collector
	server    *hubble.Server
	client    observerpb.ObserverClient
	told      atomic.Uint64 // flows that subscribers were told they lost

	// offer has the worker decide so many packets, and returns what its thread needed.
	offer func(packets int) time.Duration
}

// The rig's packets are what queuetest's sender sends.
var (
	watchedSrc = netip.MustParseAddr("10.77.0.1")
	watchedDst = netip.MustParseAddr("10.77.0.2")
)

func newWatchedRig(b *testing.B, v policy.Verdict) *watchedRig {
	b.Helper()
	r := &watchedRig{b: b, verdict: v}
	demand := &flow.Demand{}
	var err error
	if r.server, err = hubble.New(hubble.Options{NodeName: "node", Demand: demand}); err != nil {
		b.Fatal(err)
	}
	r.collector = flow.NewCollector(r.server)
	b.Cleanup(func() {
		if err := r.collector.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	policies := []*networkingv1.NetworkPolicy{isolate("sink")}
	if v == policy.Allow {
		policies = append(policies, allow("source", "sink"))
		policies[1].Spec.Ingress[0].Ports = nil
	}
	tree := compile(b, &policy.Snapshot{
		Pods: []*policy.Pod{scenePod("source", watchedSrc), scenePod("sink", watchedDst)}, Policies: policies,
	})
	r.worker = benchWorker(b, tree, 4096)
	r.worker.ring, r.worker.log = r.collector.NewRing(8192), demand
	r.offer = r.handle(packetOf(b, watchedSrc, watchedDst, policy.UDP, queuetest.Port))
	r.serve()
	return r
}

// handle offers a packet without a queue.
func (r *watchedRig) handle(payload []byte) func(int) time.Duration {
	return func(packets int) time.Duration {
		runtime.LockOSThread() // as the thread of a queue is
		defer runtime.UnlockOSThread()
		p := queue.Packet{ID: 1, Payload: payload}
		before := threadTime(r.b, unix.Gettid())
		for range packets {
			a := r.worker.Handle(&p)
			if a.Action != queue.Repeat || a.Mark != r.worker.marks.Verdict(0, r.verdict, 1) {
				r.b.Fatalf("answer %+v, want the verdict %v", a, r.verdict)
			}
		}
		r.worker.BatchEnd()
		return threadTime(r.b, unix.Gettid()) - before
	}
}

// finalMarks answer a packet the first time: there are no rules to send it through
// again.
type finalMarks struct{ Marks }

func (finalMarks) Decided(uint32) bool { return true }

// queued is the worker at a queue: it counts, so that no more is sent than is decided.
type queued struct {
	*worker
	batch   int64
	denied  int64
	decided *atomic.Int64
	tid     atomic.Int64
}

func (q *queued) Handle(p *queue.Packet) queue.Answer {
	q.batch++
	a := q.worker.Handle(p)
	if a.Action == queue.Drop {
		q.denied++
	}
	return a
}

func (q *queued) BatchEnd() {
	q.worker.BatchEnd()
	q.tid.Store(int64(unix.Gettid()))
	q.decided.Add(q.batch)
	q.batch = 0
}

// withQueue gives the worker a queue of the kernel's, and a process that sends.
func (r *watchedRig) withQueue() *watchedRig {
	const number = 5 // free in a namespace of its own
	sender, sink := queuetest.New(r.b), queuetest.New(r.b)
	sender.Connect(sink)
	sender.QueueUDP(number)
	sink.Discard()
	blaster := sender.Blaster(watchedDst)
	r.worker.marks = finalMarks{r.worker.marks}
	h := &queued{worker: r.worker, decided: blaster.Decided}
	var q *queue.Queue
	sender.Do(func() (err error) {
		q, err = queue.Open(queue.Config{Num: number})
		return err
	})
	ended := make(chan error, 1)
	go func() { ended <- q.Run(context.Background(), h) }()
	r.b.Cleanup(func() {
		if err := errors.Join(q.Close(), <-ended); err != nil {
			r.b.Error(err)
		}
		if all := blaster.Decided.Load(); h.denied != map[policy.Verdict]int64{policy.Deny: all}[r.verdict] {
			r.b.Errorf("%d of %d packets denied, want the verdict %v", h.denied, all, r.verdict)
		}
	})
	r.offer = func(packets int) time.Duration {
		var before time.Duration
		tid := int(h.tid.Load())
		if tid != 0 { // it is the first time otherwise, and not measured
			before = threadTime(r.b, tid)
		}
		if err := blaster.Send(packets, packets); err != nil {
			r.b.Fatal(err)
		}
		return threadTime(r.b, int(h.tid.Load())) - before
	}
	return r
}

func (r *watchedRig) serve() {
	path := filepath.Join(r.b.TempDir(), "hubble.sock")
	l, err := new(net.ListenConfig).Listen(r.b.Context(), "unix", path)
	if err != nil {
		r.b.Fatal(err)
	}
	g := grpc.NewServer(hubble.ServerOptions()...)
	r.server.Register(g)
	go func() { _ = g.Serve(l) }() // it ends with Stop
	r.b.Cleanup(g.Stop)
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		r.b.Fatal(err)
	}
	r.b.Cleanup(func() { conn.Close() })
	r.client = observerpb.NewObserverClient(conn)
}

// round offers packets at the rate, and returns the CPU time of the worker's thread
// in nanoseconds for each. All records have left the collector then.
func (r *watchedRig) round() float64 {
	r.b.Helper()
	var spent time.Duration
	next := time.Now()
	for range watchedRound / watchedBurst {
		spent += r.offer(watchedBurst)
		next = next.Add(watchedBurst * time.Second / watchedRate)
		time.Sleep(time.Until(next))
	}
	accepted := r.worker.ring.Accepted()
	r.await("the collector", func() bool { return r.server.Stats().Seen == accepted })
	return float64(spent) / watchedRound
}

// threadTime is how long a thread of this process has been on a CPU. Its clock's
// number is made as pthread_getcpuclockid(3) does: MAKE_THREAD_CPUCLOCK of
// linux/posix-timers_types.h with CPUCLOCK_SCHED.
func threadTime(b *testing.B, tid int) time.Duration {
	b.Helper()
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^tid<<3|6), &t); err != nil {
		b.Fatalf("read the CPU time of thread %d: %v", tid, err)
	}
	return time.Duration(t.Nano())
}

// subscription is what one subscriber got.
type subscription struct {
	pause     atomic.Int64 // nanoseconds between two reads
	got, lost atomic.Uint64
}

// watchedSubs are the subscribers of a round.
type watchedSubs struct {
	all    []*subscription
	cancel context.CancelFunc
	ended  sync.WaitGroup
}

// subscribe starts the slow subscribers and returns when they are served.
func (r *watchedRig) subscribe() *watchedSubs {
	ctx, cancel := context.WithCancel(r.b.Context())
	s := &watchedSubs{cancel: cancel}
	for range watchers {
		stream, err := r.client.GetFlows(ctx, &observerpb.GetFlowsRequest{Follow: true})
		if err != nil {
			r.b.Fatal(err)
		}
		sub := &subscription{}
		sub.pause.Store(int64(watcherPause))
		s.all = append(s.all, sub)
		s.ended.Go(func() { sub.read(stream) })
	}
	r.await("the subscriptions", func() bool { return r.server.Stats().Subscribers == watchers })
	return s
}

func (s *subscription) read(stream observerpb.Observer_GetFlowsClient) {
	for {
		resp, err := stream.Recv()
		if err != nil {
			return // canceled
		}
		s.lost.Add(resp.GetLostEvents().GetNumEventsLost())
		if resp.GetFlow() != nil {
			s.got.Add(1)
		}
		time.Sleep(time.Duration(s.pause.Load()))
	}
}

// settle lets the subscribers catch up, demands that nothing is missing, and ends
// them.
func (r *watchedRig) settle(s *watchedSubs) {
	for _, sub := range s.all {
		sub.pause.Store(0)
	}
	for _, sub := range s.all {
		r.await("every flow to be shown or reported as lost", func() bool { return sub.got.Load()+sub.lost.Load() >= watchedRound })
		if n := sub.got.Load() + sub.lost.Load(); n != watchedRound {
			r.b.Fatalf("%d flows shown and %d reported as lost of %d", sub.got.Load(), sub.lost.Load(), watchedRound)
		}
		r.told.Add(sub.lost.Load())
	}
	s.cancel()
	s.ended.Wait()
	r.await("the end of the subscriptions", func() bool { return r.server.Stats().Subscribers == 0 })
}

func (r *watchedRig) await(what string, cond func() bool) {
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.b.Fatal("waited a minute for " + what)
		}
	}
}
