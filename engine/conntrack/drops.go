//go:build linux

package conntrack

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	soMeminfo    = 55 // SO_MEMINFO in asm-generic/socket.h, since Linux 4.12
	meminfoDrops = 8  // SK_MEMINFO_DROPS in linux/sock_diag.h
	meminfoVars  = 9  // SK_MEMINFO_VARS
)

// dropped returns how many messages the socket had no room for since the last
// call. The counter wraps, the difference does not.
func (l *Listener) dropped() (n uint64) {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return 0 // it is being closed
	}
	_ = raw.Control(func(fd uintptr) { // fails likewise
		var info [meminfoVars]uint32
		size := uint32(len(info) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, soMeminfo,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // an option that x/sys has no function for
		if errno == 0 && size >= meminfoVars*4 {
			n = uint64(info[meminfoDrops] - l.drops)
			l.drops = info[meminfoDrops]
		}
	})
	return n
}
