package engine_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/bench/netlab"
)

// stream is a connection on which both ends send lines all the time, numbers, and
// read what the other sends. Over TCP none may be missing.
type stream struct {
	t        testing.TB
	name     string
	tcp      bool
	conns    [2]net.Conn     // client, server
	begun    [2]atomic.Int64 // lines whose sending has begun
	received [2]struct {
		lines   atomic.Int64
		highest atomic.Int64 // number of a line
		at      atomic.Int64 // Unix nanoseconds of the last one
	}
	denied int64 // the first of the client's lines that must not arrive
	wg     sync.WaitGroup
}

const beat = 2 * time.Millisecond

// openStreams opens a TCP and a UDP stream over each family; the test ends them.
func openStreams(t testing.TB, from, to *netlab.Host) (all []*stream) {
	t.Helper()
	families(to, func(_ string, a netip.Addr) { all = append(all, openTCP(t, from, to, a), openUDP(t, from, to, a)) })
	for _, s := range all {
		s.start()
	}
	return all
}

func openTCP(t testing.TB, from, to *netlab.Host, addr netip.Addr) *stream {
	t.Helper()
	l, err := to.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &stream{t: t, name: fmt.Sprintf("TCP %s>%s", from.Name(), addr), tcp: true}
	if s.conns[0], err = from.DialContext(within(t, patience), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if s.conns[1], err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return s
}

// openUDP sends the first datagram, so that the client began the flow.
func openUDP(t testing.TB, from, to *netlab.Host, addr netip.Addr) *stream {
	t.Helper()
	server, err := to.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	client, err := from.DialContext(within(t, patience), "udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(within(t, patience), func() { server.Close() })
	defer stop()
	_, peer, err := server.ReadFrom(make([]byte, 8))
	if err != nil {
		t.Fatalf("the first datagram of %s: %v", from.Name(), err)
	}
	return &stream{t: t, name: fmt.Sprintf("UDP %s>%s", from.Name(), addr), conns: [2]net.Conn{client, replier{server.(*net.UDPConn), peer}}}
}

// replier is the server's end of a UDP flow.
type replier struct {
	*net.UDPConn
	peer net.Addr
}

func (r replier) Write(b []byte) (int, error) { return r.WriteTo(b, r.peer) }

func (s *stream) start() {
	s.t.Helper()
	for end := range s.conns {
		s.wg.Go(func() { s.send(end) })
		s.wg.Go(func() { s.receive(end) })
	}
	s.t.Cleanup(s.close)
	s.awaitLines(10)
}

func (s *stream) close() {
	for _, c := range s.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a cut connection cannot end in order
		}
		c.Close()
	}
	s.wg.Wait()
}

func (s *stream) send(end int) {
	for n := int64(0); ; n++ {
		s.begun[end].Store(n + 1)
		if _, err := fmt.Fprintln(s.conns[end], n); errors.Is(err, net.ErrClosed) || err != nil && s.tcp {
			return
		}
		time.Sleep(beat)
	}
}

func (s *stream) receive(end int) {
	r := &s.received[end]
	lines := bufio.NewScanner(s.conns[end])
	for lines.Scan() {
		if want := fmt.Sprint(r.lines.Load()); s.tcp && lines.Text() != want {
			s.t.Errorf("%s: end %d got line %q, want %q", s.name, end, lines.Text(), want)
		}
		if n, err := strconv.ParseInt(lines.Text(), 10, 64); err != nil {
			s.t.Errorf("%s: end %d got line %q", s.name, end, lines.Text())
		} else if n > r.highest.Load() {
			r.highest.Store(n)
		}
		r.at.Store(time.Now().UnixNano())
		r.lines.Add(1)
	}
}

// awaitLines waits until both ends have received so many more lines.
func (s *stream) awaitLines(more int64) {
	s.t.Helper()
	for end := range s.conns {
		r := &s.received[end]
		want := r.lines.Load() + more
		eventually(s.t, fmt.Sprintf("%s: %d more lines at end %d", s.name, more, end), func() bool { return r.lines.Load() >= want })
	}
}

// last is when a line was received the last time, at either end.
func (s *stream) last() time.Time {
	return time.Unix(0, max(s.received[0].at.Load(), s.received[1].at.Load()))
}

// exchange sends something to an echo server and waits for it to come back.
func exchange(c net.Conn, limit time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

// datagrams is a UDP flow of numbers in one direction.
type datagrams struct {
	t        testing.TB
	name     string
	sent     atomic.Uint64
	received atomic.Uint64
	stop     context.CancelFunc
	sender   sync.WaitGroup
}

func openDatagrams(t testing.TB, from, to *netlab.Host, addr netip.Addr) *datagrams {
	t.Helper()
	in, err := to.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	makeRoom(t, in.(*net.UDPConn))
	out, err := from.DialContext(within(t, patience), "udp", in.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	d := &datagrams{t: t, name: fmt.Sprintf("datagrams %s>%s", from.Name(), addr), stop: stop}
	d.sender.Go(func() { d.send(ctx, out) })
	var receiver sync.WaitGroup
	receiver.Go(func() { d.receive(in) })
	t.Cleanup(func() {
		stop()
		d.sender.Wait()
		out.Close()
		in.Close()
		receiver.Wait()
	})
	return d
}

func (d *datagrams) send(ctx context.Context, c net.Conn) {
	for ctx.Err() == nil {
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, d.sent.Load())); err != nil {
			d.t.Errorf("%s: %v", d.name, err)
			return
		}
		d.sent.Add(1)
		time.Sleep(beat)
	}
}

// receive counts what arrives. The order may change when one datagram waits for its
// verdict and the next finds that of an earlier one.
func (d *datagrams) receive(c net.PacketConn) {
	buf := make([]byte, 8)
	seen := map[uint64]bool{}
	for {
		if _, _, err := c.ReadFrom(buf); err != nil {
			return
		}
		number := binary.BigEndian.Uint64(buf)
		if seen[number] {
			d.t.Errorf("%s: got %d twice", d.name, number)
		}
		seen[number] = true
		d.received.Add(1)
	}
}

// makeRoom lets a socket wait for its reader for as long as a busy machine takes: what
// is lost for want of room says nothing about rules.
func makeRoom(t testing.TB, c *net.UDPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
}

// demandAll stops the sender, when it has sent enough to mean something, and checks
// that everything arrived.
func (d *datagrams) demandAll() {
	d.t.Helper()
	eventually(d.t, d.name+": 20 datagrams sent", func() bool { return d.sent.Load() >= 20 })
	d.stop()
	d.sender.Wait()
	eventually(d.t, fmt.Sprintf("%s: the last of %d", d.name, d.sent.Load()), func() bool { return d.received.Load() >= d.sent.Load() })
}
