package queue

import (
	"errors"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/netverdict/netverdict/engine/queue/queuetest"
)

// A number can be had once, and again when it was released.
func TestReserve(t *testing.T) {
	ns := queuetest.New(t)
	num := ReservedFor("NETVERDICT")
	if num < 0xf000 || num == ReservedFor("NETVERDICT2") {
		t.Errorf("number %d", num)
	}
	ns.Do(func() error {
		first, err := Reserve(num)
		if err != nil {
			return err
		}
		if _, err := Reserve(num); !errors.Is(err, ErrTaken) {
			t.Errorf("a second time: %v, want %v", err, ErrTaken)
		}
		if _, err := Open(Config{Num: num}); !errors.Is(err, ErrTaken) {
			t.Errorf("as a queue: %v, want %v", err, ErrTaken)
		}
		if err := first.Release(); err != nil {
			return err
		}
		again, err := Reserve(num)
		if err != nil {
			return err
		}
		return again.Release()
	})
}

// Who asks while another lets go is told that the number is taken, never that a
// capability is missing.
func TestReserveRace(t *testing.T) {
	ns := queuetest.New(t)
	num := ReservedFor("NETVERDICT")
	var both errgroup.Group
	for range 2 {
		both.Go(func() error {
			return ns.Try(func() error {
				for range 500 {
					r, err := Reserve(num)
					if errors.Is(err, ErrTaken) {
						continue
					}
					if err != nil {
						return err
					}
					if err := r.Release(); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	if err := both.Wait(); err != nil {
		t.Error(err)
	}
}
