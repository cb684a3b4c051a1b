package queue

import (
	"errors"
	"math"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/engine/queue/queuetest"
)

// TestProbe: with or without somebody on the numbers that it tries, and nothing of it
// stays.
func TestProbe(t *testing.T) {
	ns := queuetest.New(t)
	ns.Do(Probe)
	var taken *Queue
	ns.Do(func() (err error) {
		taken, err = Open(Config{Num: math.MaxUint16})
		return err
	})
	defer taken.Close()
	ns.Do(Probe)
	ns.Do(func() error {
		again, err := Open(Config{Num: math.MaxUint16 - 1})
		if err != nil {
			return err
		}
		return again.Close()
	})
}

// TestProbeUnprivileged: the error names the capability.
func TestProbeUnprivileged(t *testing.T) {
	ns := queuetest.New(t)
	var err error
	ns.Do(func() error { // on a thread that ends with it, and with what it lacks
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			return err
		}
		err = Probe()
		return nil
	})
	if !errors.Is(err, ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("Probe: %v, want it to name CAP_NET_ADMIN", err)
	}
}
