package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// log is what an agent says, from any goroutine.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newLatecomers() (*latecomers, *log) {
	said := &log{}
	return &latecomers{log: slog.New(slog.NewTextHandler(said, nil))}, said
}

// TestLateListener accepts as soon as the address is free, and says so.
func TestLateListener(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s.sock")} {
		t.Run(network, func(t *testing.T) {
			open := func(ctx context.Context) (net.Listener, error) {
				if network == "unix" {
					return listenPrivate(ctx, "--flag", address)
				}
				return listenTCP(ctx, "--flag", address)
			}
			late, said := newLatecomers()
			ctx := patient(t.Context(), late)
			early, err := open(ctx)
			if err != nil {
				t.Fatal(err)
			}
			address = early.Addr().String()
			if _, err := open(t.Context()); !errors.Is(err, syscall.EADDRINUSE) || !strings.HasPrefix(err.Error(), "--flag: ") {
				t.Errorf("in an ordinary context: %v", err)
			}
			l, err := open(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if waiting := late.names(); !slices.Equal(waiting, []string{"--flag=" + address}) {
				t.Errorf("it waits for %q", waiting)
			}
			demandOneAnswer(t, l, func() { early.Close() })
			if waiting := late.names(); len(waiting) != 0 {
				t.Errorf("it listens, and waits for %q", waiting)
			}
			for _, want := range []string{"as soon as it can", "it listens on it now", "--flag=" + address} {
				if !strings.Contains(strings.ReplaceAll(said.String(), "this agent", "it"), want) {
					t.Errorf("it never said %q but:\n%s", want, said)
				}
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// demandOneAnswer makes the listener's address free and connects until it answers.
func demandOneAnswer(t *testing.T, l net.Listener, free func()) {
	t.Helper()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.WriteString(c, "late")
			c.Close()
		}
		served <- err
	}()
	free()
	for deadline := time.Now().Add(agentPatience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		a := l.Addr()
		c, err := net.Dial(a.Network(), a.String())
		if err != nil {
			continue
		}
		got, err := io.ReadAll(c)
		c.Close()
		if err == nil && string(got) == "late" {
			break
		}
	}
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(agentPatience):
		t.Fatal("nobody was accepted")
	}
}

// TestLateListenerGoesOn after an error that is not about the address: nobody can
// watch the agent, but it enforces.
func TestLateListenerGoesOn(t *testing.T) {
	late, said := newLatecomers()
	errs := []error{syscall.EADDRINUSE, os.ErrPermission, os.ErrPermission}
	l, err := listen(patient(t.Context(), late), "--flag", "somewhere", func() (net.Listener, error) {
		if len(errs) == 0 {
			return net.Listen("tcp", "127.0.0.1:0")
		}
		err := errs[0]
		errs = errs[1:]
		return nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for l.Addr().Network() == "unix" { // not open yet
			time.Sleep(10 * time.Millisecond)
		}
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
			c.Close()
		}
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	l.Close()
	if got := strings.Count(said.String(), os.ErrPermission.Error()); got != 1 {
		t.Errorf("the same error twice is said %d times:\n%s", got, said)
	}
}

// TestLateListenerEnds while it waits.
func TestLateListenerEnds(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	late, _ := newLatecomers()
	never, err := listenTCP(patient(t.Context(), late), "--flag", other.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := never.Accept()
		accepted <- err
	}()
	for range 2 { // a gRPC server closes it, and so does who opened it
		if err := never.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed before it was open: %v", err)
	}
	if waiting := late.names(); len(waiting) != 0 {
		t.Errorf("it has ended, and waits for %q", waiting)
	}
}

// TestSocketIsPrivate: nobody but root may connect; one that kill -9 left is replaced.
func TestSocketIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "below", "s.sock")
	l, err := listenPrivate(t.Context(), "--flag", path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as kill -9 leaves it
	l.Close()
	if l, err = listenPrivate(t.Context(), "--flag", path); err != nil {
		t.Fatalf("in place of what a dead process left: %v", err)
	}
	l.Close()
}
