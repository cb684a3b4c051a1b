package load

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	backlog    = 4096
	chunk      = 256 << 10 // bytes of a read or write of a stream
	acceptors  = 2
	streamWait = 5 * time.Second
)

// Serve accepts connections on one port and closes them, and on another it
// reads what they send; for ever.
func Serve(w io.Writer, accept, sink uint16) error {
	closer, err := listen(accept)
	if err != nil {
		return err
	}
	reader, err := listen(sink)
	if err != nil {
		return err
	}
	for range acceptors {
		go each(closer, func(uintptr) {})
	}
	go each(reader, drain)
	if err := report(w, "listening"); err != nil {
		return err
	}
	select {}
}

func listen(port uint16) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	if err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}); err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		return 0, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return fd, nil
}

// each accepts connections, lets f have them and closes them.
func each(listener int, f func(fd uintptr)) {
	runtime.LockOSThread()
	for {
		fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if errno != 0 {
			continue
		}
		f(fd)
		rawClose(fd)
	}
}

func drain(fd uintptr) {
	buffer := make([]byte, chunk)
	for {
		n, err := unix.Read(int(fd), buffer)
		if n <= 0 || err != nil {
			return
		}
	}
}

// Stream sends over one connection for a time. What it counts was taken by the
// socket; at most a buffer of it is still on its way.
func Stream(w io.Writer, to netip.AddrPort, lasting time.Duration) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(int64(streamWait))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait); err != nil {
		return os.NewSyscallError("SO_SNDTIMEO", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		return fmt.Errorf("connect to %v: %w", to, err)
	}
	buffer := make([]byte, chunk)
	var sent int64
	start := time.Now()
	for time.Since(start) < lasting {
		n, err := unix.Write(fd, buffer)
		if err != nil {
			return fmt.Errorf("send to %v: %w", to, err)
		}
		sent += int64(n)
	}
	return report(w, Streamed{Bytes: sent, Elapsed: time.Since(start)})
}
