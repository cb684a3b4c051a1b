package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// probed runs `netverdict probe`.
func probed(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(context.Background(), env{strings.NewReader(""), &out, &errs}, append([]string{"probe"}, args...))
	return code, out.String(), errs.String()
}

// TestProbe asks what an agent serves, on a socket and a port.
func TestProbe(t *testing.T) {
	notYet := errors.New("not enforcing: waiting for the first state")
	for _, text := range []string{"unix:" + filepath.Join(t.TempDir(), "health.sock"), "127.0.0.1:0"} {
		var a healthAddress
		if err := a.Set(text); err != nil {
			t.Fatal(err)
		}
		l, err := a.listen(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		served, ready := make(chan error, 1), make(chan error, 1)
		ctx, stop := context.WithCancel(t.Context())
		go func() { served <- serve(ctx, l, healthHandler(func() error { return <-ready }, "ok")) }()
		if network, _ := a.endpoint(); network == "tcp" {
			text = l.Addr().String()
		}
		demand := func(code int, stdout string, args ...string) {
			t.Helper()
			gotCode, gotOut, gotErr := probed(append(args, "--health-address", text)...)
			if gotCode != code || !strings.Contains(gotOut, stdout) || gotErr != "" {
				t.Errorf("probe %v at %s: exit code %d, %q, %q", args, text, gotCode, gotOut, gotErr)
			}
		}
		demand(exitOK, "ok", "healthz")
		ready <- notYet
		demand(exitNo, notYet.Error(), "readyz")
		ready <- nil
		demand(exitOK, "ok", "readyz")
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// TestProbeFails where there is no answer of an agent, and says what to do.
func TestProbeFails(t *testing.T) {
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer slow.Close()
	nobody := filepath.Join(t.TempDir(), "nobody.sock")
	for _, c := range []struct {
		args []string
		says []string
	}{
		{nil, []string{"want healthz or readyz, got []; see netverdict probe --help"}},
		{[]string{"livez"}, []string{`"livez"`}},
		{[]string{"readyz", "--timeout", "0s"}, []string{"--timeout 0s: want more than 0"}},
		{[]string{"readyz", "--health-address", "unix:health.sock"}, []string{"--health-address", "absolute path"}},
		{[]string{"readyz", "--health-address", "unix:" + nobody}, []string{nobody, "no agent runs here, or with another --health-address"}},
		{[]string{"readyz", "--health-address", stranger.Listener.Addr().String()}, []string{"404", "no agent's health endpoint"}},
		{[]string{"healthz", "--timeout", "50ms", "--health-address", slow.Listener.Addr().String()}, []string{"deadline exceeded"}},
	} {
		code, stdout, stderr := probed(c.args...)
		if code != exitFailed || stdout != "" {
			t.Errorf("probe %q: exit code %d, %q", c.args, code, stdout)
		}
		for _, want := range c.says {
			if !strings.Contains(stderr, want) {
				t.Errorf("probe %q does not say %q but: %s", c.args, want, stderr)
			}
		}
	}
}

func TestBadHealthAddress(t *testing.T) {
	for text, says := range map[string]string{
		"8051":                                "want HOST:PORT",
		"unix:":                               "absolute path",
		"unix:/" + strings.Repeat("long", 30): "107 bytes",
	} {
		var a healthAddress
		if err := a.Set(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}
