package queuetest

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Blaster sends equal small UDP datagrams as fast as the kernel takes them. It
// is a process of its own, as a sender is in life: it shares the machine with
// what is measured, but neither its Go scheduler nor its garbage collector.
type Blaster struct {
	// Decided counts the datagrams that were judged; whoever judges them adds.
	// The process reads it to stay within the window.
	Decided *atomic.Int64

	commands io.Writer
	replies  *bufio.Reader
}

// Blaster starts a sender to Port of an IPv4 address, which must be one that
// discards. The process ends with the test.
func (n *Namespace) Blaster(to netip.Addr) *Blaster {
	n.tb.Helper()
	shared, err := newCounter()
	if err != nil {
		n.tb.Fatal(err)
	}
	defer shared.Close()
	b := &Blaster{}
	if b.Decided, err = mapCounter(shared); err != nil {
		n.tb.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+to.String(), "GOMAXPROCS=1")
	cmd.ExtraFiles = []*os.File{shared} // counterFD
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		n.tb.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		n.tb.Fatal(err)
	}
	n.Do(cmd.Start)
	n.tb.Cleanup(func() {
		stdin.Close() // ends the process
		if err := cmd.Wait(); err != nil {
			n.tb.Errorf("sender process: %v", err)
		}
	})
	b.commands, b.replies = stdin, bufio.NewReader(stdout)
	return b
}

// Send sends count datagrams, never more than window ahead of Decided, and
// returns when all were judged. The error tells of a judgement that did not come.
func (b *Blaster) Send(count, window int) error {
	if _, err := fmt.Fprintln(b.commands, count, window); err != nil {
		return fmt.Errorf("command the sender process: %w", err)
	}
	reply, err := b.replies.ReadString('\n')
	if err != nil {
		return fmt.Errorf("sender process: %w", err)
	}
	if reply != done {
		return fmt.Errorf("sender process: %s", reply[:len(reply)-1])
	}
	return nil
}

// newCounter makes the shared memory that holds Decided.
func newCounter() (*os.File, error) {
	fd, err := unix.MemfdCreate("decided", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "decided")
	return f, f.Truncate(int64(os.Getpagesize()))
}

// mapCounter maps it; the mapping stays until the process ends.
func mapCounter(f *os.File) (*atomic.Int64, error) {
	page, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return (*atomic.Int64)(unsafe.Pointer(&page[0])), nil
}
