//go:build linux

package netlab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
)

// Reply is what a lab server says about an exchange.
type Reply struct {
	Host    string         // the name of the host that answered
	Remote  netip.AddrPort // the client's address as the server saw it
	Payload []byte         // what was echoed (UDP)
}

// header renders the line that begins every reply. A new slice each time.
func (r Reply) header() []byte {
	return fmt.Appendf(nil, "host=%s remote=%s\n", r.Host, r.Remote)
}

func parseReply(b []byte) (Reply, error) {
	line, payload, _ := bytes.Cut(b, []byte("\n"))
	var r Reply
	var remote string
	if _, err := fmt.Sscanf(string(line), "host=%s remote=%s", &r.Host, &remote); err != nil {
		return Reply{}, fmt.Errorf("the answer %.80q is not a lab server's: %w", line, err)
	}
	var err error
	if r.Remote, err = netip.ParseAddrPort(remote); err != nil {
		return Reply{}, fmt.Errorf("the answer %.80q is not a lab server's: %w", line, err)
	}
	r.Payload = payload
	return r, nil
}

// HTTPGet makes one request over a new connection to a ServeHTTP server and
// returns the name of the host that answered. Bound it with ctx.
func (h *Host) HTTPGet(ctx context.Context, to netip.AddrPort) (identity string, err error) {
	r, err := h.HTTPExchange(ctx, to)
	return r.Host, err
}

// HTTPExchange is HTTPGet with all that the server told.
func (h *Host) HTTPExchange(ctx context.Context, to netip.AddrPort) (Reply, error) {
	ctx, cancel := h.bound(ctx)
	defer cancel()
	// No Proxy: the environment's does not apply here.
	transport := &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	u := &url.URL{Scheme: "http", Host: to.String(), Path: "/"}
	req := (&http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: http.Header{}}).WithContext(ctx)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return Reply{}, fmt.Errorf("get %s: %w", u, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return Reply{}, fmt.Errorf("get %s: read the answer: %w", u, because(ctx, err))
	}
	return parseReply(body)
}

// TCPExchange sends payload over a new connection to a ServeTCP server and
// returns as many bytes of the echo. Bound it with ctx.
func (h *Host) TCPExchange(ctx context.Context, to netip.AddrPort, payload []byte) ([]byte, error) {
	ctx, cancel := h.bound(ctx)
	defer cancel()
	c, err := h.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer interrupt(ctx, c)()
	if _, err := c.Write(payload); err != nil {
		return nil, fmt.Errorf("host %s: write to %s: %w", h.name, to, because(ctx, err))
	}
	echo := make([]byte, len(payload))
	if n, err := io.ReadFull(c, echo); err != nil {
		return nil, fmt.Errorf("host %s: read the echo of %s (%d of %d bytes): %w", h.name, to, n, len(echo), because(ctx, err))
	}
	return echo, nil
}

// UDPExchange sends one datagram to a ServeUDP server and waits for the answer
// from exactly the address asked. It does not repeat a lost datagram. Bound it
// with ctx.
func (h *Host) UDPExchange(ctx context.Context, to netip.AddrPort, payload []byte) (Reply, error) {
	ctx, cancel := h.bound(ctx)
	defer cancel()
	c, err := h.DialContext(ctx, "udp", to.String()) // connected: takes only the peer's datagrams
	if err != nil {
		return Reply{}, err
	}
	defer c.Close()
	defer interrupt(ctx, c)()
	if _, err := c.Write(payload); err != nil {
		return Reply{}, fmt.Errorf("host %s: send to %s: %w", h.name, to, because(ctx, err))
	}
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	if err != nil {
		return Reply{}, fmt.Errorf("host %s: read the answer of %s: %w", h.name, to, because(ctx, err))
	}
	return parseReply(buf[:n])
}
