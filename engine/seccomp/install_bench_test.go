//go:build linux

package seccomp_test

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/engine/seccomp"
	"github.com/netverdict/netverdict/engine/seccomp/seccomptest"
)

// BenchmarkCall is what a filter adds to a system call: for one that is always allowed, and for one
// that the kernel must run the program for, because its arguments matter.
func BenchmarkCall(b *testing.B) {
	for _, c := range []struct {
		name string
		call func() error
	}{
		{"always/getppid", func() error { unix.Getppid(); return nil }},
		{"by-argument/prlimit64", func() error { return unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, nil) }},
	} {
		for _, confined := range []bool{false, true} {
			b.Run(c.name+map[bool]string{true: "/confined", false: "/free"}[confined], func(b *testing.B) {
				runtime.LockOSThread() // for good, if it is confined: then it ends with this goroutine
				if confined {
					seccomptest.ConfineThread(b, seccomp.Enforcing())
				}
				for b.Loop() {
					if err := c.call(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
