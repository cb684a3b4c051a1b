package load

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// resetOnClose makes close(2) end a connection with RST: no TIME_WAIT uses up
// the client's ports.
var resetOnClose = unix.Linger{Onoff: 1, Linger: 0}

// connectOnce opens a connection to a server and closes it.
func connectOnce(to *unix.RawSockaddrInet4) unix.Errno {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return errno
	}
	_, _, errno = unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&resetOnClose)), unsafe.Sizeof(resetOnClose), 0) //nolint:gosec // a system call takes pointers
	if errno == 0 {
		_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4) //nolint:gosec // a system call takes pointers
	}
	rawClose(fd)
	return errno
}

// rawClose closes without the scheduler's help. Nothing can be done if it fails.
func rawClose(fd uintptr) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0) }

// Connect opens and closes connections to a server from several threads for a
// time, and ends the process: threads that still wait for an answer would keep it.
func Connect(w io.Writer, to netip.AddrPort, threads int, lasting time.Duration) error {
	var made, failed atomic.Int64
	addr := sockaddr4(to)
	start := time.Now()
	for range threads {
		go func() {
			runtime.LockOSThread()
			for {
				if connectOnce(&addr) == 0 {
					made.Add(1)
				} else {
					failed.Add(1)
				}
			}
		}()
	}
	time.Sleep(lasting)
	c := Connected{Connects: int(made.Load()), Failed: int(failed.Load()), Elapsed: time.Since(start)}
	if err := report(w, c); err != nil {
		return err
	}
	os.Exit(0)
	return nil
}

// Latency connects at a fixed rate per second, from one thread.
func Latency(w io.Writer, to netip.AddrPort, rate int, lasting time.Duration) error {
	runtime.LockOSThread()
	addr := sockaddr4(to)
	pause := time.Second / time.Duration(rate)
	took := make([]time.Duration, 0, int(lasting/pause)+1)
	failed := 0
	start := time.Now()
	for due := start; time.Since(start) < lasting; due = due.Add(pause) {
		pauseUntil(due)
		began := time.Now()
		if connectOnce(&addr) != 0 {
			failed++
			continue
		}
		took = append(took, time.Since(began))
	}
	if len(took) == 0 {
		return fmt.Errorf("none of %d connections to %v was accepted", failed, to)
	}
	slices.Sort(took)
	return report(w, Latencies{
		Connects: len(took), Failed: failed,
		P50: took[len(took)/2], P99: took[len(took)*99/100],
	})
}

// pauseUntil sleeps in the kernel; the runtime's timers wake up later than asked.
func pauseUntil(due time.Time) {
	wait := time.Until(due)
	if wait <= 0 {
		return
	}
	ts := unix.NsecToTimespec(int64(wait))
	_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0) //nolint:gosec // a system call takes pointers
}
