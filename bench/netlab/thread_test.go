//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// threadNetns is the namespace of the calling thread, "net:[inode]".
func threadNetns(t testing.TB) string {
	t.Helper()
	return must[string](t)(os.Readlink("/proc/thread-self/ns/net"))
}

// straysOf lists the threads of this process that are in another namespace than
// the test. The spawner's thread is home between jobs.
func straysOf(t testing.TB) error {
	t.Helper()
	home := must[string](t)(os.Readlink("/proc/self/ns/net"))
	tasks := must[[]os.DirEntry](t)(os.ReadDir("/proc/self/task"))
	for _, task := range tasks {
		ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net")
		if err == nil && ns != home {
			return fmt.Errorf("thread %s is in %s, home is %s", task.Name(), ns, home)
		}
	}
	return nil
}

func TestDo(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	a, b := addHost(t, n, "a", "10.0.0.1"), addHost(t, n, "b", "10.0.0.2")
	home := threadNetns(t)
	wrong := errors.New("wrong")
	err := a.Do(func() error {
		inA := threadNetns(t)
		if inA != fmt.Sprintf("net:[%d]", a.ns.inode) {
			t.Errorf("in %s, want %d", inA, a.ns.inode)
		}
		if unix.Gettid() == unix.Getpid() {
			t.Error("on the main thread")
		}
		if err := b.Do(func() error { return checkIn(t, b) }); err != nil {
			t.Error(err)
		}
		if now := threadNetns(t); now != inA {
			t.Errorf("after a nested Do in %s, want %s", now, inA)
		}
		return wrong
	})
	if err != wrong {
		t.Errorf("returned %v", err)
	}
	if now := threadNetns(t); now != home {
		t.Errorf("the caller is in %s, was in %s", now, home)
	}
	if err := straysOf(t); err != nil {
		t.Error(err)
	}
}

func checkIn(t testing.TB, h *Host) error {
	if now := threadNetns(t); now != fmt.Sprintf("net:[%d]", h.ns.inode) {
		return fmt.Errorf("in %s, want %s's net:[%d]", now, h.name, h.ns.inode)
	}
	return nil
}

func TestDoConcurrent(t *testing.T) {
	lab := newLab(t)
	n := addNode(t, lab, "n")
	hosts := []*Host{addHost(t, n, "a", "10.0.0.1"), addHost(t, n, "b", "10.0.0.2"), n.Host}
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			for j := range 10 {
				h := hosts[(i+j)%len(hosts)]
				if err := h.Do(func() error { runtime.Gosched(); return checkIn(t, h) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := straysOf(t); err != nil {
		t.Error(err)
	}
}

func TestDoPanics(t *testing.T) {
	lab := newLab(t)
	a := addHost(t, addNode(t, lab, "n"), "a", "10.0.0.1")
	cause := errors.New("boom")
	func() {
		defer func() {
			p, ok := recover().(*PanicError)
			if !ok || !errors.Is(p, cause) || !strings.Contains(p.Error(), "TestDoPanics") {
				t.Errorf("recovered %v, want boom with the stack of the panic", p)
			}
		}()
		_ = a.Do(func() error { panic(cause) })
		t.Error("Do returned")
	}()
	if err := straysOf(t); err != nil {
		t.Error(err)
	}
}

func TestDoGoexit(t *testing.T) {
	lab := newLab(t)
	a := addHost(t, addNode(t, lab, "n"), "a", "10.0.0.1")
	returned, ended := false, make(chan struct{})
	go func() {
		defer close(ended)
		_ = a.Do(func() error { runtime.Goexit(); return nil })
		returned = true
	}()
	<-ended
	if returned {
		t.Error("Goexit inside Do did not end the caller, as t.Fatal must")
	}
	if err := straysOf(t); err != nil {
		t.Error(err)
	}
}

// A thread that cannot go home must not run other goroutines.
func TestDirtyThreadIsDestroyed(t *testing.T) {
	lab := newLab(t)
	a := addHost(t, addNode(t, lab, "n"), "a", "10.0.0.1")
	var tid int
	err := a.Do(func() error {
		tid = unix.Gettid()
		return dropCapability(unix.CAP_SYS_ADMIN) // of this thread only
	})
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "discarded") {
		t.Fatalf("got %v, want a failed return", err)
	}
	eventually(t, func() error {
		if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid)); err == nil {
			return fmt.Errorf("thread %d lives", tid)
		}
		return straysOf(t)
	})
}

// dropCapability takes a capability from the calling thread.
func dropCapability(capability int) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	data[capability/32].Effective &^= 1 << (capability % 32)
	data[capability/32].Permitted &^= 1 << (capability % 32)
	return unix.Capset(&hdr, &data[0])
}
