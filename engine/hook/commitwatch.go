package hook

import (
	"encoding/binary"
	"errors"
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
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netfilter netlink socket: %w", err)
	}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES))
	if err != nil {
		unix.Close(fd)
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
func (w *commitWatch) tells(b []byte) (found bool) {
	const newRule = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE
	eachMessage(b, func(typ uint16, body []byte) {
		if typ != newRule || len(body) < sizeofNfgenmsg || body[0] != w.family.af() {
			return
		}
		var table, chain string
		eachAttribute(body[sizeofNfgenmsg:], func(typ uint16, data []byte) {
			switch typ {
			case unix.NFTA_RULE_TABLE:
				table = unix.ByteSliceToString(data)
			case unix.NFTA_RULE_CHAIN:
				chain = unix.ByteSliceToString(data)
			}
		})
		found = found || table == mangle && chain == w.chain
	})
	return found
}

// eachMessage calls f for each netlink message that is whole.
func eachMessage(b []byte, f func(typ uint16, body []byte)) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[4:]), b[unix.NLMSG_HDRLEN:size])
		b = b[min(aligned(size), len(b)):]
	}
}
