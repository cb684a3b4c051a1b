package queue

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
)

// procTable reads /proc/net/netfilter/nfnetlink_queue of the network namespace
// in which it was opened. /proc/net would be that of the process's first
// thread; the calling thread's, where the socket is opened too, is thread-self.
type procTable struct {
	mu   sync.Mutex
	file *os.File
	buf  [8192]byte
}

const procTablePath = "/proc/thread-self/net/netfilter/nfnetlink_queue"

// procLine is what we use of one line: seq_show in net/netfilter/nfnetlink_queue.c
// prints queue number, peer port id, packets waiting, copy mode, copy range,
// packets dropped, packets dropped for user space, last packet id, 1.
type procLine struct {
	portID uint32
	KernelStats
}

func openProcTable() (*procTable, error) {
	f, err := os.Open(procTablePath)
	if err != nil {
		return nil, fmt.Errorf("open the kernel's table of queues: %w (needs /proc and root)", err)
	}
	return &procTable{file: f}, nil
}

// read returns the line of queue num, and whether there is one.
func (t *procTable) read(num uint16) (procLine, bool, error) {
	if t == nil {
		return procLine{}, false, os.ErrInvalid
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.file.ReadAt(t.buf[:], 0) // what is beyond, after a hundred queues, is not seen
	if err != nil && err != io.EOF {
		return procLine{}, false, err
	}
	line, ok := findLine(t.buf[:n], num)
	return line, ok, nil
}

func findLine(text []byte, num uint16) (procLine, bool) {
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		var n, copyMode, copyRange uint32
		var l procLine
		_, err := fmt.Sscan(s.Text(), &n, &l.portID, &l.Waiting, &copyMode, &copyRange, &l.QueueDropped, &l.UserDropped)
		if err == nil && n == uint32(num) {
			return l, true
		}
	}
	return procLine{}, false
}

func (t *procTable) close() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.file.Close()
}
