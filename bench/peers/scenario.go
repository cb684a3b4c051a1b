package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/netverdict/netverdict/bench/peers/load"
)

// metric is a value with its unit, as the benchmark format has them.
type metric struct {
	value float64
	unit  string
}

// measurement is what a scenario found: operations and metrics. elapsed is the
// time in which they happened.
type measurement struct {
	ops     int
	elapsed time.Duration
	metrics []metric
}

// scenario is one kind of traffic.
type scenario struct {
	name string
	what string
	run  func(ctx context.Context, s *stage, lasting time.Duration) (measurement, error)
}

var scenarios = []scenario{
	{"connects", "TCP connections a second, 32 clients of one service", connects},
	{"latency", "time of connect(2) at 2,000 connections a second", latency},
	{"fresh-udp", "UDP datagrams a second that arrive, each a flow of its own", freshUDP},
	{"one-way-udp", "UDP datagrams a second that arrive, one flow", oneWayUDP},
	{"stream", "throughput of one established TCP connection", stream},
	{"denied-flood", "TCP SYN a second to denied ports, as many as a sender can send", deniedFlood},
}

func chooseScenarios(list string) ([]scenario, error) {
	return choose("scenarios", list, scenarios, func(s scenario) string { return s.name })
}

const (
	clients       = 32
	latencyRate   = 2000
	freshSrcPorts = 60000 // of the flows of a flood; then the next destination port
	deniedPorts   = 1000
	// freshPackets bounds a flood of fresh flows below nf_conntrack_max, which by
	// default is 262,144 here; the table is emptied before each measurement.
	freshPackets  = 200_000
	oneWayPackets = 400_000
)

func connects(ctx context.Context, s *stage, lasting time.Duration) (measurement, error) {
	to := netip.AddrPortFrom(serverAddr, acceptPort)
	out, err := s.load(ctx, clients, loadArgs("connect", "to", to, "threads", clients, "time", lasting))
	if err != nil {
		return measurement{}, err
	}
	c, err := load.Parse[load.Connected](out)
	if err == nil && (c.Connects == 0 || c.Failed > 0) {
		err = fmt.Errorf("%d connections made, %d failed: the variant does not allow what it should", c.Connects, c.Failed)
	}
	return measurement{c.Connects, c.Elapsed, []metric{perSecond(c.Connects, c.Elapsed, "connects/s")}}, err
}

func latency(ctx context.Context, s *stage, lasting time.Duration) (measurement, error) {
	to := netip.AddrPortFrom(serverAddr, acceptPort)
	out, err := s.load(ctx, 1, loadArgs("latency", "to", to, "rate", latencyRate, "time", lasting))
	if err != nil {
		return measurement{}, err
	}
	l, err := load.Parse[load.Latencies](out)
	if err == nil && l.Failed > 0 {
		err = fmt.Errorf("%d of %d connections failed", l.Failed, l.Connects+l.Failed)
	}
	return measurement{l.Connects, lasting, []metric{
		{float64(l.P50.Nanoseconds()) / 1e3, "p50-µs"},
		{float64(l.P99.Nanoseconds()) / 1e3, "p99-µs"},
	}}, err
}

func freshUDP(ctx context.Context, s *stage, lasting time.Duration) (measurement, error) {
	return s.datagrams(ctx, lasting, "src-ports", freshSrcPorts, "dst-ports", lastPort-udpPort, "packets", freshPackets)
}

func oneWayUDP(ctx context.Context, s *stage, lasting time.Duration) (measurement, error) {
	return s.datagrams(ctx, lasting, "packets", oneWayPackets)
}

// datagrams counts what arrives of a flood.
func (s *stage) datagrams(ctx context.Context, lasting time.Duration, args ...any) (measurement, error) {
	before, err := s.received()
	if err != nil {
		return measurement{}, err
	}
	args = append(args, "to", netip.AddrPortFrom(serverAddr, udpPort), "src", clientAddr, "time", lasting)
	out, err := s.load(ctx, 1, loadArgs("send", args...))
	if err != nil {
		return measurement{}, err
	}
	ended := time.Now()
	sent, err := load.Parse[load.Sent](out)
	if err != nil {
		return measurement{}, err
	}
	arrived, last, err := s.arrivals(before)
	if err == nil && arrived == 0 {
		err = fmt.Errorf("none of %d datagrams arrived", sent.Packets)
	}
	elapsed := sent.Elapsed + max(0, last.Sub(ended))
	return measurement{arrived, elapsed, []metric{
		perSecond(arrived, elapsed, "packets/s"),
		{100 * float64(sent.Packets-arrived) / float64(sent.Packets), "%lost"},
	}}, err
}

func stream(ctx context.Context, s *stage, lasting time.Duration) (measurement, error) {
	to := netip.AddrPortFrom(serverAddr, sinkPort)
	out, err := s.load(ctx, 1, loadArgs("stream", "to", to, "time", lasting))
	if err != nil {
		return measurement{}, err
	}
	st, err := load.Parse[load.Streamed](out)
	return measurement{1, st.Elapsed, []metric{{float64(st.Bytes) / st.Elapsed.Seconds() / 1e6, "MByte/s"}}}, err
}

// deniedFlood counts what the node got rid of: the sender's softirq does the
// node's work, so it sends no faster than the node drops.
func deniedFlood(ctx context.Context, s *stage, lasting time.Duration) (measurement, error) {
	before, err := s.received()
	if err != nil {
		return measurement{}, err
	}
	out, err := s.load(ctx, 1, loadArgs("send", "to", netip.AddrPortFrom(serverAddr, deniedPort), "src", clientAddr, "time", lasting,
		"syn", true, "src-ports", freshSrcPorts, "dst-ports", deniedPorts))
	if err != nil {
		return measurement{}, err
	}
	sent, err := load.Parse[load.Sent](out)
	if err != nil {
		return measurement{}, err
	}
	arrived, _, err := s.arrivals(before)
	// A few neighbour solicitations may arrive besides.
	if err == nil && arrived > 10 {
		err = fmt.Errorf("%d of %d forbidden packets arrived", arrived, sent.Packets)
	}
	return measurement{sent.Packets, sent.Elapsed, []metric{perSecond(sent.Packets, sent.Elapsed, "packets/s")}}, err
}

func perSecond(n int, in time.Duration, unit string) metric {
	return metric{float64(n) / in.Seconds(), unit}
}
