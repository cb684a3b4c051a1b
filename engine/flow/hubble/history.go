package hubble

import "sync"

// history keeps the last records. One goroutine writes; any number read, each from
// a position of its own. Positions count the records ever written.
//
// It is a ring under a mutex, held for a copy of a batch at most: some
// microseconds, whatever a reader does with its copy.
type history struct {
	mu    sync.Mutex
	slots []event
	next  uint64        // position of the next record
	lost  uint64        // records that never got here, in total
	wait  chan struct{} // closed at the next change; nil: nobody waits
}

func newHistory(size int) *history { return &history{slots: make([]event, size)} }

// write appends a copy of the records, and forgets the oldest.
func (h *history) write(events []event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	size := uint64(len(h.slots))
	for i := range events {
		slot := &h.slots[h.next%size]
		*slot = events[i]
		slot.lost = h.lost
		h.next++
	}
	h.wake()
}

// miss counts records that were lost before they got here.
func (h *history) miss(n uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost += n
	h.wake()
}

func (h *history) wake() {
	if h.wait != nil {
		close(h.wait)
		h.wait = nil
	}
}

// state is what a reader needs to know beside the records.
type state struct {
	oldest, next uint64
	lost         uint64
}

func (h *history) state() state {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now()
}

func (h *history) now() state {
	s := state{next: h.next, lost: h.lost}
	if size := uint64(len(h.slots)); h.next > size {
		s.oldest = h.next - size
	}
	return s
}

// read copies records from a position on, as many as there are and dst has room
// for, and returns their number and the position of the first: a later one than
// asked for if those before it have been overwritten.
func (h *history) read(dst []event, from uint64) (n int, at uint64, s state) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s = h.now()
	at = max(from, s.oldest)
	if at >= s.next {
		return 0, at, s
	}
	n = int(min(s.next-at, uint64(len(dst))))
	size := uint64(len(h.slots))
	copied := copy(dst[:n], h.slots[at%size:])
	copy(dst[copied:n], h.slots)
	return n, at, s
}

// changed returns a channel that is closed when the state is no longer s.
func (h *history) changed(s state) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.next != s.next || h.lost != s.lost {
		done := make(chan struct{})
		close(done)
		return done
	}
	if h.wait == nil {
		h.wait = make(chan struct{})
	}
	return h.wait
}
