package queue

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/engine/queue/queuetest"
)

// patience bounds every wait of these tests for something that must happen;
// quiet is how long to wait for something that must not.
const (
	patience = time.Minute // on a machine that is slow and busy
	quiet    = 100 * time.Millisecond
)

const testNum = 7

// lab is a network namespace with a queue and a UDP flow through it, over
// loopback: what is sent is queued in OUTPUT and, once accepted, received.
type lab struct {
	t  *testing.T
	ns *queuetest.Namespace
	q  *Queue
	// in receives, out sends
	in, out *net.UDPConn
}

func newLab(t *testing.T, cfg Config, host string) *lab {
	t.Helper()
	l := &lab{t: t, ns: queuetest.New(t)}
	l.ns.QueueUDP(testNum)
	cfg.Num = testNum
	l.q = l.open(cfg)
	addr := &net.UDPAddr{IP: net.ParseIP(host), Port: queuetest.Port}
	l.ns.Do(func() (err error) {
		if l.in, err = net.ListenUDP("udp", addr); err != nil {
			return err
		}
		l.out, err = net.DialUDP("udp", nil, addr)
		return err
	})
	t.Cleanup(func() { l.in.Close(); l.out.Close() })
	return l
}

func (l *lab) open(cfg Config) (q *Queue) {
	l.t.Helper()
	l.ns.Do(func() (err error) {
		q, err = Open(cfg)
		return err
	})
	return q
}

func (l *lab) send(texts ...string) {
	l.t.Helper()
	for _, s := range texts {
		if _, err := l.out.Write([]byte(s)); err != nil {
			l.t.Fatal(err)
		}
	}
}

// receive returns the next datagram, or "" when none comes in time.
func (l *lab) receive(wait time.Duration) string {
	l.t.Helper()
	var b [64 << 10]byte
	l.in.SetReadDeadline(time.Now().Add(wait))
	n, err := l.in.Read(b[:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ""
	} else if err != nil {
		l.t.Fatal(err)
	}
	return string(b[:n])
}

// expect demands exactly these datagrams, in this order, and then no more.
func (l *lab) expect(texts ...string) {
	l.t.Helper()
	for _, want := range texts {
		if got := l.receive(patience); got != want {
			l.t.Fatalf("received %q, want %q", got, want)
		}
	}
	if got := l.receive(quiet); got != "" {
		l.t.Fatalf("received %q, want nothing more", got)
	}
}

// eventually waits for a condition.
func (l *lab) eventually(what string, ok func(Stats) bool) {
	l.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		s := l.q.Stats()
		if ok(s) {
			return
		}
		if time.Now().After(end) {
			l.t.Fatalf("%s: not within %v: %+v", what, patience, s)
		}
	}
}

// text is the payload of a UDP packet, after the IP and UDP headers.
func text(p *Packet) string {
	headers := 20 + 8
	if p.Family == unix.AF_INET6 {
		headers = 40 + 8
	}
	return string(p.Payload[headers:])
}

// byText answers each packet as its text says.
func byText(p *Packet) Answer {
	switch text(p)[0] {
	case 'a':
		return Answer{Action: Accept}
	case 'r':
		return Answer{Action: Repeat, SetMark: true, Mark: uint32(text(p)[1] - '0')}
	case 'h':
		return Answer{Action: Hold}
	}
	return Answer{}
}

func TestAcceptAndDrop(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		l := newLab(t, Config{}, host)
		start(t, l.q, &script{handle: byText})
		l.send("a1", "d2", "a3", "d4", "a5")
		l.expect("a1", "a3", "a5")
		s := l.q.Stats()
		if s.Packets != 5 || s.Accepted != 3 || s.Dropped != 2 || s.Errors != nil || s.Kernel != (KernelStats{}) {
			t.Errorf("%s: %+v", host, s)
		}
	}
}

