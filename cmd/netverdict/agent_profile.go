package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof" // fills http.DefaultServeMux, too, which nothing here serves
	"net/netip"

	"github.com/spf13/pflag"
)

// profileOptions are the agent's flags about profiles of itself.
type profileOptions struct {
	address string
}

func (o *profileOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.address, "pprof", "", "loopback `address` to serve profiles of the agent on, at /debug/pprof/, such as 127.0.0.1:6060; none by default")
}

// validate refuses every address that is not this machine's own: a profile tells how
// the agent works and takes its time.
func (o *profileOptions) validate() error {
	if o.address == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(o.address)
	if err != nil {
		return fmt.Errorf("--pprof: %w (want an address such as 127.0.0.1:6060)", err)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.Unmap().IsLoopback() {
		return fmt.Errorf("--pprof %q: want a loopback IP address, such as 127.0.0.1:6060: profiles are for this machine only (from elsewhere, use ssh -L or kubectl exec)", o.address)
	}
	return nil
}

// serve answers go tool pprof until ctx ends.
func (o *profileOptions) serve(ctx context.Context) error {
	l, err := listenTCP(ctx, "--pprof", o.address)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return serve(ctx, l, mux)
}
