//go:build linux

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/bench/netlab"
)

// Agent is one run of `netverdict agent` on a node.
type Agent struct {
	Name   string   // "node-1 agent 2"
	Args   []string // of the process
	Node   *Node
	Stdout *Output // the flow log, for flow.ReadJSON, unless an argument changes that
	Stderr *Output // the messages

	cmd    *netlab.Cmd
	socket string        // --status-socket, which agents of a node share
	done   chan struct{} // closed when the process has ended; then err is valid
	err    error
}

// agentGrace is how long an agent may take to end by itself.
const agentGrace = 30 * time.Second

// StartAgent starts an agent with the arguments of deploy/install.yaml, then those
// of Options.AgentArgs, then the given ones; the last of a kind wins. The agents of a
// node share what those of a DaemonSet do: the ports of the node and the directory of
// its sockets. Each has the directory of its health socket for itself. A second agent
// takes over from the first, which then waits for its end, as install.yaml says. It
// does not wait until the agent is ready. The agent dies with the cluster at the
// latest.
func (n *Node) StartAgent(args ...string) (*Agent, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.started++
	a := &Agent{Name: fmt.Sprintf("%s agent %d", n.Name(), n.started), Node: n, done: make(chan struct{})}
	base := filepath.Join(n.dir, fmt.Sprintf("agent-%d", n.started))
	a.socket = filepath.Join(n.dir, "agent.sock")
	a.Args = slices.Concat(n.deployedArgs(base), []string{"--kubeconfig=" + n.cluster.agentKubeconfig()}, n.cluster.opts.AgentArgs, args)
	a.cmd = n.Command(context.Background(), n.cluster.binary, a.Args...)
	if err := a.start(base); err != nil {
		return nil, fmt.Errorf("start %s: %w", a.Name, err)
	}
	n.agents = append(n.agents, a)
	go a.wait()
	return a, nil
}

// deployedArgs are install.yaml's. A directory of the node there is one of the node
// here, and one that is the pod's own begins with base.
func (n *Node) deployedArgs(base string) []string {
	var args []string
	for _, arg := range n.cluster.agentArgs {
		arg = strings.ReplaceAll(arg, "$(NODE_NAME)", n.Name())
		arg = strings.ReplaceAll(arg, "/run/netverdict/", n.dir+"/")
		args = append(args, strings.ReplaceAll(arg, "/run/health/", base+"-"))
	}
	return args
}

// health is the last --health-address among the arguments.
func (a *Agent) health() (address string) {
	for _, arg := range a.Args {
		if v, ok := strings.CutPrefix(arg, "--health-address="); ok {
			address = v
		}
	}
	return address
}

// start gives the process files to write to: it never waits for a reader.
func (a *Agent) start(base string) error {
	stdout, err := os.Create(base + ".stdout")
	if err != nil {
		return err
	}
	defer stdout.Close() // the process has its own descriptor
	stderr, err := os.Create(base + ".stderr")
	if err != nil {
		return err
	}
	defer stderr.Close()
	a.Stdout, a.Stderr = &Output{path: stdout.Name()}, &Output{path: stderr.Name()}
	a.cmd.Stdout, a.cmd.Stderr = stdout, stderr
	return a.cmd.Start()
}

func (a *Agent) wait() {
	a.err = a.cmd.Wait()
	a.Node.mu.Lock()
	a.Node.agents = slices.DeleteFunc(a.Node.agents, func(o *Agent) bool { return o == a })
	a.Node.mu.Unlock()
	close(a.done)
}

// Pid is the number of the process.
func (a *Agent) Pid() int { return a.cmd.Process.Pid }

// Done is closed when the process has ended.
func (a *Agent) Done() <-chan struct{} { return a.done }

// ExitError is how it ended, once Done is closed; nil is exit code 0.
func (a *Agent) ExitError() error { return a.err }

