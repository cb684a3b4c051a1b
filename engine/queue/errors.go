package queue

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// ErrTaken: another socket, of this process or another, has the queue number.
	ErrTaken = errors.New("queue number is taken")
	// ErrPermission: the process lacks CAP_NET_ADMIN in the user namespace that
	// owns the network namespace.
	ErrPermission = errors.New("permission denied")
	// ErrUnsupported: the kernel was built without NFQUEUE, or its module is not loaded.
	ErrUnsupported = errors.New("the kernel has no nfnetlink_queue")
	// ErrClosed: the source was closed, or Run was called a second time.
	ErrClosed = errors.New("queue is closed")
)

// socketError explains why the netfilter netlink socket could not be opened.
func socketError(num uint16, err error) error {
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("queue %d: open netfilter netlink socket: %w (load module nfnetlink_queue, kernel option CONFIG_NETFILTER_NETLINK_QUEUE): %w",
			num, ErrUnsupported, err)
	}
	return fmt.Errorf("queue %d: open netfilter netlink socket: %w", num, err)
}

// bindError explains the kernel's answer to the bind request
// (nfnetlink_rcv, nfnetlink_rcv_msg and nfqnl_recv_config). EPERM has two
// causes: no capability, or a queue that belongs to another socket.
func bindError(num uint16, err error, table *procTable) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EBUSY):
		line, listed, _ := table.read(num)
		if listed || errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("bind queue %d: %w%s (stop that process or choose another queue number): %w",
				num, ErrTaken, ownerHint(line.portID), err)
		}
		return fmt.Errorf("bind queue %d: %w (need CAP_NET_ADMIN; running as %s): %w", num, ErrPermission, whoami(), err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("bind queue %d: %w, or one without the GSO and fail-open flags of Linux 3.10 (load module nfnetlink_queue, kernel option CONFIG_NETFILTER_NETLINK_QUEUE): %w",
			num, ErrUnsupported, err)
	}
	return fmt.Errorf("bind queue %d: %w", num, err)
}

// ownerHint names the likely owner: the kernel gives the first netlink socket
// of a process the process's id as port id (netlink_autobind in
// net/netlink/af_netlink.c), later ones a negative number.
func ownerHint(portID uint32) string {
	comm, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(portID), 10) + "/comm")
	if portID == 0 || err != nil {
		return fmt.Sprintf(" by netlink port %d", portID)
	}
	return fmt.Sprintf(" by process %d (%s)", portID, strings.TrimSpace(string(comm)))
}

func whoami() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "uid " + strconv.Itoa(os.Getuid())
}