func TestPacketFields(t *testing.T) {
	for host, family := range map[string]uint8{"127.0.0.1": unix.AF_INET, "::1": unix.AF_INET6} {
		l := newLab(t, Config{CopyRange: 64}, host)
		seen := make(chan Packet, 2)
		start(t, l.q, &script{handle: func(p *Packet) Answer {
			c := *p
			c.Payload = slices.Clone(p.Payload)
			seen <- c
			return Answer{Action: Accept}
		}})
		headers := map[uint8]int{unix.AF_INET: 28, unix.AF_INET6: 48}[family]
		l.send("x", strings.Repeat("y", 1000))
		short, long := <-seen, <-seen
		if short.ID != 1 || short.Family != family || short.OutDev != 1 || short.InDev != 0 || short.Mark != 0 || short.Hook != 3 {
			t.Errorf("%s: %+v, want id 1, OUTPUT (3), out of lo (1)", host, short)
		}
		if n := headers + 1; len(short.Payload) != n || short.Length != uint32(n) || short.Payload[n-1] != 'x' {
			t.Errorf("%s: payload of %d bytes, length %d, want %d", host, len(short.Payload), short.Length, n)
		}
		if n := headers + 1000; len(long.Payload) != 64 || long.Length != uint32(n) {
			t.Errorf("%s: payload of %d bytes, length %d, want 64, %d", host, len(long.Payload), long.Length, n)
		}
		l.expect("x", strings.Repeat("y", 1000))
	}
}

// A repeated packet meets the rules again with its new mark: 7 is dropped by
// one, 8 passes the rule that queues. Neither visits the queue twice.
func TestRepeatWithMark(t *testing.T) {
	l := newLab(t, Config{}, "127.0.0.1")
	l.ns.Exec("iptables", "-w", "-I", "OUTPUT", "-m", "mark", "--mark", "7", "-j", "DROP")
	start(t, l.q, &script{handle: byText})
	l.send("r7", "r8", "r7", "a")
	l.expect("r8", "a")
	if s := l.q.Stats(); s.Packets != 4 || s.Repeated != 3 || s.Accepted != 1 {
		t.Errorf("%+v", s)
	}
}

func TestQueueTaken(t *testing.T) {
	l := newLab(t, Config{}, "127.0.0.1")
	defer l.q.Close()
	err := l.ns.Try(func() error { _, err := Open(Config{Num: testNum}); return err })
	if !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "bind queue 7") {
		t.Fatalf("second open: %v", err)
	}
	l.q.Close()
	l.open(Config{Num: testNum}).Close() // it is free again
}

func TestOpenWithoutCapability(t *testing.T) {
	ns := queuetest.New(t)
	err := ns.Try(func() error { // the thread ends with this function
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Errorf("drop capabilities: %v", err)
		}
		_, err := Open(Config{Num: testNum})
		return err
	})
	if !errors.Is(err, ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Fatalf("open: %v", err)
	}
}

// The Go runtime's poller must not be woken by packets: takeOver says why.
func TestSocketIsNotPolled(t *testing.T) {
	l := newLab(t, Config{}, "127.0.0.1")
	defer l.q.Close()
	var fd int
	if err := control(l.q.file, func(own int) error { fd = own; return nil }); err != nil {
		t.Fatal(err)
	}
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil || len(infos) == 0 {
		t.Fatalf("no descriptors in /proc: %v", err)
	}
	polled := regexp.MustCompile(fmt.Sprintf(`(?m)^tfd:\s+%d\s`, fd)) // proc_pid_fdinfo(5)
	for _, name := range infos {
		if info, err := os.ReadFile(name); err == nil && polled.Match(info) {
			t.Errorf("socket %d is registered with the epoll instance of %s:\n%s", fd, name, info)
		}
	}
}

