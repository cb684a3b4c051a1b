//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// space is an anonymous network namespace, alive as long as its descriptor, a
// thread, a process or a socket is in it.
type space struct {
	inode uint64 // as in "net:[inode]", the target of /proc/<pid>/ns/net
	mu    sync.RWMutex
	fd    netns.NsHandle // closed (-1) after close
}

func newSpace() (*space, error) {
	s := &space{fd: netns.None()}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return privilegeError("create a network namespace", err)
		}
		s.fd, err = netns.Get()
		return err
	})
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(s.fd), &st); err != nil {
		s.close()
		return nil, fmt.Errorf("stat a network namespace: %w", err)
	}
	s.inode = st.Ino
	return s, nil
}

// privilegeError adds the fix to a permission error.
func privilegeError(attempt string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s: %w (needs CAP_SYS_ADMIN and CAP_NET_ADMIN: run as root, e.g. with sudo, "+
			"or in a container started with --privileged)", attempt, err)
	}
	return fmt.Errorf("%s: %w", attempt, err)
}

// enter moves the calling thread into the namespace. Only for locked threads.
func (s *space) enter() error {
	s.mu.RLock() // the descriptor's number must not be reused under setns
	defer s.mu.RUnlock()
	if !s.fd.IsOpen() {
		return fmt.Errorf("enter a removed network namespace: %w", net.ErrClosed)
	}
	if err := netns.Set(s.fd); err != nil {
		return privilegeError("enter a network namespace", err)
	}
	return nil
}

// do runs fn with its thread in the namespace.
func (s *space) do(fn func() error) error {
	return onThread(func() error {
		if err := s.enter(); err != nil {
			return err
		}
		return fn()
	})
}

func (s *space) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.fd.IsOpen() {
		return nil
	}
	return s.fd.Close() // also sets it to -1
}
