//go:build linux

package seccomp

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Install confines this process, all its threads, and every process that it will start,
// for good. It also sets no_new_privs, without which the kernel takes a filter from the mighty only:
// from here on no setuid program gives anybody anything. Filters that are there already stay;
// what one of them refuses is refused.
//
// Refused calls are in the kernel's log (audit type 1326), where the kernel can.
func (p *Profile) Install() error {
	program, err := p.Program(runtime.GOARCH)
	if err != nil {
		return err
	}
	runtime.LockOSThread() // no_new_privs belongs to threads; the filter takes it to all of them
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	// SPEC_ALLOW: kernels before 5.16 slow a confined process down, lest it read beside
	// what it runs in a sandbox (Speculative Store Bypass). Nothing here runs strangers' code.
	err = load(program, unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_LOG|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)
	if errors.Is(err, unix.EINVAL) { // before 4.14 and 4.17 there were no such flags
		err = load(program, unix.SECCOMP_FILTER_FLAG_TSYNC)
	}
	return err
}

// load hands a program to the kernel.
func load(program []bpf.RawInstruction, flags uintptr) error {
	thread, err := SetFilter(program, flags)
	switch {
	case errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL):
		return fmt.Errorf("install a seccomp filter: %w (kernel options CONFIG_SECCOMP and CONFIG_SECCOMP_FILTER; or the container's own profile forbids it)", err)
	case err != nil:
		return fmt.Errorf("install a seccomp filter: %w", err)
	case thread != 0:
		return fmt.Errorf("install a seccomp filter: thread %d has one of its own", thread)
	}
	return nil
}

// SetFilter is seccomp(SECCOMP_SET_MODE_FILTER). What it returns depends on the flags: a
// listener, or a thread that kept the others from being confined (seccomp(2)).
func SetFilter(program []bpf.RawInstruction, flags uintptr) (result int, err error) {
	filter := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}
