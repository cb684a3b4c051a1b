package main

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestProfilesAreLocal(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"": "", "127.0.0.1:6060": "", "[::1]:6060": "", "127.8.8.8:0": "",
		":6060": "loopback", "0.0.0.0:6060": "loopback", "10.0.0.1:6060": "loopback", "[::]:6060": "loopback",
		"localhost:6060": "loopback", "example.com:6060": "loopback", "6060": "such as 127.0.0.1:6060",
	} {
		o := profileOptions{address}
		err := o.validate()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("--pprof %q: %v, want %q", address, err, want)
		}
	}
}

func TestProfilesAreServed(t *testing.T) {
	t.Parallel()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := profileOptions{l.Addr().String()}
	l.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- o.serve(ctx) }()
	for path, want := range map[string]string{
		"/debug/pprof/": "goroutine", "/debug/pprof/cmdline": "", "/debug/pprof/heap?debug=1": "heap profile", "/debug/pprof/profile?seconds=1": "",
	} {
		if code, body := get(t, "http://"+o.address+path); code != http.StatusOK || !strings.Contains(body, want) || body == "" {
			t.Errorf("%s: %d, %d bytes without %q", path, code, len(body), want)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
