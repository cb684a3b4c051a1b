package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Endpoints of a running agent:
//
//	--health-address  /healthz  200 while the process works
//	                  /readyz   200 once the first tree is enforced, 503 before, with why
//	--status-socket   /status   what netverdict status shows; for root only
const (
	pathHealth = "/healthz"
	pathReady  = "/readyz"
	pathStatus = "/status"
)

// readHeaderTimeout keeps a client that never finishes its request from
// holding a connection.
const readHeaderTimeout = 5 * time.Second

// serveHealth answers probes until ctx ends. The address is usually a loopback
// one: a host-network pod's probes can reach that.
func serveHealth(ctx context.Context, address string, ready func() error, readyText string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathHealth, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET "+pathReady, func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, readyText)
	})
	l, err := listenTCP(ctx, address)
	if err != nil {
		return fmt.Errorf("--health-address: %w", err)
	}
	return serve(ctx, l, mux)
}

// serveStatus answers netverdict status on a unix socket that only the owner of
// this process may connect to.
func serveStatus(ctx context.Context, path string, status func() Status, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathStatus, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(status()); err != nil {
			log.Debug("a status client left early", "error", err)
		}
	})
	l, err := listenPrivate(ctx, path)
	if err != nil {
		return fmt.Errorf("--status-socket: %w", err)
	}
	return serve(ctx, l, mux)
}

// listenPrivate makes a unix socket with mode 0600, in place of one that a
// process which is gone left behind.
func listenPrivate(ctx context.Context, path string) (net.Listener, error) {
	return listen(ctx, func() (net.Listener, error) { return bindPrivate(ctx, path) })
}

func bindPrivate(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if conn, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		conn.Close()
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

// removeSocket removes a socket, and nothing that is none.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s: there is a file, and it is no socket", path)
	}
	return os.Remove(path)
}

// serve runs a server until ctx ends.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: readHeaderTimeout}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}