func TestErrorsNameCauseAndFix(t *testing.T) {
	tests := []struct {
		err  error
		is   error
		text string
	}{
		{bindError(7, unix.EPERM, nil), ErrPermission, "CAP_NET_ADMIN"},
		{bindError(7, unix.EBUSY, nil), ErrTaken, "choose another queue number"},
		{bindError(7, unix.EINVAL, nil), ErrUnsupported, "CONFIG_NETFILTER_NETLINK_QUEUE"},
		{bindError(7, unix.ENOMEM, nil), unix.ENOMEM, "bind queue 7"},
		{socketError(7, unix.EPROTONOSUPPORT), ErrUnsupported, "nfnetlink_queue"},
		{socketError(7, unix.EMFILE), unix.EMFILE, "queue 7"},
	}
	for _, test := range tests {
		if !errors.Is(test.err, test.is) || !strings.Contains(test.err.Error(), test.text) {
			t.Errorf("%q: want it to be %q and to say %q", test.err, test.is, test.text)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for _, cfg := range []Config{
		{CopyRange: 0xffff}, {ReceiveBuffer: -1}, {Batch: -1}, {Batch: 1025}, {Nice: -21}, {Nice: 20}, {Tick: time.Microsecond}, {Tick: -1},
	} {
		if q, err := Open(cfg); err == nil {
			q.Close()
			t.Errorf("%+v: no error", cfg)
		}
	}
}

func TestHoldAndWake(t *testing.T) {
	l := newLab(t, Config{}, "127.0.0.1")
	var held []uint32
	start(t, l.q, &script{
		handle: func(p *Packet) Answer {
			if a := byText(p); a.Action != Hold {
				return a
			}
			held = append(held, p.ID)
			return Answer{Action: Hold}
		},
		wake: func() {
			for i, id := range slices.Backward(held) {
				l.q.Release(id, Answer{Action: Hold}) // changes nothing
				l.q.Release(id, Answer{Action: Action(i % 2)})
			}
			held = nil
		},
	})
	l.send("h0", "h1", "h2", "h3", "a")
	l.expect("a")
	l.eventually("four packets on hold", func(s Stats) bool { return s.Held == 4 && s.Kernel.Waiting == 4 })
	l.q.Wake()
	l.expect("h3", "h1")
	l.eventually("all answered", func(s Stats) bool {
		return s.Released == 4 && s.Accepted == 3 && s.Dropped == 2 && s.Kernel.Waiting == 0
	})
}

// A wake does not wait for what the loop waits for. A slow machine may, now and then.
func TestWakeIsSoon(t *testing.T) {
	l := newLab(t, Config{}, "127.0.0.1")
	var held []uint32
	start(t, l.q, &script{
		handle: func(p *Packet) Answer { held = append(held, p.ID); return Answer{Action: Hold} },
		wake: func() {
			for _, id := range held {
				l.q.Release(id, Answer{Action: Accept})
			}
			held = nil
		},
	})
	fastest := patience
	for i := range uint64(5) {
		l.send("h")
		l.eventually("a packet on hold", func(s Stats) bool { return s.Held == i+1 })
		began := time.Now()
		l.q.Wake()
		if got := l.receive(patience); got != "h" {
			t.Fatalf("received %q", got)
		}
		fastest = min(fastest, time.Since(began))
	}
	if fastest > idleWait/4 {
		t.Errorf("the fastest wake took %v", fastest)
	}
}

// Answers given in BatchEnd, and more of them than the buffer holds.
func TestReleaseInBatchEnd(t *testing.T) {
	l := newLab(t, Config{Batch: 2}, "127.0.0.1")
	var held []uint32
	start(t, l.q, &script{
		handle: func(p *Packet) Answer { held = append(held, p.ID); return Answer{Action: Hold} },
		batch: func() {
			if len(held) < 7 {
				return
			}
			for _, id := range held {
				l.q.Release(id, Answer{Action: Accept})
			}
			held = nil
		},
	})
	l.send("1", "2", "3", "4", "5", "6", "7")
	l.expect("1", "2", "3", "4", "5", "6", "7")
}

func TestTick(t *testing.T) {
	const tick = 20 * time.Millisecond
	l := newLab(t, Config{Tick: tick}, "127.0.0.1")
	var held []uint32
	ticks := make(chan time.Time, 1000)
	start(t, l.q, &script{
		handle: func(p *Packet) Answer { held = append(held, p.ID); return Answer{Action: Hold} },
		tick: func(now time.Time) {
			ticks <- now
			for _, id := range held {
				l.q.Release(id, Answer{Action: Accept})
			}
			held = nil
		},
	})
	l.send("h")
	l.expect("h")
	first, second := <-ticks, <-ticks
	if d := second.Sub(first); d < tick || d > patience {
		t.Errorf("%v between two ticks, want about %v", d, tick)
	}
}

func TestWakeAndCloseFromManyGoroutines(t *testing.T) {
	l := newLab(t, Config{}, "127.0.0.1")
	wakes := make(chan struct{}, 1)
	start(t, l.q, &script{wake: func() {
		select {
		case wakes <- struct{}{}:
		default:
		}
	}})
	l.q.Wake()
	<-wakes
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				l.q.Wake()
			}
			l.q.Stats()
			if err := l.q.Close(); err != nil {
				t.Error(err)
			}
			l.q.Wake() // of a closed queue
		})
	}
	wg.Wait()
}

