package hook

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What one family's command does when it has committed keeps no other from
// committing.
func TestFamiliesCommitTogether(t *testing.T) {
	ns := newNamespace(t)
	h := ns.installed(t, testConfig(NFT), both)
	noticed := func() bool {
		return !slices.ContainsFunc(h.stacks, func(s *stack) bool { return s.tables.held == nil })
	}
	for range 5 { // a commit that a slow machine takes a second for is not waited for
		ns.in(t, func() error {
			epoch := h.nextEpoch()
			return h.both(func(s *stack) error { return s.switchTo(epoch, change{revokes: true}) })
		})
		if noticed() {
			break
		}
	}
	if !noticed() {
		t.Fatal("the commands have ended: nobody noticed their commits")
	}
	for i, s := range h.stacks {
		select {
		case err := <-s.tables.held.ended:
			t.Errorf("%v: the command ended by itself: %v", s.tables, err)
		default:
		}
		rules := ns.run(t, []string{"iptables-nft-save -t mangle", "ip6tables-nft-save -t mangle"}[i])
		have, err := parseSaved(strings.NewReader(rules))
		if err != nil {
			t.Fatal(err)
		}
		if o := s.observe(&have); o.state != s.state {
			t.Errorf("%v: the kernel has %+v, want %+v", s.tables, o.state, s.state)
		}
	}
	for _, s := range h.stacks {
		ended := s.tables.held.ended
		s.tables.release()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("%v: %v", s.tables, err)
			}
		case <-time.After(patience):
			t.Fatalf("%v: the command does not end", s.tables)
		}
		s.tables.held = nil
	}
}

func TestCommitWatchTells(t *testing.T) {
	rule := func(subsystem, message uint16, af byte, table, chain string) []byte {
		attrs := attributes{}.with(unix.NFTA_RULE_TABLE, append([]byte(table), 0)).with(unix.NFTA_RULE_CHAIN, append([]byte(chain), 0))
		return netlinkMessage(subsystem<<8|message, append([]byte{af, 0, 0, 0}, attrs...))
	}
	const nft, set = unix.NFNL_SUBSYS_NFTABLES, unix.NFNL_SUBSYS_IPSET
	ours := rule(nft, unix.NFT_MSG_NEWRULE, unix.AF_INET, mangle, "NETVERDICT")
	for name, test := range map[string]struct {
		message []byte
		want    bool
	}{
		"a rule of the chain":    {ours, true},
		"behind another message": {append(rule(nft, unix.NFT_MSG_NEWRULE, unix.AF_INET, "nat", "X"), ours...), true},
		"another family":         {rule(nft, unix.NFT_MSG_NEWRULE, unix.AF_INET6, mangle, "NETVERDICT"), false},
		"another table":          {rule(nft, unix.NFT_MSG_NEWRULE, unix.AF_INET, "filter", "NETVERDICT"), false},
		"another chain":          {rule(nft, unix.NFT_MSG_NEWRULE, unix.AF_INET, mangle, "NETVERDICT-REPLY"), false},
		"a rule that goes":       {rule(nft, unix.NFT_MSG_DELRULE, unix.AF_INET, mangle, "NETVERDICT"), false},
		"another subsystem":      {rule(set, unix.NFT_MSG_NEWRULE, unix.AF_INET, mangle, "NETVERDICT"), false},
		"half a message":         {ours[:len(ours)-1], false},
		"nothing":                {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &commitWatch{family: ipv4, chain: "NETVERDICT"}
			if got := w.tells(test.message); got != test.want {
				t.Errorf("tells = %v, want %v", got, test.want)
			}
		})
	}
}

// netlinkMessage is one of request 1.
func netlinkMessage(typ uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return append(append(b, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0), body...)
}
