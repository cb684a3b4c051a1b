//go:build linux

package cluster

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"

	"github.com/netverdict/netverdict/bench/netlab"
)

// relayAddress is where a node finds the API server, as on nodes that have a load
// balancer of their own for it.
const (
	relayPort    = "6443"
	relayAddress = "127.0.0.1:" + relayPort
)

// relay carries one node's connections to the API server, which is in the
// namespace of this process, where no node gets. It can be cut.
type relay struct {
	node   *netlab.Host
	target string

	mu        sync.Mutex
	stopped   bool
	listeners []net.Listener // nil while cut
	conns     map[net.Conn]struct{}
	wg        sync.WaitGroup
}

func startRelay(node *netlab.Host, apiServer string) (*relay, error) {
	u, err := url.Parse(apiServer)
	if err != nil {
		return nil, err
	}
	r := &relay{node: node, target: u.Host, conns: map[net.Conn]struct{}{}}
	return r, r.mend()
}

// mend listens, if nobody does. A relay that was stopped stays so.
func (r *relay) mend() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped || r.listeners != nil {
		return nil
	}
	for network, address := range map[string]string{"tcp4": "0.0.0.0", "tcp6": "::"} {
		l, err := r.node.Listen(network, net.JoinHostPort(address, relayPort))
		if err != nil {
			r.cutLocked()
			return err
		}
		r.listeners = append(r.listeners, l)
		r.wg.Go(func() { r.accept(l) })
	}
	return nil
}

// cut refuses new connections and resets those that are there.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cutLocked()
}

func (r *relay) cutLocked() {
	for _, l := range r.listeners {
		_ = l.Close() // nothing is lost
	}
	for c := range r.conns {
		reset(c)
	}
	r.listeners, r.conns = nil, map[net.Conn]struct{}{}
}

func (r *relay) stop() {
	r.mu.Lock()
	r.stopped = true
	r.cutLocked()
	r.mu.Unlock()
	r.wg.Wait()
}

func (r *relay) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			r.wg.Go(func() { r.carry(conn) })
		}
	}
}

// carry connects a node's connection with one to the API server. When that does
// not answer, the node's is reset, as the API server's own kernel would.
func (r *relay) carry(conn net.Conn) {
	defer reset(conn)
	out, err := new(net.Dialer).DialContext(context.Background(), "tcp", r.target)
	if err != nil {
		return
	}
	defer reset(out)
	if !r.add(conn, out) {
		return
	}
	defer r.remove(conn, out)
	r.wg.Go(func() {
		_, _ = io.Copy(out, conn) // ends when either side does
		reset(out)
	})
	_, _ = io.Copy(conn, out)
}

func (r *relay) add(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listeners == nil {
		return false
	}
	for _, c := range conns {
		r.conns[c] = struct{}{}
	}
	return true
}

func (r *relay) remove(conns ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		delete(r.conns, c)
	}
}

// reset closes a connection at once: an orderly end would keep a removed
// namespace alive until the other side has answered.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // closed already: nothing to reset
	}
	_ = c.Close()
}