func TestEndAnswersTheRest(t *testing.T) {
	for _, failOpen := range []bool{false, true} {
		l := newLab(t, Config{FailOpen: failOpen}, "127.0.0.1")
		start(t, l.q, &script{handle: byText})
		l.send("h1", "h2")
		l.eventually("two packets on hold", func(s Stats) bool { return s.Held == 2 })
		if err := l.q.Close(); err != nil {
			t.Fatal(err)
		}
		if failOpen {
			l.expect("h1", "h2")
		} else {
			l.expect()
		}
		if err := l.q.Run(context.Background(), &script{}); !errors.Is(err, ErrClosed) {
			t.Errorf("run after close: %v", err)
		}
	}
}

func TestCloseBeforeRun(t *testing.T) {
	l := newLab(t, Config{}, "127.0.0.1")
	l.send("a")
	if n := l.q.Stats().Kernel.Waiting; n != 1 {
		t.Errorf("%d packets wait for Run, want 1", n)
	}
	if err := l.q.Close(); err != nil {
		t.Fatal(err)
	}
	l.expect()
	l.open(Config{Num: testNum}).Close()
}

func TestQueueFull(t *testing.T) {
	l := newLab(t, Config{MaxLen: 8}, "127.0.0.1")
	start(t, l.q, &script{handle: byText})
	for i := range 20 {
		l.out.Write(fmt.Append(nil, "h", i)) // a full queue may be an error of write
	}
	l.eventually("8 packets on hold, 12 dropped", func(s Stats) bool {
		return s.Held == 8 && s.Kernel == KernelStats{Waiting: 8, QueueDropped: 12}
	})
	l.q.Close()
	if s := l.q.Stats(); s.Kernel.QueueDropped != 12 {
		t.Errorf("drops forgotten after close: %+v", s)
	}
}

func TestQueueFullFailOpen(t *testing.T) {
	l := newLab(t, Config{MaxLen: 2, FailOpen: true}, "127.0.0.1")
	start(t, l.q, &script{handle: byText})
	l.send("h1", "h2", "d3", "d4")
	l.expect("d3", "d4") // nobody judged them
}

func TestReceiveBufferFull(t *testing.T) {
	l := newLab(t, Config{ReceiveBuffer: 4096}, "127.0.0.1")
	block := make(chan struct{})
	start(t, l.q, &script{handle: func(*Packet) Answer { <-block; return Answer{Action: Accept} }})
	for range 50 {
		l.out.Write([]byte("a"))
	}
	l.eventually("packets dropped", func(s Stats) bool { return s.Kernel.UserDropped > 0 })
	close(block)
	l.eventually("the others answered", func(s Stats) bool {
		return s.Kernel.Waiting == 0 && s.Accepted+uint64(s.Kernel.UserDropped) == 50
	})
}

func TestVerdictForPacketThatIsGone(t *testing.T) {
	l := newLab(t, Config{}, "127.0.0.1")
	start(t, l.q, &script{wake: func() { l.q.Release(12345, Answer{Action: Accept}) }, handle: byText})
	l.q.Wake()
	l.eventually("ENOENT counted", func(s Stats) bool { return s.Errors[unix.ENOENT] == 1 })
	l.send("a") // and life goes on
	l.expect("a")
}

