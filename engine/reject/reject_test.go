package reject

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/mdlayher/netlink"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/engine/packet/packettest"
	"github.com/netverdict/netverdict/policy"
)

// TestLimit: one source gets an eighth, all together the rate, whatever the load.
func TestLimit(t *testing.T) {
	t.Parallel()
	const rate = 800
	l := newLimit(rate)
	taken := func(sources int, from, to time.Duration) (n int) {
		for now := from; now < to; now += time.Millisecond {
			for i := range sources {
				for range 3 {
					if l.take(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), int64(now)) {
						n++
					}
				}
			}
		}
		return n
	}
	if n := taken(1, 0, 10*time.Second); n < 10*rate/8 || n > 11*rate/8+1 {
		t.Errorf("one source got %d in 10 s, want %d and what a burst of 1 s adds", n, 10*rate/8)
	}
	if n := taken(100, 10*time.Second, 20*time.Second); n < 10*rate || n > 11*rate+1 {
		t.Errorf("100 sources got %d in 10 s, want %d and what a burst of 1 s adds", n, 10*rate)
	}
	if n := taken(100, 100*time.Second, 100*time.Second+time.Millisecond); n != 300 {
		t.Errorf("after a pause %d of 300 were let through", n)
	}
}

// tester is a Rejecter without sockets.
func tester(rate uint32) *Rejecter {
	return &Rejecter{limit: newLimit(rate), began: time.Now(), ring: make(chan request, ringSize), dialed: newDialed()}
}

// TestRejectNeverWaits: nobody takes anything out of the ring here.
func TestRejectNeverWaits(t *testing.T) {
	t.Parallel()
	r := tester(1 << 20)
	a := pairs["v4"]
	b := packettest.Build(t, a.client, a.server, layers.IPProtocolTCP, &layers.TCP{SrcPort: 4000, DstPort: 80, SYN: true})
	p, _ := decode(t, b)
	for range ringSize {
		if !r.Reject(&p, b) {
			t.Fatal("refused while there is room")
		}
	}
	if r.Reject(&p, b) || r.Stats().Lost != 1 {
		t.Errorf("stats %+v, want one lost", r.Stats())
	}
	p.TCPFlags = flagRST
	if !r.Reject(&p, b) {
		t.Error("a packet that is not answered needs no room")
	}
}

