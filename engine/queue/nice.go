package queue

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// setNice sets the priority of the calling thread, which must be locked, and
// returns how to set it back. Zero does nothing.
func setNice(nice int) (restore func(), err error) {
	if nice == 0 {
		return func() {}, nil
	}
	tid := unix.Gettid()
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	if err != nil {
		return nil, fmt.Errorf("read the worker thread's priority: %w", err)
	}
	before := 20 - raw // the system call returns 20 - nice: getpriority(2)
	if err := unix.Setpriority(unix.PRIO_PROCESS, tid, nice); err != nil {
		return nil, fmt.Errorf("set the worker thread's priority to nice %d: %w (need CAP_SYS_NICE, or choose nice 0)", nice, err)
	}
	return func() { _ = unix.Setpriority(unix.PRIO_PROCESS, tid, before) }, nil
}
