package audit

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// step is one copy of a packet, and who is judged for it.
type step struct {
	way  Way
	ip   []byte
	wait time.Duration // before it
	want string        // "" nobody
}

func in(ip []byte) step                { return step{way: WayIn, ip: ip} }
func out(ip []byte, want string) step  { return step{way: WayOut, ip: ip, want: want} }
func asIs(ip []byte, want string) step { return step{ip: ip, want: want} }

func (s step) after(d time.Duration) step { s.wait = d; return s }

// walk plays steps and returns what was judged for each.
func walk(t *testing.T, started bool, steps ...step) {
	t.Helper()
	at := int64(1)
	from := int64(0)
	if started {
		from = 1
	}
	f, err := newFlows(100, from)
	if err != nil {
		t.Fatal(err)
	}
	l := newLooker()
	var got, want []string
	for _, st := range steps {
		at += int64(st.wait) + int64(time.Microsecond)
		var s sight
		l.look(st.ip, st.way, at, &s)
		from, judge := f.enter(&s, 0)
		text := ""
		if judge {
			p := from.of(&s)
			text = fmt.Sprintf("%v %v→%v:%d", p.Protocol, p.Src, p.Dst, p.DstPort)
		}
		got, want = append(got, text), append(want, st.want)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("judged (-want +got):\n%s", diff)
	}
}

// translated are the copies of one TCP connection through a Service, with
// masquerading, on a bridge, and its repetition.
func TestOnePacketIsJudgedOnce(t *testing.T) {
	t.Parallel()
	syn := wire{src: pod4, dst: vip4, sp: 40000, dp: 80, seq: 7, flags: "S"}
	dnat := syn
	dnat.dst, dnat.dp = peer4, 8080
	both := dnat
	both.src, both.sp = node4, 1024
	const judged = "TCP 10.1.0.1→10.1.0.2:8080"
	t.Run("destination translated", func(t *testing.T) {
		walk(t, true, in(syn.tcp(t)), in(syn.tcp(t)), out(dnat.tcp(t), judged), out(dnat.tcp(t), ""))
	})
	t.Run("both translated", func(t *testing.T) {
		walk(t, true, in(syn.tcp(t)), out(both.tcp(t), judged), out(both.tcp(t), ""))
	})
	t.Run("masqueraded to the outside", func(t *testing.T) {
		masqueraded := syn
		masqueraded.src = node4
		walk(t, true, in(syn.tcp(t)), out(masqueraded.tcp(t), "TCP 10.1.0.1→10.96.0.1:80"))
	})
	t.Run("repeated", func(t *testing.T) {
		again := dnat
		again.flags = "SE" // or without: ECN is given up after some attempts
		walk(t, true, in(syn.tcp(t)), out(dnat.tcp(t), judged), in(syn.tcp(t)).after(time.Second), out(again.tcp(t), ""))
	})
	t.Run("another connection from the same port", func(t *testing.T) {
		next, nextOut := syn, dnat
		next.seq, nextOut.seq = 8, 8
		walk(t, true, in(syn.tcp(t)), out(dnat.tcp(t), judged), in(next.tcp(t)), out(nextOut.tcp(t), judged))
	})
	t.Run("never goes out", func(t *testing.T) {
		walk(t, true, in(syn.tcp(t)), in(syn.tcp(t)).after(time.Second))
	})
	t.Run("from the node", func(t *testing.T) {
		walk(t, true, out(both.tcp(t), "TCP 192.168.0.1→10.1.0.2:8080"))
	})
	t.Run("two at once that look alike", func(t *testing.T) {
		other, otherOut := syn, dnat
		other.src = netip.MustParseAddr("10.1.0.9")
		otherOut.src = node4
		walk(t, true, in(syn.tcp(t)), in(other.tcp(t)), out(dnat.tcp(t), judged))
	})
}

