//go:build linux

package seccomptest

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is struct seccomp_notif (linux/seccomp.h).
type call struct {
	id           uint64
	pid, _       uint32
	number       int32
	architecture uint32
	_            uint64
	args         [6]uint64
}

// answer is struct seccomp_notif_resp.
type answer struct {
	id    uint64
	_     int64
	_     int32
	flags uint32
}

// listening asks for a listener, and for all threads.
const listening = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER

// receive takes the next call from a listener.
func receive(listener int) (*call, error) {
	c := &call{}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(c)))
	if errno != 0 {
		return nil, errno
	}
	return c, nil
}

// carryOn lets a call be made. The caller may have been interrupted, and tries again.
func carryOn(listener int, id uint64) {
	a := answer{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&a)))
}
