//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Server is a server running in a host, on one port of all its addresses.
type Server struct {
	// Port is the port in use, also when 0 was asked for.
	Port uint16

	host  *Host
	close func() error
	once  sync.Once
	err   error
}

// Close stops the server, resets its connections and waits for its goroutines.
// The host's removal does the same.
func (s *Server) Close() error {
	s.once.Do(func() {
		s.host.detach(s)
		s.err = s.close()
	})
	return s.err
}

// ServeHTTP answers every request with one line, "host=<name> remote=<address
// and port the server saw>". Port 0 picks a free port.
func (h *Host) ServeHTTP(port uint16) (*Server, error) {
	return h.serveListeners(port, func(ls []net.Listener) func() error {
		conns := newConnSet()
		srv := &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				remote, _ := netip.ParseAddrPort(r.RemoteAddr) // what Go formatted from a TCP address
				w.Header().Set("Content-Type", "text/plain; charset=utf-8")
				_, _ = w.Write(Reply{Host: h.name, Remote: remote}.header()) // the client notices
			}),
			ConnState: conns.httpState,
			// A client that does not finish its request must not hold a lab's server.
			ReadHeaderTimeout: 10 * time.Second,
			ErrorLog:          log.New(io.Discard, "", 0), // failing clients are what labs are for
		}
		for _, l := range ls {
			conns.wg.Go(func() { _ = srv.Serve(l) }) // ends with Close
		}
		return func() error {
			conns.reset()
			err := srv.Close()
			conns.wg.Wait()
			return err
		}
	})
}

// ServeTCP echoes what each connection sends. Port 0 picks a free port.
func (h *Host) ServeTCP(port uint16) (*Server, error) {
	return h.serveStream(port, func(c net.Conn) {
		_, _ = io.Copy(c, c) // ends with the connection
	})
}

// ServePush sends to each connection, without being asked: first the line that
// ServeHTTP answers with, then a line "<n>" (0, 1, 2 …) every interval; if
// interval is 0, bytes as fast as the connection takes them. Port 0 picks a
// free port.
func (h *Host) ServePush(port uint16, interval time.Duration) (*Server, error) {
	return h.serveStream(port, func(c net.Conn) {
		remote := c.RemoteAddr().(*net.TCPAddr).AddrPort()
		_, err := c.Write(Reply{Host: h.name, Remote: remote}.header())
		bulk := make([]byte, 64<<10)
		for n := 0; err == nil; n++ {
			if interval == 0 {
				_, err = c.Write(bulk)
				continue
			}
			if err = pause(c, interval); err == nil {
				_, err = fmt.Fprintln(c, n)
			}
		}
	})
}

// pause waits for interval, and fails early when the connection ends.
func pause(c net.Conn, interval time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(interval)); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	if err == nil {
		return io.EOF
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	return err
}

func (h *Host) serveStream(port uint16, handle func(net.Conn)) (*Server, error) {
	return h.serveListeners(port, func(ls []net.Listener) func() error {
		conns := newConnSet()
		for _, l := range ls {
			conns.wg.Go(func() { conns.accept(l, handle) })
		}
		return func() error {
			err := closeAll(ls)
			conns.reset()
			conns.wg.Wait()
			return err
		}
	})
}

// serveListeners makes the listeners and runs serve, which returns how to stop.
func (h *Host) serveListeners(port uint16, serve func([]net.Listener) func() error) (*Server, error) {
	ls, port, err := h.listenDual(port)
	if err != nil {
		return nil, err
	}
	s := &Server{Port: port, host: h, close: serve(ls)}
	if err := h.attach(s); err != nil {
		return nil, err
	}
	return s, nil
}

// listenDual listens on all IPv4 and all IPv6 addresses with a socket each:
// whether Go makes a dual-stack socket depends on the process's first namespace.
func (h *Host) listenDual(port uint16) ([]net.Listener, uint16, error) {
	l4, err := h.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, 0, err
	}
	port = l4.Addr().(*net.TCPAddr).AddrPort().Port()
	l6, err := h.Listen("tcp6", fmt.Sprintf("[::]:%d", port))
	if err != nil {
		l4.Close()
		return nil, 0, err
	}
	return []net.Listener{l4, l6}, port, nil
}

func closeAll[C io.Closer](cs []C) error {
	var err error
	for _, c := range cs {
		err = errors.Join(err, c.Close())
	}
	return err
}

// connSet tracks a server's connections so that it can end them, and counts
// its goroutines.
type connSet struct {
	wg sync.WaitGroup

	mu      sync.Mutex
	stopped bool
	conns   map[net.Conn]struct{}
}

func newConnSet() *connSet { return &connSet{conns: make(map[net.Conn]struct{})} }

func (s *connSet) accept(l net.Listener, handle func(net.Conn)) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors: others may be closed meanwhile
			time.Sleep(5 * time.Millisecond)
			continue
		}
		s.wg.Go(func() {
			defer c.Close()
			if s.add(c) {
				defer s.remove(c)
				handle(c)
			}
		})
	}
}

// httpState is an http.Server's ConnState. StateNew is reported before the
// connection's goroutine starts, StateClosed at its end.
func (s *connSet) httpState(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.wg.Add(1)
		if !s.add(c) {
			abort(c)
		}
	case http.StateClosed:
		s.remove(c)
		s.wg.Done()
	}
}

// add reports whether the server still runs.
func (s *connSet) add(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = struct{}{}
	return !s.stopped
}

func (s *connSet) remove(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func (s *connSet) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for c := range s.conns {
		abort(c)
	}
}

// abort closes a connection with a RST. An orderly close would leave a socket
// that keeps its namespace alive until the peer, perhaps gone, has answered.
func abort(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // closed already: nothing to abort
	}
	c.Close()
}
