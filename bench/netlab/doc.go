// Package netlab builds small dual-stack networks out of network namespaces:
// nodes that route, hosts (pods) behind them, and real servers and clients in
// every one. The demo, the integration tests and the benchmarks share it.
//
//	 host "app1"          host "app3"               host "web"
//	┌──────────────┐     ┌──────────────┐          ┌──────────────┐
//	│ eth0         │     │ eth0         │          │ eth0         │
//	│ 10.0.1.1/32  │     │ 10.0.1.3/32  │          │ 10.0.2.1/32  │
//	│ fd00:1::1    │     │ fd00:1::3    │          │ fd00:2::1    │
//	└──────┬───────┘     └──────┬───────┘          └──────┬───────┘
//	       │ veth               │ veth                    │ veth
//	┌──────┴────────────────────┴───────┐          ┌──────┴───────────┐
//	│    v-app1              v-app3     │          │    v-web         │
//	│  node "n1": forwards              │          │  node "n2"       │
//	│  10.0.1.1/32 dev v-app1           │          │                  │
//	│  10.0.1.3/32 dev v-app3           │          │                  │
//	│  default via the fabric           │          │                  │
//	│  eth0 172.31.255.1, fd6e:7600::1  │          │  172.31.255.2 …  │
//	└─────────────────┬─────────────────┘          └──────┬───────────┘
//	                  │ veth                              │ veth
//	┌─────────────────┴───────────────────────────────────┴───────────┐
//	│  fabric: after Connect, routes node addresses and pod CIDRs     │
//	└─────────────────────────────────────────────────────────────────┘
//
// Links are point-to-point as with Calico and the ptp CNI plugin: a host owns
// bare /32 and /128 addresses and reaches everything through the link-scope
// gateways 169.254.1.1 and fe80::1; its node has one route per address. So all
// traffic between hosts, also those of one node, is forwarded by the node and
// meets its netfilter hooks. IPv6 neighbour discovery is real; duplicate
// address detection is off, so addresses work at once. Reverse-path filtering
// is off, so that a test may send from any source.
//
// The root namespace is never touched: no interface, address, rule or sysctl.
// Everything needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW).
//
//	lab, err := netlab.New(netlab.Options{})
//	if err != nil {
//		return err
//	}
//	defer lab.Close() // runs on panic, too
//	lab.CloseOnSignal(ctx)
//
//	n1, err := lab.AddNode("n1", netlab.NodeOptions{})
//	...
//	app1, err := n1.AddHost("app1", netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("fd00:1::1"))
//	app3, err := n1.AddHost("app3", netip.MustParseAddr("10.0.1.3"), netip.MustParseAddr("fd00:1::3"))
//	...
//	_, err = app3.ServeHTTP(80)
//	...
//	who, err := app1.HTTPGet(ctx, netip.MustParseAddrPort("10.0.1.3:80")) // "app3"
//
// # What is left behind, and when
//
// Namespaces are anonymous: descriptors of this process hold them, so they end
// with it, even by kill -9. Commands started in them die with the process too
// (Pdeathsig), but not the children of those commands: only Close and Remove,
// which kill every process found in the namespace, reach these.
//
// With Options.Named each namespace is also a file in /run/netns, for
// `ip netns exec nv-<lab>-<host> …`. Close removes the files; so does
// CloseOnSignal. A deferred Close runs when its own goroutine panics; a panic
// of another goroutine, like kill -9, leaves the files, and the next New with
// Named and the same lab name removes them.
package netlab