// TestRejectDoesNotAllocate, answered or not.
func TestRejectDoesNotAllocate(t *testing.T) {
	a := pairs["v6"]
	b := packettest.Build(t, a.client, a.server, layers.IPProtocolTCP, &layers.TCP{SrcPort: 4000, DstPort: 80, SYN: true})
	p, _ := decode(t, b)
	for name, rate := range map[string]uint32{"answered": 1 << 30, "limited": 1} {
		r := tester(rate)
		if n := testing.AllocsPerRun(300, func() {
			r.Reject(&p, b)
			select {
			case <-r.ring:
			default:
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// logged is the message of NFLOG about a packet.
func logged(t testing.TB, b []byte) []byte {
	t.Helper()
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: 1, Data: make([]byte, 4)}, {Type: attrLoggedPayload, Data: b}})
	if err != nil {
		t.Fatal(err)
	}
	data := append([]byte{2, 0, 0, 0}, attrs...)
	m := binary.NativeEndian.AppendUint32(nil, uint32(16+len(data)))
	m = binary.NativeEndian.AppendUint16(m, msgLogged)
	m = append(m, make([]byte, 10)...)
	return append(m, data...)
}

// TestDialed: a packet is found behind DNAT by what that leaves alone, and only it.
func TestDialed(t *testing.T) {
	t.Parallel()
	tcp := func(seq uint32, port layers.TCPPort) gopacket.SerializableLayer {
		return &layers.TCP{SrcPort: 4000, DstPort: port, SYN: true, Seq: seq}
	}
	for family, a := range pairs {
		d := newDialed()
		before := packettest.Build(t, a.client, a.vip, layers.IPProtocolTCP, tcp(77, 8000))
		d.take(append(logged(t, before[:min(len(before), loggedSize)]), logged(t, before)...))
		after := packettest.Build(t, a.client, a.server, layers.IPProtocolTCP, tcp(77, 80))
		p, at := decode(t, after)
		if to, ok := d.find(after, at, &p); !ok || to != netip.AddrPortFrom(a.vip, 8000) {
			t.Errorf("%s: addressed to %v, %t", family, to, ok)
		}
		for name, other := range map[string][]byte{
			"another number": packettest.Build(t, a.client, a.server, layers.IPProtocolTCP, tcp(78, 80)),
			"another source": packettest.Build(t, a.server, a.client, layers.IPProtocolTCP, tcp(77, 80)),
		} {
			p, at := decode(t, other)
			if to, ok := d.find(other, at, &p); ok {
				t.Errorf("%s, %s: found %v", family, name, to)
			}
		}
	}
}

// TestDialedForgets the oldest.
func TestDialedForgets(t *testing.T) {
	t.Parallel()
	d := newDialed()
	a := pairs["v4"]
	datagram := func(n int) []byte {
		return packettest.Build(t, a.client, a.vip, layers.IPProtocolUDP, &layers.UDP{SrcPort: 4000, DstPort: 53}, gopacket.Payload(binary.BigEndian.AppendUint32(nil, uint32(n))))
	}
	for n := range 2 * dialedKept {
		d.note(datagram(n))
	}
	known := func(n int) bool {
		b := datagram(n)
		p, at := decode(t, b)
		_, ok := d.find(b, at, &p)
		return ok
	}
	if len(d.byMark) != dialedKept || known(0) || known(dialedKept-1) || !known(dialedKept) || !known(2*dialedKept-1) {
		t.Errorf("%d are known: 0 %t, %d %t, %d %t, last %t", len(d.byMark), known(0), dialedKept-1, known(dialedKept-1), dialedKept, known(dialedKept), known(2*dialedKept-1))
	}
}

// FuzzMessages: what the kernel sends is parsed without trust.
func FuzzMessages(f *testing.F) {
	a := pairs["v4"]
	f.Add(logged(f, packettest.Build(f, a.client, a.vip, layers.IPProtocolTCP, &layers.TCP{SrcPort: 4000, DstPort: 80, SYN: true})))
	f.Add([]byte{})
	d := newDialed()
	f.Fuzz(func(t *testing.T, b []byte) {
		d.take(b)
		if len(d.byMark) > dialedKept {
			t.Errorf("%d are known", len(d.byMark))
		}
		if flow, err := parseConnection(b); (flow == nil) == (err == nil) {
			t.Errorf("%v, %v", flow, err)
		}
	})
}

// FuzzAnswers: whatever was denied, an answer is crafted or not; if it is, its length
// and checksums are right and its addresses are those of the packet.
func FuzzAnswers(f *testing.F) {
	for _, a := range pairs {
		f.Add(packettest.Build(f, a.client, a.server, layers.IPProtocolTCP, &layers.TCP{SrcPort: 4000, DstPort: 80, SYN: true}), uint16(8000))
		f.Add(packettest.Build(f, a.client, a.server, layers.IPProtocolUDP, &layers.UDP{SrcPort: 4000, DstPort: 80}, gopacket.Payload("hello")), uint16(53))
	}
	decoder := packet.NewDecoder()
	f.Fuzz(func(t *testing.T, b []byte, port uint16) {
		var p packet.Packet
		b = b[:min(len(b), maxQuote)]
		decoder.Decode(b, &p)
		if !answerable(&p) {
			return
		}
		at, ok := packet.TransportAt(b)
		if !ok {
			return
		}
		if p.Protocol == policy.TCP {
			s, err := readSegment(b, at, p.Length)
			if err != nil {
				return
			}
			if s.src != netip.AddrPortFrom(p.Src, p.SrcPort) || s.dst != netip.AddrPortFrom(p.Dst, p.DstPort) || s.flags != p.TCPFlags {
				t.Fatalf("read %+v, decoded %+v", s, p)
			}
			answer, err := s.reset()
			if err != nil {
				t.Fatal(err)
			}
			if from, to := addressesOf(answer); from != p.Dst || to != p.Src {
				t.Errorf("from %v to %v", from, to)
			}
			return
		}
		quote := b
		if p.Protocol.HasPorts() {
			quote = addressed(b, at, netip.AddrPortFrom(p.Dst, port))
		}
		if _, err := prohibited(quote, p.Src); err != nil {
			t.Error(err)
		}
	})
}
