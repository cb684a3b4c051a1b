//go:build linux

package netlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Listen listens in the host's namespace, as net.Listen does. TCP listeners
// speak plain TCP, never Multipath TCP. The caller closes the listener.
func (h *Host) Listen(network, addr string) (net.Listener, error) {
	var l net.Listener
	err := h.Do(func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(context.Background(), network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.name, err)
	}
	return l, nil
}

// ListenPacket listens in the host's namespace, as net.ListenPacket does. The
// caller closes the connection.
func (h *Host) ListenPacket(network, addr string) (net.PacketConn, error) {
	return h.listenPacket(net.ListenConfig{}, network, addr)
}

func (h *Host) listenPacket(lc net.ListenConfig, network, addr string) (net.PacketConn, error) {
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = lc.ListenPacket(context.Background(), network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.name, err)
	}
	return c, nil
}

// DialContext connects from the host's namespace. It fits
// http.Transport.DialContext. addr is an IP literal and a port (for "ip…"
// networks without port): names are refused, because Go resolves them on
// threads outside the namespace. A pending connection attempt ends with ctx or
// with the host; an established connection is the caller's to close.
func (h *Host) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := checkLiteral(network, addr); err != nil {
		return nil, fmt.Errorf("host %s: dial %s: %w", h.name, network, err)
	}
	ctx, cancel := h.bound(ctx)
	defer cancel()
	var c net.Conn
	err := h.Do(func() (err error) {
		// With a literal the dialer calls socket(2) on this thread.
		var d net.Dialer
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.name, because(ctx, err))
	}
	return c, nil
}

func checkLiteral(network, addr string) (err error) {
	if strings.HasPrefix(network, "ip") {
		_, err = netip.ParseAddr(addr)
	} else if !strings.HasPrefix(network, "unix") {
		_, err = netip.ParseAddrPort(addr)
	}
	return err
}

// bound returns ctx, ending also with the host.
func (h *Host) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(h.ctx, func() { cancel(h.removed()) })
	return ctx, func() { stop(); cancel(nil) }
}

// because puts the end of ctx, if it ended, before the error that followed
// from it.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// interruptible is what deadlines can wake: a net.Conn, a net.PacketConn, an os.File.
type interruptible interface{ SetDeadline(time.Time) error }

// interrupt fails the pending and later reads and writes of c when ctx ends,
// until stop is called. Errors of SetDeadline mean that c is closed, which
// wakes everybody, too.
func interrupt(ctx context.Context, c interruptible) (stop func()) {
	done := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = c.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !cancel() {
			<-done
			_ = c.SetDeadline(time.Time{})
		}
	}
}