func TestRepliesAreNotJudged(t *testing.T) {
	t.Parallel()
	query := wire{src: pod4, dst: vip4, sp: 40000, dp: 53, payload: "query"}
	asked := query
	asked.dst = peer4
	answer := wire{src: peer4, dst: pod4, sp: 53, dp: 40000, payload: "answer"}
	answered := answer
	answered.src = vip4
	const judged = "UDP 10.1.0.1→10.1.0.2:53"
	t.Run("through a Service", func(t *testing.T) {
		walk(t, true, in(query.udp(t)), out(asked.udp(t), judged), in(answer.udp(t)), out(answered.udp(t), ""),
			in(query.udp(t)), out(asked.udp(t), ""))
	})
	t.Run("idle for longer than conntrack remembers", func(t *testing.T) {
		walk(t, true, in(query.udp(t)), out(asked.udp(t), judged),
			in(query.udp(t)).after(time.Minute), out(asked.udp(t), judged))
	})
	t.Run("answered, so remembered for longer", func(t *testing.T) {
		walk(t, true, in(query.udp(t)), out(asked.udp(t), judged), in(answer.udp(t)), out(answered.udp(t), ""),
			in(query.udp(t)).after(time.Minute), out(asked.udp(t), ""))
	})
	t.Run("of a flow older than the audit", func(t *testing.T) {
		walk(t, true, in(answer.udp(t)), out(answered.udp(t), ""), in(query.udp(t)), out(asked.udp(t), judged),
			in(answer.udp(t)), out(answered.udp(t), ""))
	})
	t.Run("that come late are new", func(t *testing.T) {
		walk(t, true, in(answer.udp(t)).after(time.Hour), out(answered.udp(t), "UDP 10.1.0.2→10.1.0.1:40000"))
	})
	t.Run("in a file", func(t *testing.T) {
		walk(t, false, asIs(asked.udp(t), judged), asIs(answer.udp(t), ""), asIs(asked.udp(t), ""))
	})
	ping := wire{src: pod6, dst: peer6, payload: "ping"}
	pong := wire{src: peer6, dst: pod6, payload: "ping"}
	t.Run("ping", func(t *testing.T) {
		walk(t, true, in(ping.icmp(t, 128, 9)), out(ping.icmp(t, 128, 9), "ICMPv6 fd00:1::1→fd00:1::2:0"),
			in(pong.icmp(t, 129, 9)), out(pong.icmp(t, 129, 9), ""), in(ping.icmp(t, 128, 9)), out(ping.icmp(t, 128, 9), ""),
			in(ping.icmp(t, 128, 10)), out(ping.icmp(t, 128, 10), "ICMPv6 fd00:1::1→fd00:1::2:0"))
	})
	t.Run("other protocols", func(t *testing.T) {
		there, back := over(t, pod4, peer4, 47, ping.raw()), over(t, peer4, pod4, 47, ping.raw())
		walk(t, true, in(there), out(there, "47 10.1.0.1→10.1.0.2:0"), in(back), out(back, ""), in(there), out(there, ""))
	})
}

// TestOlderConnections are counted once each, and never judged.
func TestOlderConnections(t *testing.T) {
	t.Parallel()
	f, err := newFlows(100, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := newLooker()
	data, back := wire{src: pod4, dst: peer4, sp: 40000, dp: 80, flags: "A"}, wire{src: peer4, dst: pod4, sp: 80, dp: 40000, flags: "A"}
	for i, ip := range [][]byte{data.tcp(t), back.tcp(t), data.tcp(t), data.sctp(t, 0)} {
		var s sight
		l.look(ip, WayUnknown, int64(i+1), &s)
		if _, judge := f.enter(&s, 0); judge {
			t.Errorf("packet %d was judged", i)
		}
	}
	if f.unborn != 2 {
		t.Errorf("%d connections are older, want 2", f.unborn)
	}
}

// TestFingerprint: translation and forwarding leave it alone, another packet differs.
func TestFingerprint(t *testing.T) {
	t.Parallel()
	l := newLooker()
	look := func(ip []byte) (s sight) {
		l.look(ip, WayIn, 1, &s)
		return s
	}
	w := wire{src: pod4, dst: vip4, sp: 40000, dp: 53, seq: 7, flags: "S", payload: "query"}
	translated := w
	translated.src, translated.dst, translated.sp, translated.dp = node4, peer4, 1024, 5353
	other := w
	other.seq, other.payload = 8, "quarx"
	for name, build := range map[string]func(wire) []byte{
		"TCP":  func(w wire) []byte { return w.tcp(t) },
		"UDP":  func(w wire) []byte { return w.udp(t) },
		"ICMP": func(w wire) []byte { return w.icmp(t, 8, w.sp) },
	} {
		forwarded := build(translated)
		forwarded[8]-- // TTL
		if look(build(w)).print != look(forwarded).print {
			t.Errorf("%s: the translated packet has another fingerprint", name)
		}
		if look(build(w)).print == look(build(other)).print {
			t.Errorf("%s: another packet has the same fingerprint", name)
		}
	}
	s := look(w.sctp(t, 1))
	if diff := cmp.Diff(s.flow, flowID{pod4, vip4, 40000, 53, 132}, cmp.AllowUnexported(flowID{}), cmpopts.EquateComparable(netip.Addr{})); diff != "" || s.stage != begins {
		t.Errorf("an SCTP INIT is %+v", s)
	}
}
