//go:build linux

package conntrack

import (
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/policy"
)

// FuzzParse: no event makes the parser panic, and only TCP, UDP and SCTP have ports.
func FuzzParse(f *testing.F) {
	const newConnection = 1 << 8 // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
	tuple := func(typ byte, src, dst byte) []byte {
		return []byte{
			44, 0, typ, 0x80,
			20, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, src, 8, 0, 2, 0, 10, 0, 0, dst,
			20, 0, 2, 0x80, 5, 0, 1, 0, 6, 0, 0, 0, 6, 0, 2, 0, 0x9c, 0x40, 0, 0,
		}
	}
	event := append(append([]byte{unix.AF_INET, 0, 0, 0}, tuple(1, 1, 2)...), tuple(2, 2, 1)...)
	f.Add(uint16(newConnection), uint16(netlink.Create|netlink.Excl), append(event, 8, 0, 8, 0, 0, 0, 0, 5))
	f.Add(uint16(newConnection), uint16(netlink.Create), event)
	f.Add(uint16(newConnection|2), uint16(0), []byte{unix.AF_INET6, 0, 0, 0})
	f.Add(uint16(2<<8), uint16(0), []byte{})
	f.Fuzz(func(t *testing.T, typ, flags uint16, data []byte) {
		c, ok, err := parse(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.HeaderFlags(flags)}, Data: data})
		if ok && err != nil {
			t.Fatalf("a connection and an error: %v", err)
		}
		if ok && !c.Protocol.HasPorts() && c.SrcPort|c.DstPort != 0 {
			t.Fatalf("ports of protocol %v: %+v", c.Protocol, c)
		}
		if ok && c.Protocol == policy.TCP && c.Src.Is4In6() {
			t.Fatalf("a mapped address: %v", c.Src)
		}
	})
}
