package queue

import (
	"errors"
	"fmt"
	"math"
)

// probeAttempts is how many numbers a probe tries: others may have some.
const probeAttempts = 8

// Probe finds out whether the kernel has queues and lets this process read them. It
// binds one that no rule refers to, from the highest number down, and lets it go: one
// that rules refer to would swallow packets meanwhile.
func Probe() error {
	var err error
	for i := range uint16(probeAttempts) {
		var q *Queue
		if q, err = Open(Config{Num: math.MaxUint16 - i}); err == nil {
			return q.Close()
		}
		if !errors.Is(err, ErrTaken) {
			break
		}
	}
	return fmt.Errorf("try a queue: %w", err)
}
