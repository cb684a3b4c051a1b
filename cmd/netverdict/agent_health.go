package main

import (
	"context"
	"fmt"
	"net"
	"strings"
)

// unixPrefix begins an address that is the path of a unix socket.
const unixPrefix = "unix:"

// healthAddress is where probes are answered: HOST:PORT, which a kubelet asks by
// itself, or unix:PATH, which `netverdict probe` asks. Two agents on a host network
// need different ones, and a path can be each pod's own. It is a flag's value.
type healthAddress struct{ text string }

func (a *healthAddress) given() bool { return a.text != "" }

// own reports whether no other agent of the host has that address, as far as agents
// are told: a path is a pod's own.
func (a *healthAddress) own() bool {
	network, _ := a.endpoint()
	return network == "unix"
}

func (a *healthAddress) String() string { return a.text }

// Type is what help calls it.
func (a *healthAddress) Type() string { return "address" }

// Set takes an address, or "" for none.
func (a *healthAddress) Set(text string) error {
	path, unix := strings.CutPrefix(text, unixPrefix)
	switch {
	case unix && !strings.HasPrefix(path, "/"):
		return fmt.Errorf("%q: want an absolute path behind %s, such as %s", text, unixPrefix, defaultHealth)
	case unix && len(path) > maxSocketPath:
		return fmt.Errorf("%q: the path of a unix socket has %d bytes at most", text, maxSocketPath)
	case !unix && text != "":
		if _, _, err := net.SplitHostPort(text); err != nil {
			return fmt.Errorf("%w (want HOST:PORT, such as 127.0.0.1:8051, or %sPATH)", err, unixPrefix)
		}
	}
	a.text = text
	return nil
}

// maxSocketPath is sun_path of unix(7) without the byte that ends it.
const maxSocketPath = 107

// endpoint is what to listen on or to dial.
func (a *healthAddress) endpoint() (network, address string) {
	if path, ok := strings.CutPrefix(a.text, unixPrefix); ok {
		return "unix", path
	}
	return "tcp", a.text
}

func (a *healthAddress) listen(ctx context.Context) (net.Listener, error) {
	network, address := a.endpoint()
	if network == "unix" {
		return listenPrivate(ctx, "--health-address", address)
	}
	return listenTCP(ctx, "--health-address", address)
}
