// Package pause waits.
package pause

import (
	"context"
	"time"
)

// For waits for a time, or until ctx ends; whole is false then.
func For(ctx context.Context, d time.Duration) (whole bool) {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
