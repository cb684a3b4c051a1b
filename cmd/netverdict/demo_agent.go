package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/netverdict/netverdict/bench/netlab"
	"github.com/netverdict/netverdict/engine/flow"
)

const (
	// statePatience is how long an agent may take to enforce a state.
	statePatience = time.Minute
	// stopPatience is how long it may take to remove its rules and end.
	stopPatience = 30 * time.Second
	// stderrShown is how many of an agent's last messages an error shows.
	stderrShown = 15
)

// demoAgent is a real agent, in a process of its own on a node of the lab.
type demoAgent struct {
	cmd      *netlab.Cmd
	flows    journal[flow.Line] // from its standard output
	messages journal[string]    // lines of its standard error
	ended    chan struct{}      // closed when the process has ended and all it wrote was read
	err      error              // of the process; valid once ended is closed
}

// startAgent runs `executable agent` on a node. onFlow is called with each flow
// record, after it is in the journal.
func startAgent(node *netlab.Node, executable, manifests string, log flow.Filter, onFlow func(flow.Line)) (*demoAgent, error) {
	a := &demoAgent{ended: make(chan struct{})}
	// The agent has its own end: it must get the chance to remove its rules.
	a.cmd = node.Command(context.Background(), executable, "agent", "--manifests", manifests, "--flow-log", log.String(), "--flow-log-fold", "0")
	flows, stdout := io.Pipe()
	messages, stderr := io.Pipe()
	a.cmd.Stdout, a.cmd.Stderr = stdout, stderr
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	read := make(chan struct{}, 2)
	go func() {
		a.readFlows(flows, onFlow)
		read <- struct{}{}
	}()
	go func() {
		readLines(messages, &a.messages)
		read <- struct{}{}
	}()
	go func() {
		a.err = a.cmd.Wait()
		stdout.Close()
		stderr.Close()
		<-read
		<-read
		close(a.ended)
	}()
	return a, nil
}

func (a *demoAgent) readFlows(r io.Reader, onFlow func(flow.Line)) {
	for line, err := range flow.ReadJSON(r) {
		if err != nil {
			a.messages.add("unreadable flow record: " + err.Error())
			continue
		}
		a.flows.add(line)
		onFlow(line)
	}
	_, _ = io.Copy(io.Discard, r) // after a line too long: the agent must not block
}

// stateMessage is what an agent logs when it enforces a state.
var stateMessage = regexp.MustCompile(`msg=(?:enforcing|"enforcing a new state") policies=(\d+) `)

// awaitState waits until the agent says, in its messages from index since on,
// that it enforces so many policies.
func (a *demoAgent) awaitState(ctx context.Context, since, policies int) error {
	patience := time.NewTimer(statePatience)
	defer patience.Stop()
	for {
		lines, more := a.messages.since(since)
		if slices.ContainsFunc(lines, func(l string) bool { return enforces(l, policies) }) {
			return nil
		}
		select {
		case <-more:
		case <-a.ended:
			return a.failure("ended by itself")
		case <-patience.C:
			return a.failure(fmt.Sprintf("does not enforce %d policies after %v", policies, statePatience))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func enforces(message string, policies int) bool {
	m := stateMessage.FindStringSubmatch(message)
	return m != nil && m[1] == strconv.Itoa(policies)
}

// alive fails if the agent has ended.
func (a *demoAgent) alive() error {
	select {
	case <-a.ended:
		return a.failure("ended by itself")
	default:
		return nil
	}
}

// failure tells what went wrong and what the agent said.
func (a *demoAgent) failure(what string) error {
	select {
	case <-a.ended:
		if a.err != nil {
			what += fmt.Sprintf(" (%v)", a.err)
		}
	default:
	}
	return fmt.Errorf("the agent %s; its last messages:\n  %s", what, strings.Join(a.lastMessages(), "\n  "))
}

func (a *demoAgent) lastMessages() []string {
	lines, _ := a.messages.since(0)
	if len(lines) == 0 {
		return []string{"(none)"}
	}
	return lines[max(0, len(lines)-stderrShown):]
}

// stop asks the agent to end and waits for that. It fails if the agent had to
// be killed or says that something went wrong; alive tells of one that had ended.
func (a *demoAgent) stop() error {
	if err := a.cmd.Process.Signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		<-a.ended
		return nil
	} else if err != nil {
		return fmt.Errorf("stop the agent: %w", err)
	}
	select {
	case <-a.ended:
	case <-time.After(stopPatience):
		err := a.failure(fmt.Sprintf("did not stop within %v", stopPatience))
		_ = a.cmd.Process.Kill() // it may have ended just now
		<-a.ended
		return err
	}
	if a.err != nil {
		return a.failure("did not stop cleanly")
	}
	return nil
}