// Messages larger than the receive buffers are cut: the id is still in them.
func TestTruncatedMessage(t *testing.T) {
	l := newLab(t, Config{CopyRange: 256}, "127.0.0.1")
	l.q.in = newReceiver(8, 0)
	l.q.in.size = 100
	for i := range l.q.in.iovs {
		l.q.in.iovs[i].Base = &l.q.in.data[i*100]
		l.q.in.iovs[i].SetLen(100)
	}
	start(t, l.q, &script{handle: func(*Packet) Answer { t.Error("handled"); return Answer{} }})
	l.send(strings.Repeat("a", 300), strings.Repeat("a", 300))
	l.eventually("two packets dropped", func(s Stats) bool {
		return s.Malformed == 2 && s.Dropped == 2 && s.Packets == 2 && s.Kernel.Waiting == 0
	})
	l.expect()
}

func TestNice(t *testing.T) {
	l := newLab(t, Config{Nice: 5}, "127.0.0.1")
	got := make(chan int, 1)
	start(t, l.q, &script{handle: func(*Packet) Answer {
		n, _ := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
		got <- 20 - n // getpriority(2)
		return Answer{Action: Accept}
	}})
	l.send("a")
	if n := <-got; n != 5 {
		t.Errorf("the worker runs at nice %d, want 5", n)
	}
	if n, _ := unix.Getpriority(unix.PRIO_PROCESS, unix.Getpid()); 20-n == 5 {
		t.Error("the process runs at nice 5 too")
	}
}

// No start fails or loses a packet while packets pour in, and no packet gets
// past a queue unjudged.
func TestStartUnderTraffic(t *testing.T) {
	l := newLab(t, Config{}, "127.0.0.1")
	l.q.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				l.out.Write([]byte("d"))
			}
		}
	})
	for i := range 50 {
		l.q = l.open(Config{Num: testNum})
		ended := make(chan error)
		ctx, cancel := context.WithCancel(context.Background())
		go func() { ended <- l.q.Run(ctx, &script{handle: byText}) }()
		l.eventually("packets judged", func(s Stats) bool { return s.Dropped > 10 })
		cancel()
		if err := <-ended; err != nil {
			t.Fatalf("start %d: %v", i, err)
		}
		if s := l.q.Stats(); s.Errors != nil || s.Malformed+s.Unidentified+s.Overruns > 0 {
			t.Fatalf("start %d: %+v", i, s)
		}
	}
	l.expect()
}

// A GSO packet is asked about once, whole, and arrives intact.
func TestSegmentationOffload(t *testing.T) {
	l := newLab(t, Config{CopyRange: 128}, "127.0.0.1")
	l.ns.Exec("ip", "link", "set", "lo", "mtu", "1500")
	l.ns.Exec("iptables", "-w", "-A", "OUTPUT", "-p", "tcp", "-j", "NFQUEUE", "--queue-num", fmt.Sprint(testNum))
	var largest uint32
	start(t, l.q, &script{handle: func(p *Packet) Answer {
		largest = max(largest, p.Length)
		return Answer{Action: Accept}
	}})
	var server net.Listener
	var client net.Conn
	l.ns.Do(func() (err error) {
		if server, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
			client, err = net.Dial("tcp", server.Addr().String())
		}
		return err
	})
	defer server.Close()
	sent := []byte(strings.Repeat("0123456789abcdef", 16<<10))
	go func() { client.Write(sent); client.Close() }()
	conn, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	var got []byte
	for b := make([]byte, 64<<10); ; {
		n, err := conn.Read(b)
		got = append(got, b[:n]...)
		if err != nil {
			break
		}
	}
	if string(got) != string(sent) {
		t.Errorf("received %d bytes, sent %d", len(got), len(sent))
	}
	if l.q.Close(); largest <= 1500 {
		t.Errorf("the largest packet had %d bytes: GSO packets were cut up", largest)
	}
}
