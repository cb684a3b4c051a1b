package queue

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// script is a Handler made of functions; those that are nil do nothing.
type script struct {
	handle func(*Packet) Answer
	batch  func()
	wake   func()
	tick   func(time.Time)
}

func (s *script) Handle(p *Packet) Answer {
	if s.handle == nil {
		return Answer{}
	}
	return s.handle(p)
}

func (s *script) BatchEnd() {
	if s.batch != nil {
		s.batch()
	}
}

func (s *script) OnWake() {
	if s.wake != nil {
		s.wake()
	}
}

func (s *script) OnTick(now time.Time) {
	if s.tick != nil {
		s.tick(now)
	}
}

// start runs a source until the test ends and demands that it ends well.
func start(t testing.TB, s Source, h Handler) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(context.Background(), h) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestMemoryAnswers(t *testing.T) {
	m := NewMemory()
	var kept [][]byte
	var last Packet
	batches := 0
	start(t, m, &script{
		handle: func(p *Packet) Answer {
			kept = append(kept, p.Payload)
			last = *p
			return Answer{Action: Repeat, SetMark: true, Mark: p.Mark + 1}
		},
		batch: func() { batches++ },
	})
	payload := []byte{0x60, 1, 2}
	id := m.Inject(Packet{Payload: payload, Mark: 41})
	m.Settle()
	want := []Answered{{id, Answer{Action: Repeat, SetMark: true, Mark: 42}}}
	if diff := cmp.Diff(want, m.Answers()); diff != "" {
		t.Error(diff)
	}
	if last.Length != 3 || last.Family != unix.AF_INET6 || last.ID != id || batches != 1 {
		t.Errorf("packet %+v, %d batches", last, batches)
	}
	if kept[0][0] != 0xdb || payload[0] != 0x60 {
		t.Error("a payload that was kept must not survive Handle, the injected one must")
	}
	if s := m.Stats(); s.Packets != 1 || s.Repeated != 1 || s.Batches != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestMemoryHold(t *testing.T) {
	m := NewMemory()
	var held []uint32
	start(t, m, &script{
		handle: func(p *Packet) Answer { held = append(held, p.ID); return Answer{Action: Hold} },
		wake: func() {
			m.Release(held[1], Answer{Action: Accept})
			m.Release(held[1], Answer{Action: Accept}) // gone by now
			m.Release(held[0], Answer{Action: Hold})
		},
		tick: func(time.Time) { m.Release(held[0], Answer{}) },
	})
	m.Inject(Packet{})
	m.Inject(Packet{})
	m.Settle()
	if a := m.Answers(); len(a) != 0 || m.Stats().Kernel.Waiting != 2 {
		t.Fatalf("answers %v, stats %+v", a, m.Stats())
	}
	m.Wake()
	m.Settle()
	m.Tick(time.Now())
	m.Settle()
	if diff := cmp.Diff([]Answered{{2, Answer{Action: Accept}}, {1, Answer{}}}, m.Answers()); diff != "" {
		t.Error(diff)
	}
	if s := m.Stats(); s.Held != 2 || s.Released != 3 || s.Errors[unix.ENOENT] != 1 || s.Kernel.Waiting != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestMemoryEnd(t *testing.T) {
	for _, failOpen := range []bool{false, true} {
		want := Answer{}
		if failOpen {
			want.Action = Accept
		}
		m := NewMemory()
		m.FailOpen = failOpen
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- m.Run(ctx, &script{handle: func(*Packet) Answer { return Answer{Action: Hold} }}) }()
		m.Inject(Packet{})
		m.Settle()
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		m.Inject(Packet{}) // too late
		if diff := cmp.Diff([]Answered{{1, want}, {2, want}}, m.Answers()); diff != "" {
			t.Errorf("fail open %v: %s", failOpen, diff)
		}
		m.Settle()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if err := m.Run(ctx, &script{}); !errors.Is(err, ErrClosed) {
			t.Errorf("second run: %v", err)
		}
	}
}

func TestMemoryCloseBeforeRun(t *testing.T) {
	m := NewMemory()
	m.Inject(Packet{})
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if a := m.Answers(); len(a) != 1 || a[0].Action != Drop {
		t.Errorf("answers %v", a)
	}
	if err := m.Run(context.Background(), &script{}); !errors.Is(err, ErrClosed) {
		t.Errorf("run after close: %v", err)
	}
}
