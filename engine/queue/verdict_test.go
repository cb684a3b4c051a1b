package queue

import (
	"encoding/hex"
	"strings"
	"testing"
)

// The bytes are little endian in the netlink headers, as this machine is, and
// big endian in what nfnetlink_queue.h declares __be32.
func TestVerdictBytes(t *testing.T) {
	if hostIsBigEndian() {
		t.Skip("golden bytes are for little-endian machines")
	}
	a := newAnswers(0x1234, 4)
	a.add(0x01020304, Answer{Action: Accept})
	a.add(5, Answer{Action: Repeat, SetMark: true, Mark: 0xcafe0001})
	a.add(6, Answer{})
	a.add(7, Answer{Action: 77, Mark: 9})
	want := strings.Join([]string{
		"20000000 0103 0100 00000000 00000000  00001234  0c000200 00000001 01020304",
		"28000000 0103 0100 00000000 00000000  00001234  0c000200 00000004 00000005  08000300 cafe0001",
		"20000000 0103 0100 00000000 00000000  00001234  0c000200 00000000 00000006",
		"20000000 0103 0100 00000000 00000000  00001234  0c000200 00000000 00000007",
	}, "")
	want = strings.ReplaceAll(want, " ", "")
	if got := hex.EncodeToString(a.buf); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if a.counts != [actions]uint64{Drop: 2, Accept: 1, Repeat: 1} {
		t.Errorf("counts %v", a.counts)
	}
}

func hostIsBigEndian() bool {
	return nlmsg(0)[0] == 0
}

func TestAnswersFull(t *testing.T) {
	a := newAnswers(1, 3)
	for i := range uint32(3) {
		if a.full() {
			t.Fatalf("full after %d of 3 answers", i)
		}
		a.add(i, Answer{Action: Accept, SetMark: true})
	}
	if !a.full() {
		t.Error("not full after 3 of 3 answers")
	}
	if a.reset(); a.full() || !a.empty() {
		t.Error("not empty after reset")
	}
}

func TestNoAllocations(t *testing.T) {
	in := full()
	a := newAnswers(1, 1)
	var p Packet
	n := testing.AllocsPerRun(1000, func() {
		parse(in, &p)
		a.add(p.ID, Answer{Action: Repeat, SetMark: true, Mark: p.Mark})
		a.reset()
	})
	if n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}
