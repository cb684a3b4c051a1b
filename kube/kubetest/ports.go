package kubetest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Ports are drawn below the range that Linux gives outgoing connections by default
// (ip_local_port_range, 32768–60999): a port must still be free when a killed
// server comes back to it.
const (
	firstPort = 20000
	lastPort  = 32767
)

// port is a TCP port that no other control plane of this user takes while it is
// held, in this process or another. The lock is one byte of a file that all of
// them share, the one at the port's number; it ends with the descriptor.
type port struct {
	number uint16
	lock   *os.File
}

func (p *port) release() { _ = p.lock.Close() } // nothing was written

// reserve finds a free port of an address.
func reserve(addr netip.Addr) (*port, error) {
	root, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find a place for port locks: %w (set XDG_CACHE_HOME or HOME)", err)
	}
	dir := filepath.Join(root, "netverdict", "kubetest")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make a place for port locks: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "ports"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the port locks: %w", err)
	}
	number, err := lockFree(lock, addr)
	if err != nil {
		_ = lock.Close() // nothing was written
		return nil, fmt.Errorf("find a free port of %s between %d and %d: %w", addr, firstPort, lastPort, err)
	}
	return &port{number: number, lock: lock}, nil
}

func lockFree(lock *os.File, addr netip.Addr) (uint16, error) {
	err := errors.New("all that were tried are reserved")
	for range 200 {
		number := uint16(firstPort + rand.IntN(lastPort-firstPort+1))
		span := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: int64(number), Len: 1}
		if unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &span) != nil {
			continue // somebody else's
		}
		if err = bindable(netip.AddrPortFrom(addr, number)); err == nil {
			return number, nil
		}
		span.Type = unix.F_UNLCK
		if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &span); err != nil {
			return 0, fmt.Errorf("unlock port %d: %w", number, err)
		}
	}
	return 0, err
}

func bindable(at netip.AddrPort) error {
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		return err
	}
	return l.Close()
}
