package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/bench/peers/load"
)

// The stage's addresses and ports. Policies allow the ports of the server up to
// lastPort, and nothing above.
var (
	clientAddr = netip.MustParseAddr("10.250.0.1")
	serverAddr = netip.MustParseAddr("10.250.0.2")
	podCIDR    = netip.MustParsePrefix("10.250.0.0/24")
)

const (
	nodeName     = "bench"
	acceptPort   = 8080
	sinkPort     = 8081
	udpPort      = 10000 // the first of many
	lastPort     = 10099
	deniedPort   = 20000 // the first of many
	firstSrcPort = 1024
)

// stage is where everything happens: two hosts and the node between them.
type stage struct {
	lab            *netlab.Lab
	node           *netlab.Node
	client, server *netlab.Host
}

func newStage(ctx context.Context) (*stage, error) {
	lab, err := netlab.New(netlab.Options{})
	if err != nil {
		return nil, err
	}
	lab.CloseOnSignal(ctx)
	s := &stage{lab: lab}
	if err := s.build(ctx); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	return s, nil
}

func (s *stage) build(ctx context.Context) (err error) {
	if s.node, err = s.lab.AddNode(nodeName, netlab.NodeOptions{PodCIDRs: []netip.Prefix{podCIDR}}); err != nil {
		return err
	}
	if s.client, err = s.node.AddHost("client", clientAddr); err != nil {
		return err
	}
	if s.server, err = s.node.AddHost("server", serverAddr); err != nil {
		return err
	}
	// Datagrams end here: nothing answers them, and nobody needs to read them.
	if err := s.exec(ctx, s.server, "iptables", "-w", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "-j", "DROP"); err != nil {
		return err
	}
	// A client with few ports would end when all are taken.
	if err := setSysctl(s.client, "net/ipv4/ip_local_port_range", "1024 65535"); err != nil {
		return err
	}
	return s.serve(ctx)
}

// serve starts the server's process, which ends with the lab.
func (s *stage) serve(ctx context.Context) error {
	cmd := s.server.Command(ctx, "/proc/self/exe", loadArgs("serve", "accept", acceptPort, "sink", sinkPort)...)
	cmd.Env, cmd.Stderr = load.Environ(4), os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line := make([]byte, 64)
	if _, err := out.Read(line); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	return nil
}

// settle makes each measurement begin alike: connection tracking starts empty,
// and forgets soon what has ended, so that a full table limits nobody.
func (s *stage) settle(ctx context.Context) error {
	for _, name := range []string{"tcp_timeout_close", "udp_timeout"} {
		// The files exist when the namespace tracks connections.
		if err := setSysctl(s.node.Host, "net/netfilter/nf_conntrack_"+name, "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return s.exec(ctx, s.node.Host, "conntrack", "-F")
}

// exec runs a command in a host.
func (s *stage) exec(ctx context.Context, in *netlab.Host, name string, args ...string) error {
	return s.feed(ctx, in, nil, name, args...)
}

// feed is exec with standard input.
func (s *stage) feed(ctx context.Context, in *netlab.Host, stdin []byte, name string, args ...string) error {
	cmd := in.Command(ctx, name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// load runs a program of package load in the client to its end.
func (s *stage) load(ctx context.Context, threads int, args []string) ([]byte, error) {
	cmd := s.client.Command(ctx, "/proc/self/exe", args...)
	cmd.Env = load.Environ(threads)
	return cmd.Output()
}

func setSysctl(h *netlab.Host, name, value string) error {
	return h.Do(func() error {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("set sysctl %s: %w", name, err)
		}
		return nil
	})
}

// received counts the packets that have reached the server.
func (s *stage) received() (packets int, err error) {
	err = s.server.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		packets, err = rxPackets(string(table), "eth0")
		return err
	})
	return packets, err
}

// rxPackets reads the second column of an interface in /proc/net/dev.
func rxPackets(table, device string) (int, error) {
	for line := range strings.Lines(table) {
		name, columns, ok := strings.Cut(strings.TrimSpace(line), ":")
		if fields := strings.Fields(columns); ok && name == device && len(fields) > 1 {
			return strconv.Atoi(fields[1])
		}
	}
	return 0, fmt.Errorf("/proc/net/dev has no interface %s", device)
}

// quiet is for how long no packet must arrive for a flood to be over.
const quiet = 100 * time.Millisecond

// arrivals waits for the end of what was sent and says how much arrived since
// the count was before, and when the last of it did.
func (s *stage) arrivals(before int) (packets int, last time.Time, err error) {
	seen, last := before, time.Now()
	for time.Since(last) < quiet {
		now, err := s.received()
		if err != nil {
			return 0, last, err
		}
		if now != seen {
			seen, last = now, time.Now()
		}
		time.Sleep(2 * time.Millisecond)
	}
	return seen - before, last, nil
}
