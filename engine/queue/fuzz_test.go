package queue

import (
	"fmt"
	"testing"
)

// FuzzFindLine: no table makes the reader panic, and the line that the kernel prints of
// a queue is found behind it.
func FuzzFindLine(f *testing.F) {
	f.Add([]byte(" 8050  31621     0 2 65531     0     0       16  1\n"), uint16(8050))
	f.Add([]byte("1 2 3\n-1 -1 -1 -1 -1 -1 -1\n\x00"), uint16(1))
	f.Fuzz(func(t *testing.T, text []byte, num uint16) {
		if _, found := findLine(text, num); found || len(text) > 4096 {
			return // it may be there more than once
		}
		text = fmt.Appendf(append(text, '\n'), "%5d %6d %5d 2 65531 %5d %5d %8d  1\n", num, 7, 1, 2, 3, 4)
		l, found := findLine(text, num)
		if want := (procLine{7, KernelStats{Waiting: 1, QueueDropped: 2, UserDropped: 3}}); !found || l != want {
			t.Fatalf("found %v: %+v, want %+v", found, l, want)
		}
	})
}
