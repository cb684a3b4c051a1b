package hubble

import (
	"fmt"
	"net/netip"
	"testing"

	peerpb "github.com/cilium/cilium/api/v1/peer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestNotify: all nodes first, then what changes.
func TestNotify(t *testing.T) {
	s := newServer(t, Options{Cluster: "prod.eu", PeerPort: 4244})
	one, two := Node{"node-1", nodeAddr}, Node{"node-2.local", otherNode}
	s.SetNodes([]Node{two, one, {Name: "without-address"}})
	stream, err := peerpb.NewPeerClient(dial(t, s)).Notify(t.Context(), &peerpb.NotifyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want string) {
		t.Helper()
		c, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprintf("%s %s %s %s", c.GetType(), c.GetName(), c.GetAddress(), c.GetTls().GetServerName())
		if got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
	expect("PEER_ADDED prod.eu/node-1 192.168.0.1:4244 node-1.prod-eu.hubble-grpc.cilium.io")
	expect("PEER_ADDED prod.eu/node-2.local 192.168.0.2:4244 node-2-local.prod-eu.hubble-grpc.cilium.io")
	s.SetNodes([]Node{one, two}) // nothing new
	two.Addr = netip.MustParseAddr("fd00::2")
	s.SetNodes([]Node{one, two})
	expect("PEER_UPDATED prod.eu/node-2.local [fd00::2]:4244 node-2-local.prod-eu.hubble-grpc.cilium.io")
	s.SetNodes([]Node{two})
	expect("PEER_DELETED prod.eu/node-1 192.168.0.1:4244 node-1.prod-eu.hubble-grpc.cilium.io")
}

// TestNoPeers: without TCP there is nobody a relay could reach, and it is told so.
func TestNoPeers(t *testing.T) {
	s := newServer(t, Options{})
	stream, err := peerpb.NewPeerClient(dial(t, s)).Notify(t.Context(), &peerpb.NotifyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.FailedPrecondition || !matches("--hubble-listen", err.Error()) {
		t.Errorf("%v", err)
	}
}