// AwaitReady waits until the agent says that the first tree is enforced. It fails
// with the end of the messages when the agent ends, or ctx does.
func (a *Agent) AwaitReady(ctx context.Context) error {
	err := poll(ctx, a.Name+" to be ready", func() (bool, error) {
		select {
		case <-a.done:
			return false, fmt.Errorf("it ended: %w", a.err)
		default:
			ready, _ := a.Ready(ctx) // why not is in its messages
			return ready, nil
		}
	})
	if err != nil {
		return fmt.Errorf("%w\nthe end of what it says:\n%s", err, a.Stderr.tail())
	}
	return nil
}

// Ready asks the agent as the readiness probe of install.yaml does, and returns what
// it says.
func (a *Agent) Ready(ctx context.Context) (bool, string) {
	out, err := a.Node.Netverdict(ctx, "probe", "readyz", "--health-address", a.health())
	return err == nil, string(out)
}

// Signal sends a signal to the process.
func (a *Agent) Signal(sig os.Signal) error { return a.cmd.Process.Signal(sig) }

// Stop asks the agent to end, and waits for it. It is an error if it does not, or
// not with exit code 0.
func (a *Agent) Stop() error {
	if err := a.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", a.Name, err)
	}
	select {
	case <-a.done:
	case <-time.After(agentGrace):
		a.Kill()
		return fmt.Errorf("stop %s: it still ran %v after SIGTERM", a.Name, agentGrace)
	}
	if a.err != nil {
		return fmt.Errorf("stop %s: %w\nthe end of what it says:\n%s", a.Name, a.err, a.Stderr.tail())
	}
	return nil
}

// Kill ends the agent as kill -9 does, and waits until it is gone.
func (a *Agent) Kill() {
	_ = a.cmd.Process.Kill() // fails only if it has ended
	<-a.done
}

// RestartAgent stops all agents of the node, starts one and waits until it is
// ready.
func (n *Node) RestartAgent(ctx context.Context, args ...string) (*Agent, error) {
	for _, a := range n.Agents() {
		if err := a.Stop(); err != nil {
			return nil, err
		}
	}
	a, err := n.StartAgent(args...)
	if err != nil {
		return nil, err
	}
	return a, a.AwaitReady(ctx)
}

// Netverdict runs a verb on the node and returns its standard output.
func (n *Node) Netverdict(ctx context.Context, args ...string) ([]byte, error) {
	return n.Command(ctx, n.cluster.binary, args...).Output()
}

// Status is what tests read of `netverdict status -o json`.
type Status struct {
	Enforcing  bool    `json:"enforcing"`
	Problem    string  `json:"problem"`
	Revision   uint64  `json:"revision"`
	Policies   int     `json:"policies"`
	Addresses  int     `json:"addresses"`
	Policed    int     `json:"policed"`
	LagSeconds float64 `json:"lagSeconds"`
	Cluster    []struct {
		Kind            string `json:"kind"`
		Objects         int    `json:"objects"`
		Connected       bool   `json:"connected"`
		ResourceVersion string `json:"resourceVersion"`
	} `json:"cluster"`
	Queues []struct {
		Number        uint16 `json:"number"`
		Packets       uint64 `json:"packets"`
		QueueDropped  uint32 `json:"queueDropped"`
		BufferDropped uint32 `json:"bufferDropped"`
	} `json:"queues"`
	Allowed   uint64 `json:"allowed"`
	Denied    uint64 `json:"denied"`
	FlowsLost uint64 `json:"flowsLost"`
}

// Connected reports whether all kinds are being watched.
func (s *Status) Connected() bool {
	for _, k := range s.Cluster {
		if !k.Connected {
			return false
		}
	}
	return len(s.Cluster) > 0
}

// Status asks the agent through `netverdict status`.
func (a *Agent) Status(ctx context.Context) (*Status, error) {
	out, err := a.Node.Netverdict(ctx, "status", "--socket", a.socket, "-o", "json")
	var s Status
	if decodeErr := json.Unmarshal(out, &s); decodeErr != nil { // exit code 2 is an answer, too
		return nil, fmt.Errorf("status of %s: %w", a.Name, errors.Join(err, decodeErr))
	}
	return &s, nil
}

// Socket is the agent's --status-socket, for `netverdict status --socket`.
func (a *Agent) Socket() string { return a.socket }
