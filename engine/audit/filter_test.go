package audit

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/policy"
)

// networkVM runs the part of the filter that reads the packet. Where the network
// header is, and what the kernel says about the frame, is tested with the kernel.
func networkVM(t *testing.T) *bpf.VM {
	t.Helper()
	p := program{base: 0}
	p.network()
	code, err := p.resolve()
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

type filterCase struct {
	name string
	ip   []byte
	pass bool
}

func filterCases(t *testing.T) (cases []filterCase) {
	add := func(name string, ip []byte, pass bool) { cases = append(cases, filterCase{name, ip, pass}) }
	for _, ends := range [][2]netip.Addr{{pod4, peer4}, {pod6, peer6}} {
		v := fmt.Sprintf("IPv%d ", map[bool]int{true: 4, false: 6}[ends[0].Is4()])
		w := wire{src: ends[0], dst: ends[1], sp: 40000, dp: 80, payload: "a payload of some length, which nothing depends on"}
		for flags, pass := range map[string]bool{"S": true, "SE": true, "SA": false, "A": false, "R": false, "RA": false, "": false} {
			w.flags = flags
			add(v+"TCP "+flags, w.tcp(t), pass)
		}
		for chunk := range byte(16) {
			add(fmt.Sprintf("%sSCTP chunk %d", v, chunk), w.sctp(t, chunk), chunk == 1)
		}
		add(v+"UDP", w.udp(t), true)
		queries := map[uint8]bool{8: true, 13: true, 15: true, 17: true}
		if ends[0].Is6() {
			queries = map[uint8]bool{128: true, 139: true}
		}
		for kind := range 255 {
			add(fmt.Sprintf("%sICMP %d", v, kind), w.icmp(t, uint8(kind), 1), queries[uint8(kind)])
		}
		for protocol, pass := range map[policy.Protocol]bool{2: false, 4: false, 41: false, 47: true, 50: true, 89: true, 255: true} {
			add(fmt.Sprintf("%sprotocol %d", v, protocol), over(t, ends[0], ends[1], protocol, w.raw()), pass)
		}
		for _, overlay := range []struct {
			port  uint16
			start string
			pass  bool
		}{
			{4789, "\x08\x00\x00\x00\x00\x00\x2a\x00", false},
			{8472, "\x08\x00\x00\x00\x00\x00\x01\x00", false},
			{6081, "\x00\x00\x65\x58\x00\x00\x01\x00", false},
			{51820, "\x04\x00\x00\x00\x01\x00\x00\x00", false},
			{8472, "hello, I am somebody's datagram", true},
			{6081, "hello, I am somebody's datagram", true},
			{8472, "", true},
			{8472, "\x08\x00\x00\x00", true}, // too short for VXLAN
			{53, "\x08\x00\x00\x00\x00\x00\x2a\x00", true},
		} {
			w.dp, w.payload = overlay.port, overlay.start
			add(fmt.Sprintf("%sUDP %d %q", v, overlay.port, overlay.start), w.udp(t), overlay.pass)
		}
	}
	w := wire{src: pod4, dst: peer4, sp: 40000, dp: 80, flags: "S"}
	first, later, options := w.tcp(t), w.tcp(t), w.tcp(t)
	first[6] = 0x20
	later[7] = 1
	options = append(append([]byte{0x46}, options[1:20]...), append([]byte{1, 1, 1, 0}, options[20:]...)...)
	add("a first fragment", first, true)
	add("a later fragment", later, false)
	add("IPv4 options", options, true)
	add("not IP", []byte("\x00\x01\x08\x00\x06\x04\x00\x01, an ARP request or whatever looks like neither version"), false)
	w6 := wire{src: pod6, dst: peer6, sp: 40000, dp: 80, flags: "A"}
	behind := over(t, pod6, peer6, 0, w6.raw())
	add("IPv6 extension headers are for user space", behind, true)
	return cases
}

func TestFilter(t *testing.T) {
	t.Parallel()
	vm := networkVM(t)
	for _, c := range filterCases(t) {
		n, err := vm.Run(c.ip)
		if err != nil {
			t.Fatal(err)
		}
		if (n > 0) != c.pass {
			t.Errorf("%s: passes: %t, want %t", c.name, n > 0, c.pass)
		}
	}
}

// TestFilterLink: what the whole program asks the kernel first.
func TestFilterLink(t *testing.T) {
	t.Parallel()
	raw, err := beginnings()
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) == 0 || len(raw) > unix.BPF_MAXINSNS {
		t.Fatalf("%d instructions", len(raw))
	}
	code, all := bpf.Disassemble(raw)
	if !all {
		t.Error("the program cannot be read back")
	}
	if got, want := code[0], (bpf.LoadExtension{Num: bpf.ExtLinkLayerType}); got != want {
		t.Errorf("it begins with %v, want %v", got, want)
	}
}

// FuzzFilter: the filter never lets less through than user space would judge, but
// for the overlays.
func FuzzFilter(f *testing.F) {
	f.Add([]byte{0x45})
	f.Fuzz(func(t *testing.T, ip []byte) {
		n, err := networkVM(t).Run(ip)
		if err != nil {
			t.Fatal(err)
		}
		l := newLooker()
		var s sight
		l.look(ip, WayUnknown, 0, &s)
		if n == 0 && s.packet.State == 1 && s.stage == begins {
			t.Errorf("% x begins a %v flow, and is dropped", ip, s.packet.Protocol)
		}
	})
}
