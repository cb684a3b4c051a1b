package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
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

// serveHealth answers probes until ctx ends.
func serveHealth(ctx context.Context, address healthAddress, ready func() error, readyText string) error {
	l, err := address.listen(ctx)
	if err != nil {
		return err
	}
	return serve(ctx, l, healthHandler(ready, readyText))
}

func healthHandler(ready func() error, readyText string) http.Handler {
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
	return mux
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
	l, err := listenPrivate(ctx, "--status-socket", path)
	if err != nil {
		return err
	}
	return serve(ctx, l, mux)
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
