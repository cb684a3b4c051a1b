package hook

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// commitWatch hears of transactions in nf_tables.
type commitWatch struct {
	*os.File
	family family
	chain  string
}

// commitPatience is how long await waits: commits take a few milliseconds, and a
// command that is only slow loses nothing but the hurry.
const commitPatience = time.Second

// watchCommits listens in the namespace of the calling thread.
func watchCommits(f family, chain string) (*commitWatch, error) {
	fd, err := openNetfilter(unix.SOCK_NONBLOCK, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
	})
	if err != nil {
		return nil, fmt.Errorf("listen to nf_tables: %w", err)
	}
	return &commitWatch{os.NewFile(uintptr(fd), "nf_tables"), f, chain}, nil
}

// await returns true when a transaction took place that gave the chain rules. It is
// false where nobody knows: messages were lost, or the watch was closed, or nothing
// happened for commitPatience.
func (w *commitWatch) await() bool {
	buf := make([]byte, dumpBuffer)
	if err := w.SetReadDeadline(time.Now().Add(commitPatience)); err != nil {
		return false
	}
	for {
		n, err := w.Read(buf)
		if err != nil {
			return false
		}
		if w.tells(buf[:n]) {
			return true
		}
	}
}

// tells looks for a rule of the chain: the kernel sends what a transaction changed
// when all of it is in force (nf_tables_commit).
func (w *commitWatch) tells(b []byte) bool {
	for len(b) >= unix.NLMSG_HDRLEN {
		m, rest, err := cutMessage(b)
		if err != nil {
			return false
		}
		if w.isRule(&m) {
			return true
		}
		b = rest
	}
	return false
}

func (w *commitWatch) isRule(m *message) bool {
	const newRule = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE
	if m.typ != newRule || len(m.body) < sizeofNfgenmsg || m.body[0] != w.family.af() {
		return false
	}
	var table, chain string
	eachAttribute(m.body[sizeofNfgenmsg:], func(typ uint16, data []byte) {
		switch typ {
		case unix.NFTA_RULE_TABLE:
			table = unix.ByteSliceToString(data)
		case unix.NFTA_RULE_CHAIN:
			chain = unix.ByteSliceToString(data)
		}
	})
	return table == mangle && chain == w.chain
}
