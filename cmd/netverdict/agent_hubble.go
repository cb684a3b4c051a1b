package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/engine/conntrack"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/flow/hubble"
	"github.com/netverdict/netverdict/policy"
)

// defaultHubbleSocket is where install.yaml's agents serve flows.
const defaultHubbleSocket = "/run/netverdict/hubble.sock"

// hubbleOptions are the flags of the Hubble-compatible flow server.
type hubbleOptions struct {
	socket  string
	group   string
	listen  string
	tls     hubble.TLSFiles
	history int
	cluster string
}

func (o *hubbleOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.socket, "hubble-socket", "", "`path` of a unix socket that serves flows to Hubble's clients, such as "+defaultHubbleSocket+"; none by default")
	f.StringVar(&o.group, "hubble-group", "", "`group`, by name or number, that may use --hubble-socket beside root")
	f.StringVar(&o.listen, "hubble-listen", "", "`address` to serve flows on as well, with mutual TLS, such as :4244; none by default")
	f.StringVar(&o.tls.Cert, "hubble-tls-cert", "", "`path` of the server's certificate, PEM; read again when it changes, as the two below")
	f.StringVar(&o.tls.Key, "hubble-tls-key", "", "`path` of the key of --hubble-tls-cert")
	f.StringVar(&o.tls.ClientCA, "hubble-tls-client-ca", "", "`path` of the authorities whose clients may connect, PEM")
	f.IntVar(&o.history, "hubble-history", hubble.DefaultHistory, "`number` of flows to keep for clients that look back")
	f.StringVar(&o.cluster, "hubble-cluster-name", hubble.DefaultCluster, "`name` of the cluster in flows")
}

func (o *hubbleOptions) validate() error {
	switch {
	case o.history < 1:
		return fmt.Errorf("--hubble-history %d: want 1 or more flows", o.history)
	case o.group != "" && o.socket == "":
		return errors.New("--hubble-group: there is no socket to share; give --hubble-socket")
	case o.cluster == "":
		return errors.New("--hubble-cluster-name: want a name")
	}
	given := o.tls != hubble.TLSFiles{}
	complete := o.tls.Cert != "" && o.tls.Key != "" && o.tls.ClientCA != ""
	switch {
	case o.listen != "" && !complete:
		return fmt.Errorf("--hubble-listen %s: flows are served with mutual TLS only; give --hubble-tls-cert, --hubble-tls-key and --hubble-tls-client-ca", o.listen)
	case o.listen == "" && given:
		return errors.New("--hubble-tls-…: there is nothing to protect; give --hubble-listen")
	case o.listen != "":
		if _, err := o.port(); err != nil {
			return err
		}
	}
	if _, err := o.gid(); err != nil {
		return err
	}
	return nil
}

// port is that of --hubble-listen, 0 without.
func (o *hubbleOptions) port() (uint16, error) {
	if o.listen == "" {
		return 0, nil
	}
	_, text, err := net.SplitHostPort(o.listen)
	if err != nil {
		return 0, fmt.Errorf("--hubble-listen: %w", err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("--hubble-listen %s: want a port number, the same on all nodes", o.listen)
	}
	return uint16(port), nil
}

// gid is that of --hubble-group, -1 without.
func (o *hubbleOptions) gid() (int, error) {
	if o.group == "" {
		return -1, nil
	}
	if id, err := strconv.ParseUint(o.group, 10, 31); err == nil {
		return int(id), nil
	}
	g, err := user.LookupGroup(o.group)
	if err != nil {
		return 0, fmt.Errorf("--hubble-group: %w (in a container, use the number)", err)
	}
	return strconv.Atoi(g.Gid)
}

// flowServer is the flow server and where it listens.
type flowServer struct {
	*hubble.Server
	doors []door
}

// door is a listener and how connections through it are protected.
type door struct {
	net.Listener
	options []grpc.ServerOption
}

// openHubble makes the server and opens what the flags ask for, so that what is
// wrong with them is found before any rule is installed. Without such flags it
// returns nil.
func (a *agent) openHubble(ctx context.Context) (*flowServer, error) {
	o := &a.options.hubble
	if o.socket == "" && o.listen == "" {
		return nil, nil
	}
	node := a.options.nodeName
	if node == "" {
		var err error
		if node, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("name this node in flows: %w (give --node-name)", err)
		}
	}
	port, err := o.port()
	if err != nil {
		return nil, err
	}
	s := &flowServer{}
	if s.Server, err = hubble.New(hubble.Options{
		NodeName: node, Cluster: o.cluster, Version: strings.TrimPrefix(versionText(), "v"), History: o.history,
		Demand: &a.demand, PeerPort: port,
	}); err != nil {
		return nil, err
	}
	if err := s.open(ctx, o, a.log); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *flowServer) open(ctx context.Context, o *hubbleOptions, log *slog.Logger) error {
	if o.listen != "" {
		config, err := o.tls.Config(func(err error) {
			log.Error("new certificates cannot be used, the last good ones stay in use", "error", err)
		})
		if err != nil {
			return fmt.Errorf("--hubble-tls-…: %w", err)
		}
		l, err := listenTCP(ctx, "--hubble-listen", o.listen)
		if err != nil {
			return err
		}
		s.doors = append(s.doors, door{l, []grpc.ServerOption{grpc.Creds(credentials.NewTLS(config))}})
	}
	if o.socket != "" {
		l, err := o.listenSocket(ctx)
		if err != nil {
			return err
		}
		s.doors = append(s.doors, door{Listener: l})
	}
	return nil
}

