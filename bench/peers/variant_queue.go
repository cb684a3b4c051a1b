package main

import (
	"context"
	_ "embed" // acceptall.c
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	nfqueue "github.com/florianl/go-nfqueue/v2"
)

// queueLength is the same for all who read a queue.
const queueLength = 8192

//go:embed acceptall/acceptall.c
var acceptAllC []byte

// cAcceptAll builds the C program and lets it accept.
func cAcceptAll(ctx context.Context, s *stage) (_ *running, err error) {
	dir, err := os.MkdirTemp("", "acceptall")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	source, program := filepath.Join(dir, "acceptall.c"), filepath.Join(dir, "acceptall")
	if err := os.WriteFile(source, acceptAllC, 0o600); err != nil {
		return nil, err
	}
	cc := exec.CommandContext(ctx, "cc", "-O2", "-Wall", "-o", program, source, "-lmnl")
	if out, err := cc.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the C program (install gcc and libmnl-dev): %w\n%s", err, out)
	}
	return s.accepting(ctx, program, "0")
}

// goAcceptAll is this program once more, with the verb that accepts.
func goAcceptAll(ctx context.Context, s *stage) (*running, error) {
	return s.accepting(ctx, "/proc/self/exe", acceptVerb)
}

// accepting runs a program that prints a line when it reads queue 0, and queues
// new connections.
func (s *stage) accepting(ctx context.Context, program string, args ...string) (*running, error) {
	p, err := s.spawn(ctx, program, args...)
	if err != nil {
		return nil, err
	}
	rules, err := s.mangle(ctx, queueNew)
	if err != nil {
		return nil, errors.Join(err, p.end())
	}
	return &running{pids: []int{p.cmd.Process.Pid}, stop: func() error {
		return errors.Join(rules.stop(), p.end())
	}}, nil
}

// acceptVerb is the first argument of the process that accepts with go-nfqueue.
const acceptVerb = "accept-all"

// acceptWithCallback reads queue 0 as the examples of go-nfqueue do.
func acceptWithCallback(ctx context.Context) error {
	nf, err := nfqueue.Open(&nfqueue.Config{MaxPacketLen: 128, MaxQueueLen: queueLength, Copymode: nfqueue.NfQnlCopyPacket, WriteTimeout: 15 * time.Millisecond})
	if err != nil {
		return fmt.Errorf("open queue 0: %w", err)
	}
	defer nf.Close()
	accept := func(a nfqueue.Attribute) int {
		// A packet that is gone has no verdict: nothing to do about it.
		_ = nf.SetVerdict(*a.PacketID, nfqueue.NfAccept)
		return 0
	}
	if err := nf.RegisterWithErrorFunc(ctx, accept, func(error) int { return 0 }); err != nil {
		return fmt.Errorf("read queue 0: %w", err)
	}
	fmt.Println("listening")
	<-ctx.Done()
	return nil
}
