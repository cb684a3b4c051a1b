package audit

import (
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/policy"
)

// snapLength is how many bytes of a packet are copied, its link header included:
// what a decision and a fingerprint read, behind any header that is likely.
const snapLength = 320

// netOffset makes a load relative to the network header, wherever the link layer
// put it (SKF_NET_OFF in linux/filter.h).
const netOffset uint32 = 0xfff00000

// Ports and contents by which the packets of overlay networks are told from a
// pod's: what they carry is seen on its own interface, inside.
const (
	portVXLAN      = 4789 // RFC 7348 section 5
	portVXLANLinux = 8472 // the kernel's default before there was an RFC; flannel, Cilium
	portGeneve     = 6081 // RFC 8926 section 3.3
	portWireGuard  = 51820

	vxlanFlags     = 0x08000000 // flags and reserved bits, RFC 7348 section 5
	geneveEthernet = 0x6558     // protocol type, RFC 8926 section 3.4
	wireGuardData  = 0x04000000 // message type and reserved bits, little-endian 4
)

const (
	protocolIGMP   = 2
	protocolIPIP   = 4  // RFC 2003
	protocolIPv6   = 41 // RFC 4213
	arphrdLoopback = unix.ARPHRD_LOOPBACK
)

// beginnings is the filter of the live source: it passes what may begin a flow,
// however it is linked or tagged, and drops, in the kernel, established TCP, the
// answers of ICMP, neighbour discovery, the outside of overlays, and the loopback.
func beginnings() ([]bpf.RawInstruction, error) {
	p := program{base: netOffset}
	p.link()
	p.network()
	return p.assemble()
}

// program builds a BPF program with named places to jump to.
type program struct {
	base  uint32 // of the network header
	code  []bpf.Instruction
	jumps map[int][2]string // by instruction: where to go if it is true, if not
	at    map[string]int
}

const (
	pass = "pass"
	drop = "drop"
	next = "" // the next instruction
)

func (p *program) add(i ...bpf.Instruction) { p.code = append(p.code, i...) }

func (p *program) label(name string) {
	if p.at == nil {
		p.at = map[string]int{}
	}
	p.at[name] = len(p.code)
}

// when jumps by comparing A with a value.
func (p *program) when(value uint32, yes, no string) {
	if p.jumps == nil {
		p.jumps = map[int][2]string{}
	}
	p.jumps[len(p.code)] = [2]string{yes, no}
	p.add(bpf.JumpIf{Cond: bpf.JumpEqual, Val: value})
}

// always jumps.
func (p *program) always(to string) { p.when(0, to, to) }

// net loads size bytes from an offset within the network header.
func (p *program) net(offset uint32, size int) {
	p.add(bpf.LoadAbsolute{Off: p.base + offset, Size: size})
}

// transport loads size bytes from an offset behind X, the length of the network header.
func (p *program) transport(offset uint32, size int) {
	p.add(bpf.LoadIndirect{Off: p.base + offset, Size: size})
}

// link drops what is not IP. The network header of a frame that carries its VLAN
// tag in band is where it says only when it goes out; usually the tag is beside the
// frame, and the protocol is that of IP.
func (p *program) link() {
	p.add(bpf.LoadExtension{Num: bpf.ExtLinkLayerType})
	p.when(arphrdLoopback, drop, next)
	p.add(bpf.LoadExtension{Num: bpf.ExtProto})
	p.when(unix.ETH_P_IP, "network", next)
	p.when(unix.ETH_P_IPV6, "network", next)
	p.when(unix.ETH_P_8021Q, "tagged", next)
	p.when(unix.ETH_P_8021AD, "tagged", drop)
	p.label("tagged")
	p.add(bpf.LoadExtension{Num: bpf.ExtType})
	p.when(unix.PACKET_OUTGOING, "network", drop)
}

func (p *program) network() {
	p.label("network")
	p.net(0, 1)
	p.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0})
	p.when(0x40, "v4", next)
	p.when(0x60, "v6", drop)
	p.v4()
	p.v6()
	p.tcp()
	p.udp()
	p.sctp()
	p.icmp("icmp4", 8, 13, 15, 17)
	p.icmp("icmp6", 128, 139)
	p.label(drop)
	p.add(bpf.RetConstant{Val: 0})
	p.label(pass)
	p.add(bpf.RetConstant{Val: snapLength})
}

// v4 drops later fragments, which have no ports, and finds the transport header.
func (p *program) v4() {
	p.label("v4")
	p.net(6, 2)
	p.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x1fff})
	p.when(0, next, drop)
	p.net(0, 1)
	p.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x0f}, bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 2}, bpf.TAX{})
	p.net(9, 1)
	p.when(uint32(policy.ICMP), "icmp4", "protocols")
}

// v6 looks behind no extension header: whoever uses one is looked at.
func (p *program) v6() {
	p.label("v6")
	p.add(bpf.LoadConstant{Dst: bpf.RegX, Val: 40})
	p.net(6, 1)
	p.when(uint32(policy.ICMPv6), "icmp6", next)
	p.label("protocols")
	p.when(uint32(policy.TCP), "tcp", next)
	p.when(uint32(policy.UDP), "udp", next)
	p.when(uint32(policy.SCTP), "sctp", next)
	p.when(protocolIGMP, drop, next)
	p.when(protocolIPIP, drop, next)
	p.when(protocolIPv6, drop, pass)
}

func (p *program) tcp() {
	p.label("tcp")
	p.transport(13, 1)
	p.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: tcpSYN | tcpACK})
	p.when(tcpSYN, pass, drop)
}

func (p *program) sctp() {
	p.label("sctp")
	p.transport(12, 1)
	p.when(sctpInit, pass, drop)
}

func (p *program) icmp(name string, queries ...uint32) {
	p.label(name)
	p.transport(0, 1)
	for _, q := range queries[:len(queries)-1] {
		p.when(q, pass, next)
	}
	p.when(queries[len(queries)-1], pass, drop)
}

// udp drops the outside of overlays. A datagram too short for one is a pod's.
func (p *program) udp() {
	p.label("udp")
	p.transport(2, 2)
	for _, port := range []uint32{portVXLAN, portVXLANLinux, portGeneve, portWireGuard} {
		p.when(port, "overlay", next)
	}
	p.always(pass)
	p.label("overlay")
	p.transport(4, 2)
	p.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xfff0}) // 16 bytes and more
	p.when(0, pass, next)
	p.transport(8, 4)
	p.when(vxlanFlags, drop, next)
	p.when(wireGuardData, drop, next)
	p.transport(10, 2)
	p.when(geneveEthernet, drop, pass)
}

// assemble resolves the jumps.
func (p *program) assemble() ([]bpf.RawInstruction, error) {
	code, err := p.resolve()
	if err != nil {
		return nil, err
	}
	return bpf.Assemble(code)
}

func (p *program) resolve() ([]bpf.Instruction, error) {
	for i, to := range p.jumps {
		var skip [2]uint8
		for branch, name := range to {
			if name == next {
				continue
			}
			at, ok := p.at[name]
			if distance := at - i - 1; !ok || distance < 0 || distance > 255 {
				return nil, fmt.Errorf("BPF instruction %d cannot jump to %q", i, name)
			}
			skip[branch] = uint8(at - i - 1)
		}
		jump := p.code[i].(bpf.JumpIf)
		jump.SkipTrue, jump.SkipFalse = skip[0], skip[1]
		p.code[i] = jump
	}
	return p.code, nil
}