func (s *flowServer) close() {
	for _, d := range s.doors {
		d.Close()
	}
}

// serve answers clients until ctx ends.
func (s *flowServer) serve(ctx context.Context, group *errgroup.Group) {
	for _, d := range s.doors {
		group.Go(func() error {
			g := grpc.NewServer(append(hubble.ServerOptions(), d.options...)...)
			s.Register(g)
			stop := context.AfterFunc(ctx, g.Stop)
			defer stop()
			if err := g.Serve(d); err != nil && ctx.Err() == nil {
				return fmt.Errorf("serve flows on %s: %w", d.Addr(), err)
			}
			return nil
		})
	}
}

// listenSocket makes the socket for root, and then for the group.
func (o *hubbleOptions) listenSocket(ctx context.Context) (net.Listener, error) {
	gid, err := o.gid()
	if err != nil {
		return nil, err
	}
	return listen(ctx, "--hubble-socket", o.socket, func() (net.Listener, error) { return o.bindSocket(ctx, gid) })
}

func (o *hubbleOptions) bindSocket(ctx context.Context, gid int) (net.Listener, error) {
	l, err := bindPrivate(ctx, o.socket)
	if err != nil || gid < 0 {
		return l, err
	}
	if err := os.Chown(o.socket, -1, gid); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := os.Chmod(o.socket, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// tellNodes hands the nodes of a snapshot to relays. Of a node with several
// addresses it is the first: an InternalIP, where the cluster lists it so.
func (a *agent) tellNodes(s *policy.Snapshot) {
	if a.flows == nil {
		return
	}
	nodes := make([]hubble.Node, 0, len(s.Nodes))
	for _, n := range s.Nodes {
		if len(n.Addrs) > 0 {
			nodes = append(nodes, hubble.Node{Name: n.Name, Addr: n.Addrs[0]})
		}
	}
	a.flows.SetNodes(nodes)
}

// askEach turns the kernel's memory of allowed kinds of flows off where all of them
// are to be logged and the kernel cannot tell of those it lets pass by itself.
func (o *agentOptions) askEach(log *slog.Logger) {
	if o.flowLog.filter != flow.All {
		return
	}
	if err := conntrack.Supported(); err != nil {
		log.Warn("for --flow-log=all every connection is asked about, which takes longer", "error", err)
		o.hook.AllowTimeout = 0
	}
}

// reportUnasked has allowed connections reported that the kernel does not ask
// about, whenever somebody wants allowed flows.
func (a *agent) reportUnasked(e *engine.Engine) (stop func()) {
	u := &engine.Unasked{
		Engine: e, Allows: a.rules.Connmarks().Allows,
		Open: func() (engine.Connections, error) { return conntrack.Open() },
		Ring: a.collector.NewLateRing(ringSize), Logger: a.log,
	}
	a.demand.OnAllowed(u.Want)
	return u.Close
}
