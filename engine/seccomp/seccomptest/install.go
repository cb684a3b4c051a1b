//go:build linux

package seccomptest

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/engine/seccomp"
)

// notify asks the listener.
const notify = seccomp.Action(unix.SECCOMP_RET_USER_NOTIF)

// Install installs a profile in this process, all of it; a parent that watches is asked
// about what the profile refuses. Only calls that the profile pretends are missing stay so.
func Install(p *seccomp.Profile) error {
	parent, err := strconv.Atoi(os.Getenv(socketEnv))
	if err != nil {
		return p.Install() // nobody watches
	}
	program, err := asking(p).Program(runtime.GOARCH)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	listener, err := seccomp.SetFilter(program, listening)
	if err != nil {
		return fmt.Errorf("install a seccomp filter with a listener (Linux 5.7): %w", err)
	}
	if err := unix.Sendmsg(parent, []byte{0}, unix.UnixRights(listener), nil, 0); err != nil {
		return fmt.Errorf("hand over the listener: %w", err)
	}
	// The listener ends when the parent closes it.
	unix.Close(listener)
	unix.Close(parent)
	return nil
}

// ConfineThread confines the calling thread alone, as Install of a profile confines a process. The
// goroutine must be locked to it, and never unlocked: the thread ends with it.
func ConfineThread(tb testing.TB, p *seccomp.Profile) {
	tb.Helper()
	program, err := p.Program(runtime.GOARCH)
	if err == nil {
		err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	if err == nil {
		_, err = seccomp.SetFilter(program, unix.SECCOMP_FILTER_FLAG_LOG|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)
	}
	if err != nil {
		tb.Error(err)
	}
}

// asking is the profile with questions in the place of refusals.
func asking(p *seccomp.Profile) *seccomp.Profile {
	out := &seccomp.Profile{Default: notify}
	if os.Getenv(RecordEnv) != "" {
		out.Rules = []seccomp.Rule{{Calls: handingOver, Action: seccomp.Allow}}
	}
	for _, r := range p.Rules {
		switch {
		case r.Action == seccomp.Forbid:
			r.Action = notify
		case r.Action == seccomp.Allow && os.Getenv(RecordEnv) != "":
			continue
		}
		out.Rules = append(out.Rules, r)
	}
	return out
}

// handingOver are what Go may call before the parent has the listener.
var handingOver = []string{"sendmsg", "futex", "rt_sigreturn", "rt_sigprocmask", "nanosleep", "sched_yield", "tgkill", "getpid", "madvise", "mmap"}
