package engine

import "time"

const (
	// restTime bounds the wait for workers: a batch takes microseconds, but a machine
	// may have more to do than to run them.
	restTime = 5 * time.Second
	restPoll = 200 * time.Microsecond
)

// awaitAnswers returns when every verdict by a tree from before the call has been
// given, so that the connection which it begins is in the table. Who looks through
// the table earlier misses it: if then only the other end sends, nobody would ever
// ask about it.
func (e *Engine) awaitAnswers() {
	before := make([]uint64, len(e.workers))
	for i, w := range e.workers {
		before[i] = w.rests.Load()
	}
	deadline := time.Now().Add(restTime)
	for i, w := range e.workers {
		w.source.Wake()
		for w.rests.Load() == before[i] && time.Now().Before(deadline) {
			time.Sleep(restPoll)
		}
	}
}
