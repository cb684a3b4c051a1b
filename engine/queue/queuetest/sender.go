package queuetest

import (
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// childEnv makes a test binary a sender: the address to send to.
	childEnv = "QUEUETEST_SEND_TO"
	// counterFD is the descriptor of the shared counter in the sender.
	counterFD = 3
	// done is the sender's reply when all went well; others are errors.
	done = "done\n"

	// sendBatch is how many datagrams one sendmmsg sends.
	sendBatch = 32
	// pause is how often a full window is looked at: short against the time that
	// a window lasts, long enough to leave the processor to whoever empties it.
	pause = 100 * time.Microsecond
	// stall is how long to wait for a judgement before giving up.
	stall = 10 * time.Second
)

// init turns the process that Blaster starts, which is the test binary again,
// into the sender before any test runs.
func init() {
	if to := os.Getenv(childEnv); to != "" {
		if err := serve(to); err != nil {
			fmt.Fprintln(os.Stderr, "queuetest sender:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// serve sends what its standard input commands, until that ends.
func serve(to string) error {
	decided, err := mapCounter(os.NewFile(counterFD, "decided"))
	if err != nil {
		return err
	}
	s, err := newSender(to)
	if err != nil {
		return err
	}
	for {
		var count, window int64
		if _, err := fmt.Scanln(&count, &window); err != nil {
			return nil //nolint:nilerr // the end of its input is how the sender is told to leave
		}
		reply := done
		if err := s.run(count, window, decided); err != nil {
			reply = err.Error() + "\n"
		}
		if _, err := os.Stdout.WriteString(reply); err != nil {
			return err
		}
	}
}

// sender is a connected UDP socket with a batch of messages ready to be sent.
type sender struct {
	fd      int
	payload [18]byte // what fills the smallest Ethernet frame
	iov     unix.Iovec
	hdrs    [sendBatch]struct {
		hdr unix.Msghdr
		len uint32
	}
}

func newSender(to string) (*sender, error) {
	addr, err := netip.ParseAddr(to)
	if err != nil {
		return nil, err
	}
	s := &sender{}
	if s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// Packets in the queue are charged to their sender.
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Connect(s.fd, &unix.SockaddrInet4{Port: Port, Addr: addr.As4()}); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	s.iov.Base = &s.payload[0]
	s.iov.SetLen(len(s.payload))
	for i := range s.hdrs {
		s.hdrs[i].hdr.Iov = &s.iov
		s.hdrs[i].hdr.SetIovlen(1)
	}
	return s, nil
}

// run sends count datagrams and waits until they are judged.
func (s *sender) run(count, window int64, decided *atomic.Int64) error {
	start, sent := decided.Load(), int64(0)
	progress := time.Now()
	for judged := int64(0); judged < count; {
		if now := decided.Load() - start; now != judged {
			judged, progress = now, time.Now()
		}
		room := min(count-sent, sendBatch, window-(sent-judged))
		if room > 0 {
			n, err := s.send(int(room))
			if err != nil {
				return err
			}
			sent += int64(n)
			continue
		}
		if time.Since(progress) > stall {
			return fmt.Errorf("%d of %d packets judged, no more for %v", judged, sent, stall)
		}
		time.Sleep(pause)
	}
	return nil
}

func (s *sender) send(n int) (int, error) {
	for {
		sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.fd),
			uintptr(unsafe.Pointer(&s.hdrs[0])), uintptr(n), 0, 0, 0)
		switch errno {
		case 0:
			return int(sent), nil
		case unix.EINTR:
			continue
		}
		return 0, os.NewSyscallError("sendmmsg", errno)
	}
}
