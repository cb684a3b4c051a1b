package queue

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Memory is a Source without a kernel, for tests: packets are injected, answers
// are read back. To the handler it behaves as Queue does; what the kernel would
// complain about is counted the same way.
type Memory struct {
	// FailOpen is Config.FailOpen. It must not change while Run runs.
	FailOpen bool

	counters counters

	mu       sync.Mutex
	changed  sync.Cond // of anything below
	lastID   uint32
	pending  []Packet
	open     map[uint32]bool // read and not answered
	answered []Answered
	ticks    []time.Time
	woken    bool
	busy     bool // the handler is being called
	started  bool
	stopping bool
	ended    bool

	payload []byte // what the handler sees, owned by the loop
}

// Answered is an answer that was given to a packet.
type Answered struct {
	ID uint32
	Answer
}

// NewMemory returns an empty source.
func NewMemory() *Memory {
	m := &Memory{open: make(map[uint32]bool)}
	m.changed.L = &m.mu
	return m
}

// Inject queues a copy of p and returns the id it was given; p.ID is ignored.
// Length and Family are filled in from the payload when they are zero.
func (m *Memory) Inject(p Packet) (id uint32) {
	p.Payload = slices.Clone(p.Payload)
	if p.Length == 0 {
		p.Length = uint32(len(p.Payload))
	}
	if p.Family == 0 && len(p.Payload) > 0 {
		p.Family = map[byte]uint8{4: unix.AF_INET, 6: unix.AF_INET6}[p.Payload[0]>>4]
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastID++
	p.ID = m.lastID
	m.pending = append(m.pending, p)
	if m.ended {
		m.answerRest()
	}
	m.changed.Broadcast()
	return p.ID
}

// Answers returns all answers so far, in the order in which they were given.
// Packets on hold are not among them.
func (m *Memory) Answers() []Answered {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.answered)
}

// Settle returns when Run has nothing left to do, or has returned: what was
// injected before is answered or on hold, and BatchEnd, OnWake and OnTick were called.
func (m *Memory) Settle() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for !m.ended && (m.due() || m.busy || !m.started) {
		m.changed.Wait()
	}
}

// Tick makes Run call the handler's OnTick with this time.
func (m *Memory) Tick(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ticks = append(m.ticks, now)
	m.changed.Broadcast()
}

// Wake implements Source.
func (m *Memory) Wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.woken = true
	m.changed.Broadcast()
}

// Run implements Source.
func (m *Memory) Run(ctx context.Context, h Handler) error {
	m.mu.Lock()
	if m.started {
		m.mu.Unlock()
		return fmt.Errorf("run memory queue: %w", ErrClosed)
	}
	m.started = true
	m.mu.Unlock()

	defer context.AfterFunc(ctx, m.stop)()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer m.end()
	for m.next() {
		m.callOwner(h)
		m.answerBatch(h)
	}
	return nil
}

// Release implements Source.
func (m *Memory) Release(id uint32, a Answer) {
	if a.Action != Hold {
		m.counters.released.Add(1)
		m.answer(id, a)
	}
}

// Stats implements Source.
func (m *Memory) Stats() Stats {
	s := m.counters.stats()
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Kernel.Waiting = uint32(len(m.pending) + len(m.open))
	return s
}

// Close implements Source.
func (m *Memory) Close() error {
	m.stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.started {
		m.started, m.ended = true, true
		m.answerRest()
	}
	for !m.ended {
		m.changed.Wait()
	}
	return nil
}

func (m *Memory) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopping = true
	m.changed.Broadcast()
}

// due says whether the loop has something to do; m.mu is held.
func (m *Memory) due() bool { return len(m.pending) > 0 || len(m.ticks) > 0 || m.woken }

// next waits for something to do; false means to end.
func (m *Memory) next() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy = false
	m.changed.Broadcast()
	for !m.due() && !m.stopping {
		m.changed.Wait()
	}
	m.busy = !m.stopping
	return m.busy
}

// callOwner makes the calls that are due besides packets.
func (m *Memory) callOwner(h Handler) {
	m.mu.Lock()
	woken, ticks := m.woken, m.ticks
	m.woken, m.ticks = false, nil
	m.mu.Unlock()
	if w, ok := h.(Waker); ok && woken {
		w.OnWake()
	}
	if t, ok := h.(Ticker); ok {
		for _, now := range ticks {
			t.OnTick(now)
		}
	}
}

func (m *Memory) answerBatch(h Handler) {
	m.mu.Lock()
	batch := m.pending[:min(len(m.pending), defaultBatch)]
	m.pending = m.pending[len(batch):]
	for _, p := range batch {
		m.open[p.ID] = true
	}
	m.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	began := time.Now()
	for i := range batch {
		m.answer(batch[i].ID, m.ask(h, &batch[i]))
	}
	m.counters.latencies.observe(time.Since(began), uint64(len(batch)))
	m.counters.batches.Add(1)
	m.counters.packets.Add(uint64(len(batch)))
	h.BatchEnd()
}

// ask lets the handler see the packet in memory that is overwritten right
// after, as Queue's buffers are.
func (m *Memory) ask(h Handler, p *Packet) Answer {
	m.payload = append(m.payload[:0], p.Payload...)
	seen := *p
	seen.Payload = m.payload
	a := h.Handle(&seen)
	for i := range m.payload {
		m.payload[i] = 0xdb
	}
	seen = Packet{}
	return a
}

// answer records an answer, or, as the kernel does, that there is no such packet.
func (m *Memory) answer(id uint32, a Answer) {
	if a.Action > Hold {
		a.Action = Drop
	}
	if a.Action == Hold {
		m.counters.answered[Hold].Add(1)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counters.answered[a.Action].Add(1)
	if !m.open[id] {
		m.counters.countError(unix.ENOENT)
		return
	}
	delete(m.open, id)
	m.answered = append(m.answered, Answered{id, a})
	m.changed.Broadcast()
}

func (m *Memory) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended, m.busy = true, false
	m.answerRest()
	m.changed.Broadcast()
}

// answerRest answers what nobody judged, in the order of arrival; m.mu is held.
func (m *Memory) answerRest() {
	rest := slices.Sorted(maps.Keys(m.open))
	for _, p := range m.pending {
		rest = append(rest, p.ID)
	}
	var a Answer
	if m.FailOpen {
		a.Action = Accept
	}
	for _, id := range rest {
		m.answered = append(m.answered, Answered{id, a})
	}
	clear(m.open)
	m.pending = nil
}
