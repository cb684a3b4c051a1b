//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// PanicError carries a panic out of a function that ran in a namespace to the
// goroutine that asked for it, with the stack of the place that panicked.
type PanicError struct {
	Value any
	Stack []byte
}

func (p *PanicError) Error() string {
	return fmt.Sprintf("panic inside a network namespace: %v\n\n%s", p.Value, p.Stack)
}

// Unwrap returns the panic's value if it was an error.
func (p *PanicError) Unwrap() error {
	err, _ := p.Value.(error)
	return err
}

// offMain runs fn on a new goroutine locked to an OS thread that is not the
// process's main one. fn unlocks the thread if it leaves it clean; otherwise
// the Go runtime destroys the thread when fn returns.
//
// The main thread is spared because the runtime cannot destroy it, and because
// /proc/self/net and /proc/self/ns/net, which other code of the process may
// read at any time, show the main thread's namespace.
func offMain(fn func()) {
	settled := make(chan struct{})
	var attempt func()
	attempt = func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			close(settled)
			fn()
			return
		}
		go attempt() // cannot get the main thread: this goroutine still holds it
		<-settled
		runtime.UnlockOSThread()
	}
	go attempt()
}

// visit is one function call on a thread that may change its namespace.
type visit struct {
	fn       func() error
	err      error
	panicked *PanicError
	exited   bool // fn called runtime.Goexit, as testing.T.FailNow does
	done     chan struct{}
}

// onThread runs fn on a locked thread and waits for it. fn may change the
// thread's network namespace: it is changed back afterwards, and a thread for
// which that fails is destroyed. A panic or Goexit of fn continues in the caller.
func onThread(fn func() error) error {
	v := &visit{fn: fn, done: make(chan struct{})}
	offMain(v.run)
	<-v.done
	switch {
	case v.panicked != nil:
		panic(v.panicked)
	case v.exited:
		runtime.Goexit()
	}
	return v.err
}

func (v *visit) run() {
	defer close(v.done)
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		v.err = fmt.Errorf("open the current network namespace: %w", err)
		return
	}
	defer home.Close()
	defer v.leave(home)
	v.call()
}

func (v *visit) call() {
	v.exited = true
	defer func() {
		if r := recover(); r != nil {
			v.exited, v.panicked = false, &PanicError{Value: r, Stack: debug.Stack()}
		}
	}()
	v.err = v.fn()
	v.exited = false
}

// leave unlocks the thread only when it is back home.
func (v *visit) leave(home netns.NsHandle) {
	if err := netns.Set(home); err != nil {
		v.err = errors.Join(v.err, fmt.Errorf("return to the original network namespace (the thread is discarded): %w", err))
		return
	}
	runtime.UnlockOSThread()
}
