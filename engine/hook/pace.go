package hook

import (
	"context"
	"sync"
	"time"
)

// hurriedTimeout is what a command may take when the process is about to end: the
// wait for the lock of iptables, which somebody else may hold for long, included.
const hurriedTimeout = 4 * time.Second

// pace is how patient the commands are.
type pace struct {
	timeout time.Duration
	once    sync.Once
	hurried chan struct{}
}

func newPace(timeout time.Duration) *pace {
	return &pace{timeout: timeout, hurried: make(chan struct{})}
}

// Hurry makes the end come soon: a command that is running is given up, and later
// ones may take a few seconds, once. Whatever was to be changed and has not been
// stays as it is.
func (h *Hook) Hurry() { h.pace.hurry() }

func (p *pace) hurry() { p.once.Do(func() { close(p.hurried) }) }

func (p *pace) inHurry() bool {
	select {
	case <-p.hurried:
		return true
	default:
		return false
	}
}

// limit is what a command may take from now on.
func (p *pace) limit() time.Duration {
	if p.inHurry() {
		return min(p.timeout, hurriedTimeout)
	}
	return p.timeout
}

// lockWait is how many seconds iptables may wait for its lock. It gives up earlier
// than it would be killed: it then says who holds the lock.
func (p *pace) lockWait() int {
	limit := p.limit()
	return max(1, int((limit-min(grace, limit/2))/time.Second))
}

// context bounds one command.
func (p *pace) context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), p.limit())
	if !p.inHurry() {
		go func() {
			select {
			case <-p.hurried:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	return ctx, cancel
}
