package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// latecomers are the listeners of an agent that takes over from another, which may
// still have their addresses.
type latecomers struct {
	log *slog.Logger

	mu      sync.Mutex
	waiting []string // flag and address of each
}

// patientKey marks a context in which addresses may be in use for a while.
type patientKey struct{}

// patient returns a context for an agent that takes over from another: what it cannot
// listen on because the address is in use, it listens on later.
func patient(ctx context.Context, late *latecomers) context.Context {
	return context.WithValue(ctx, patientKey{}, late)
}

// names are the flags and addresses that are still waited for, in no order.
func (l *latecomers) names() []string {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.waiting)
}

func (l *latecomers) add(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, what)
}

func (l *latecomers) remove(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.waiting, what); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	}
}

// listen opens a listener that a flag asks for. One whose address is in use is opened
// later, in a patient context: it accepts nobody until then.
func listen(ctx context.Context, flag, address string, open func() (net.Listener, error)) (net.Listener, error) {
	l, err := open()
	if err == nil {
		return l, nil
	}
	late, ok := ctx.Value(patientKey{}).(*latecomers)
	if !ok || !errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return newLateListener(late, flag+"="+address, err, open), nil
}

func listenTCP(ctx context.Context, flag, address string) (net.Listener, error) {
	return listen(ctx, flag, address, func() (net.Listener, error) { return new(net.ListenConfig).Listen(ctx, "tcp", address) })
}

// listenPrivate makes a unix socket with mode 0600, in place of one that a
// process which is gone left behind.
func listenPrivate(ctx context.Context, flag, path string) (net.Listener, error) {
	return listen(ctx, flag, path, func() (net.Listener, error) { return bindPrivate(ctx, path) })
}

func bindPrivate(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		conn.Close()
		return nil, inUse(path)
	case errors.Is(err, syscall.EAGAIN): // somebody listens, and is slow to accept
		return nil, inUse(path)
	}
	if err := removeSocket(path); err != nil {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// inUse is the error of a socket on which another agent answers.
func inUse(path string) error {
	return fmt.Errorf("%s: another agent answers there: %w", path, syscall.EADDRINUSE)
}

// removeSocket removes a socket, and nothing that is none.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s: there is a file, and it is no socket", path)
	}
	return os.Remove(path)
}

// lateListener listens as soon as it can.
type lateListener struct {
	late *latecomers
	what string // flag=address
	last string // the last error that was logged
	open func() (net.Listener, error)

	net.Listener
	opened, closed chan struct{}
	once           sync.Once // closes closed
}

const lateEvery = 100 * time.Millisecond

func newLateListener(late *latecomers, what string, err error, open func() (net.Listener, error)) *lateListener {
	l := &lateListener{late: late, what: what, open: open, opened: make(chan struct{}), closed: make(chan struct{})}
	late.add(what)
	l.complain(err)
	return l
}

// complain logs an error that is not the one before.
func (l *lateListener) complain(err error) {
	if l.last == err.Error() {
		return
	}
	l.last = err.Error()
	l.late.log.Warn("the address is another process's; this agent listens on it as soon as it can", "flag", l.what, "error", err)
}

// Accept is called by one goroutine, as servers do. No error of opening ends it: an
// agent that enforces does not end because nobody can watch it.
func (l *lateListener) Accept() (net.Conn, error) {
	for l.Listener == nil {
		inner, err := l.open()
		if err == nil {
			l.Listener = inner
			close(l.opened)
			l.late.remove(l.what)
			l.late.log.Info("the address is free; this agent listens on it now", "flag", l.what)
		} else {
			l.complain(err)
		}
		select {
		case <-l.closed:
			return nil, errors.Join(net.ErrClosed, l.shut())
		case <-time.After(lateEvery):
		}
	}
	return l.Listener.Accept()
}

// shut closes what was opened while Close was called, so that both have seen it.
func (l *lateListener) shut() error {
	if l.Listener == nil {
		return nil
	}
	err := l.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil // Close did
	}
	return err
}

// Close may be called by any goroutine, and again.
func (l *lateListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.late.remove(l.what)
	})
	select {
	case <-l.opened:
		return l.Listener.Close()
	default:
		return nil
	}
}

func (l *lateListener) Addr() net.Addr {
	select {
	case <-l.opened:
		return l.Listener.Addr()
	default:
		return &net.UnixAddr{Name: l.what + ", not open yet", Net: "unix"}
	}
}
