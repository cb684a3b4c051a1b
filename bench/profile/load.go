package main

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
)

// traffic counts what was done.
type traffic struct{ connections, denied uint64 }

// deniedEvery is the pause between bursts of denied SYNs, deniedBurst their length:
// 10,000 a second at most, beside the connections that matter.
const (
	deniedEvery = 5 * time.Millisecond
	deniedBurst = 50
)

// load makes traffic until ctx ends; the function returned waits for its end.
func (s *stage) load(ctx context.Context, clients int) (done func() traffic) {
	var wg sync.WaitGroup
	var connections, denied atomic.Uint64
	to := netip.AddrPortFrom(addrOf(s.server), serverPort)
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := s.client.HTTPGet(ctx, to); err == nil {
					connections.Add(1)
				}
			}
		})
	}
	wg.Go(func() { s.scan(ctx, &denied) })
	return func() traffic {
		wg.Wait()
		return traffic{connections.Load(), denied.Load()}
	}
}

// scan sends SYNs to one port after the other.
func (s *stage) scan(ctx context.Context, sent *atomic.Uint64) {
	packet := synPacket(addrOf(s.scanner), addrOf(s.server))
	tick := time.NewTicker(deniedEvery)
	defer tick.Stop()
	for port := uint16(1024); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for range deniedBurst {
			port++
			binary.BigEndian.PutUint16(packet[22:], port)
			if s.scanner.SendIP(packet, addrOf(s.server)) == nil {
				sent.Add(1)
			}
		}
	}
}

func addrOf(h *netlab.Host) netip.Addr { return h.Addrs()[0] }

// synPacket is an IPv4 header (RFC 791) and a TCP header (RFC 9293) with SYN. The
// kernel fills in the lengths and checksum of the first; nobody gets to see that the
// checksum of the second is missing, as the packet is denied on its way.
func synPacket(src, dst netip.Addr) []byte {
	p := make([]byte, 40)
	p[0], p[8], p[9] = 0x45, 64, 6
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(p[20:], 40000)
	p[32], p[33] = 5<<4, 0x02
	return p
}
