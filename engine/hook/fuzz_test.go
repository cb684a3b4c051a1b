package hook

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/gaissmai/bart"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// FuzzSaved: no output of iptables-save makes the parser panic, and no argument is
// made up: the letters of a rule's arguments are its own.
func FuzzSaved(f *testing.F) {
	for _, file := range []string{"ipv4.rules", "ipv6.rules", "hooked-already.rules", "four-queues-fail-open.rules"} {
		text, err := os.ReadFile("testdata/" + file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("# Table `mangle' is incompatible, use 'nft' tool.\n"))
	f.Add([]byte("[1:2] -A CHAIN -m comment --comment \"a \\\"b\\\" c\\\\\" -j RETURN\n:CHAIN - [0:0]\n"))
	f.Add([]byte("[18446744073709551616:0] -A X\n[-1:0] -A X\n[] -A \n-A\n\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		table, err := parseSaved(bytes.NewReader(text))
		if err != nil {
			return
		}
		for _, r := range table.rules {
			if length := len(strings.Join(r.args, "")); length > 3*len(r.spec) { // an invalid byte becomes U+FFFD
				t.Fatalf("%q has %d bytes of arguments: %q", r.spec, length, r.args)
			}
		}
	})
}

// FuzzNetfilterAnswer: whatever netfilter sends in answer to a request, reading it
// ends, and what is read of a set's header, of its entries and of connections lies
// within the message.
func FuzzNetfilterAnswer(f *testing.F) {
	addr := attributes{}.with(1, []byte{10, 0, 0, 1})
	set := attributes{}.with(nl.IPSET_ATTR_TYPENAME, []byte("hash:ip\x00")).with(nl.IPSET_ATTR_FAMILY, []byte{2}).
		with(nl.IPSET_ATTR_DATA, attributes{}.with(nl.IPSET_ATTR_MAXELEM, be32(7)).with(nl.IPSET_ATTR_TIMEOUT, be32(1))).
		with(nl.IPSET_ATTR_ADT, attributes{}.with(nl.IPSET_ATTR_DATA,
			attributes{}.with(nl.IPSET_ATTR_IP, addr).with(nl.IPSET_ATTR_CIDR, []byte{32}).with(nl.IPSET_ATTR_PORT, []byte{0, 80}).with(nl.IPSET_ATTR_PROTO, []byte{6})))
	tuple := attributes{}.with(ctaTupleIP, attributes{}.with(ctaIPv4Src, []byte{10, 0, 0, 1})).
		with(ctaTupleProto, attributes{}.with(ctaProtoNum, []byte{6}).with(ctaProtoSrcPort, []byte{1, 2}))
	connection := attributes{}.with(ctaTupleOrig, tuple).with(ctaTupleReply, tuple).with(ctaMark, be32(3)).with(ctaZone, []byte{0, 1})
	f.Add(netlinkMessage(6<<8|7, append([]byte{2, 0, 0, 0}, set...)))
	f.Add(append(netlinkMessage(1<<8, append([]byte{2, 0, 0, 0}, connection...)), netlinkMessage(unix.NLMSG_DONE, make([]byte, 4))...))
	f.Add(netlinkMessage(unix.NLMSG_ERROR, []byte{0xff, 0xff, 0xff, 0xff}))
	f.Add([]byte{16, 0, 0, 0, 3})
	f.Add(netlinkMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE, append([]byte{unix.AF_INET, 0, 0, 0},
		attributes{}.with(unix.NFTA_RULE_TABLE, []byte("mangle\x00")).with(unix.NFTA_RULE_CHAIN, []byte("NETVERDICT\x00"))...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		messages := 0
		n := &nfnetlink{seq: 1}
		_, err := n.read(b, func(attrs []byte) {
			if messages++; messages > len(b) {
				t.Fatal("it does not advance")
			}
			readEverything(t, attrs)
		})
		_ = err // damage is reported, or is not
		if w := (&commitWatch{family: ipv4, chain: "NETVERDICT"}); w.tells(b) && !bytes.Contains(b, []byte("NETVERDICT")) {
			t.Fatal("a rule of a chain that is not there")
		}
	})
}

func readEverything(t *testing.T, attrs []byte) {
	var h setHeader
	eachAttribute(attrs, func(typ uint16, data []byte) {
		h.read(typ, data)
		eachAttribute(data, func(_ uint16, data []byte) {
			var e entry
			eachAttribute(data, e.read)
			if e.addr.IsValid() && !e.addr.Is4() && !e.addr.Is6() {
				t.Fatalf("an address of no family: %v", e.addr)
			}
		})
	})
	var c tracked
	c.read(attrs)
	if len(c.original)+len(c.zone) > len(attrs) {
		t.Fatal("a connection is longer than its message")
	}
	v := review{local: &bart.Lite{}}
	if flow, ok := v.flow(&c); ok && (!flow.Src.IsValid() || !flow.Dst.IsValid()) {
		t.Fatalf("a flow without an end: %+v", flow)
	}
	_ = c.af()
}
