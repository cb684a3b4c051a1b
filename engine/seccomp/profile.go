//go:build linux

package seccomp

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Profile says what becomes of each system call.
type Profile struct {
	// Rules are tried in order; the first that covers a call decides.
	Rules []Rule
	// Default is for calls that no rule covers, and for those of a foreign
	// architecture or numbering (32-bit, x32).
	Default Action
}

// Rule is about some system calls.
type Rule struct {
	// Why they are made, or must not be.
	Why string
	// Calls are names, as in the kernel's tables. An architecture may lack some.
	Calls []string
	// When must hold of the arguments, all of it; empty means always.
	When   []Arg
	Action Action
}

// Arg is a condition on an argument: of its bits in Mask, those in Value are set and
// no others. Pointers cannot be looked behind.
type Arg struct {
	Index       uint // 0 to 5
	Mask, Value uint64
}

// Action is what the kernel does with a call: a SECCOMP_RET_ value with its data
// (linux/seccomp.h).
type Action uint32

const (
	Allow Action = unix.SECCOMP_RET_ALLOW
	// Forbid is for calls that nobody here has business with.
	Forbid = Action(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM))
	// Missing pretends that the kernel does not have the call. C libraries and Go then
	// do without, where EPERM would be the end of what they attempt.
	Missing = Action(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))
)

// refused reports whether the call is not made, and with which error.
func (a Action) refused() (unix.Errno, bool) {
	if a&unix.SECCOMP_RET_ACTION_FULL != unix.SECCOMP_RET_ERRNO {
		return 0, false
	}
	return unix.Errno(a & unix.SECCOMP_RET_DATA), true
}

// intBits are those of a C int, which is all that the kernel reads of one: what a caller
// leaves in the upper half of the register must not matter.
const intBits = 0xffffffff

// is wants an argument of type int to have a value.
func is(index uint, value int) Arg { return Arg{index, intBits, uint64(uint32(value))} }

// masked wants the bits of an argument to be as in value.
func masked(index uint, mask, value uint64) Arg { return Arg{index, mask, value} }

// validate finds what could not become a program.
func (p *Profile) validate() error {
	for i := range p.Rules {
		r := &p.Rules[i]
		for _, a := range r.When {
			if a.Index > 5 {
				return fmt.Errorf("seccomp rule %d (%v): argument %d: a system call has 6, counted from 0", i, r.Calls, a.Index)
			}
			if a.Value&^a.Mask != 0 {
				return fmt.Errorf("seccomp rule %d (%v): argument %d can never be %#x under the mask %#x", i, r.Calls, a.Index, a.Value, a.Mask)
			}
		}
	}
	return nil
}
