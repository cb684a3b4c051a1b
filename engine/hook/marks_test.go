package hook

import (
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/netverdict/netverdict/policy"
)

func TestMarksProperties(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		mask := rnd.Uint32() | rnd.Uint32()
		m, err := NewMarks(mask)
		if (err == nil) != (bits.OnesCount32(mask) >= 5) {
			t.Fatalf("NewMarks(%#x): %v", mask, err)
		}
		if err != nil {
			continue
		}
		if rnd.IntN(2) == 0 {
			if m, err = m.connection(mask); err != nil {
				t.Fatal(err)
			}
		}
		old, v := rnd.Uint32(), policy.Verdict(rnd.IntN(2))
		number := rnd.Uint32() & (m.Numbers() - 1)
		mark := m.Verdict(old, v, number)
		if mark&^mask != old&^mask {
			t.Fatalf("mask %#x: Verdict(%#x) = %#x changes foreign bits", mask, old, mark)
		}
		if !m.Decided(mark) || m.Decided(m.Clear(mark)) || m.Clear(mark) != old&^mask {
			t.Fatalf("mask %#x: mark %#x: decided %v, cleared %#x", mask, mark, m.Decided(mark), m.Clear(mark))
		}
		if got := m.numberIn(mark); got != number {
			t.Fatalf("mask %#x: number %d reads as %d", mask, number, got)
		}
		if got, ok := m.read(m.exactly(v, number), v); !ok || got != number {
			t.Fatalf("mask %#x: %s reads as %d, %v", mask, m.exactly(v, number), got, ok)
		}
		if _, ok := m.read(m.exactly(v, number), 1-v); ok {
			t.Fatalf("mask %#x: %s reads as the other verdict", mask, m.exactly(v, number))
		}
	}
}

func TestMarksAreDistinct(t *testing.T) {
	m, err := NewMarks(0x8421_0303)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint32]bool{0: true} // zero is nobody's
	for _, v := range [...]policy.Verdict{policy.Deny, policy.Allow} {
		for n, i := uint32(0), uint32(0); i < m.Numbers(); n, i = m.next(n), i+1 {
			mark := m.Verdict(0, v, n)
			if seen[mark] {
				t.Errorf("%v %d: mark %#x is not unique", v, n, mark)
			}
			seen[mark] = true
		}
	}
	if m.next(m.Numbers()-1) != 0 {
		t.Error("numbers do not come round")
	}
	if got, want := m.Verdict(0, policy.Allow, m.Numbers()+3), m.Verdict(0, policy.Allow, 3); got != want {
		t.Errorf("a number too large spills: %#x, want %#x", got, want)
	}
}

// Whichever bits the masks share: a connection mark that somebody copies into the
// packet mark is no verdict, and the other way round.
func TestMarksOfOneKindAreNoneOfTheOther(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		mask := 0x1f<<rnd.IntN(20) | rnd.Uint32()&rnd.Uint32()
		connMask := mask
		if rnd.IntN(2) == 0 {
			connMask = 0x1f<<rnd.IntN(20) | rnd.Uint32()&rnd.Uint32()
		}
		packet, err := NewMarks(mask)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := packet.connection(connMask)
		if err != nil {
			t.Fatal(err)
		}
		v, number := policy.Verdict(rnd.IntN(2)), rnd.Uint32()
		if mark := conn.Verdict(0, v, number); packet.Decided(mark) {
			t.Fatalf("masks %#x and %#x: the connection mark %#x is a verdict on a packet", mask, connMask, mark)
		}
		if mark := packet.Verdict(0, v, number); mask == connMask && conn.Decided(mark) {
			t.Fatalf("mask %#x: the packet mark %#x is one of a connection", mask, mark)
		}
	}
}

func TestDefaultMasksAvoidOthers(t *testing.T) {
	// See DefaultMarkMask for whose these are.
	const taken = 0x4000 | 0x8000 | 0x2000 | 0x30000 | 0x60000 | 0xff0000 | 0x80 | 0x539
	if DefaultMarkMask&taken != 0 || DefaultConnmarkMask&taken != 0 {
		t.Errorf("default masks %#x and %#x collide with %#x", DefaultMarkMask, DefaultConnmarkMask, taken)
	}
}

func TestMarksDoNotAllocate(t *testing.T) {
	m, _ := NewMarks(DefaultMarkMask)
	var mark uint32
	if n := testing.AllocsPerRun(100, func() {
		if mark = m.Verdict(mark, policy.Allow, mark&63); m.Decided(mark) {
			mark = m.Clear(mark)
		}
	}); n != 0 {
		t.Errorf("%v allocations for each verdict", n)
	}
}
