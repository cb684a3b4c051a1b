package hook

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace: that of the thread that called Open. The
// hook works in it whichever goroutine calls, as the queue's socket does.
type namespace struct {
	file     *os.File
	dev, ino uint64
}

// threadNamespace is the network namespace of the calling thread; /proc/self
// would be that of the process's first thread.
const threadNamespace = "/proc/thread-self/ns/net"

func currentNamespace() (*namespace, error) {
	f, err := os.Open(threadNamespace)
	if err != nil {
		return nil, fmt.Errorf("find the network namespace: %w (is /proc mounted?)", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("find the network namespace: %w", err)
	}
	return &namespace{f, st.Dev, st.Ino}, nil
}

// do runs f on a thread in the namespace; commands that f starts are in it too.
func (n *namespace) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		moved, err := n.enter()
		if err == nil {
			err = f()
		}
		if !moved {
			runtime.UnlockOSThread()
		} // a thread that was moved ends with its goroutine
		done <- err
	}()
	return <-done
}

// enter moves the thread, unless it is there already: moving takes
// CAP_SYS_ADMIN, which an agent in its node's namespace need not have.
func (n *namespace) enter() (moved bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(threadNamespace, &st); err != nil {
		return false, fmt.Errorf("find the network namespace of a thread: %w", err)
	}
	if st.Dev == n.dev && st.Ino == n.ino {
		return false, nil
	}
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return true, fmt.Errorf("enter the network namespace of the hook: %w", err)
	}
	return true, nil
}
