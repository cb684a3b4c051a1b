package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/netverdict/netverdict/policy"
)

// defaultStatusSocket is where an agent and status meet.
const defaultStatusSocket = "/run/netverdict/agent.sock"

// Status is what an agent says of itself.
type Status struct {
	Version   string `json:"version"`
	Node      string `json:"node,omitempty"`
	Source    string `json:"source"`
	Mode      string `json:"mode"` // enforce or audit
	Enforcing bool   `json:"enforcing"`
	// Problem is what keeps the newest state from being enforced, or empty.
	Problem string `json:"problem,omitempty"`
	// Revision counts the trees since the agent started; Applied is when the last
	// one took effect.
	Revision  uint64    `json:"revision"`
	Applied   time.Time `json:"applied,omitzero"`
	Policies  int       `json:"policies"`  // that select a pod of this node
	Addresses int       `json:"addresses"` // of pods and nodes
	Policed   int       `json:"policed"`   // addresses of this node's pods that some policy isolates
	// OverLimit are policies that expand too much to be compiled: they isolate the pods
	// that they select, and allow nothing.
	OverLimit []policy.OverLimit `json:"overLimit,omitempty"`
	// LagSeconds is the age of the oldest change that is known but not enforced.
	LagSeconds float64       `json:"lagSeconds"`
	Cluster    []KindStatus  `json:"cluster,omitempty"`
	FailMode   string        `json:"failMode"` // closed or open: what happens to new connections without an agent
	OnStop     string        `json:"onStop"`
	Backend    string        `json:"backend"`
	Queues     []QueueStatus `json:"queues"`
	Audit      *AuditStatus  `json:"audit,omitempty"`
	Deny       *DenyStatus   `json:"deny,omitempty"`
	AntiSpoof  *SpoofStatus  `json:"antiSpoof,omitempty"`
	Bridges    *BridgeStatus `json:"bridges,omitempty"` // that pods share
	Allowed    uint64        `json:"allowed"`           // decisions since the agent started
	Denied     uint64        `json:"denied"`
	Audited    uint64        `json:"audited"` // passed, though policies of audited namespaces deny them
	Holding    int64         `json:"holding"` // packets that wait for their pod to become known
	// PodStart says what becomes of packets of this node's pods that are not known
	// yet: held, or open because the node's pod ranges are unknown, or partly so because
	// it has pods outside of them.
	PodStart  string `json:"podStart,omitempty"`
	FlowsLost uint64 `json:"flowsLost"`
	// ListenLater are flags and addresses that another process still has, as an agent
	// does that this one takes over from.
	ListenLater []string `json:"listenLater,omitempty"`
	// NodeFacts is what the agent found out about the node.
	NodeFacts NodeStatus `json:"nodeFacts"`
	// Rules is what the kernel's rules have matched, in the order in which a packet
	// meets them.
	Rules []RuleStatus `json:"rules"`
}

// KindStatus is how far the agent knows the API server's objects of one kind.
type KindStatus struct {
	Kind      string `json:"kind"`
	Objects   int    `json:"objects"`
	Connected bool   `json:"connected"`
	Revision  string `json:"resourceVersion"`
	Error     string `json:"error,omitempty"`
}

// QueueStatus is the state of one NFQUEUE.
type QueueStatus struct {
	Number  uint16 `json:"number"`
	Packets uint64 `json:"packets"` // judged since the agent started
	Waiting uint32 `json:"waiting"` // now
	// Dropped packets found the queue, or the socket's buffer, full.
	QueueDropped  uint32 `json:"queueDropped"`
	BufferDropped uint32 `json:"bufferDropped"`
}

func newStatus(e env) *cobra.Command {
	var socket, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say what the agent on this host enforces",
		Long: `Say what the agent on this host enforces, how far it is behind its source, and
how its queues do.

Exit codes: 0 it enforces, 2 it runs but does not (an audit never does), 1 there is no answer.`,
		Example: `  netverdict status
  kubectl -n kube-system exec ds/netverdict -- /netverdict status -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("--output %q: want text or json", output)
			}
			s, err := askStatus(cmd.Context(), socket)
			if err != nil {
				return err
			}
			if err := writeStatus(e.stdout, s, output); err != nil {
				return err
			}
			if !s.Enforcing {
				return errAnswerNo
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&socket, "socket", defaultStatusSocket, "the agent's --status-socket `path`")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "`format`: text or json")
	return cmd
}

// askStatus asks the agent behind a socket.
func askStatus(ctx context.Context, socket string) (*Status, error) {
	client := http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+pathStatus, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the agent at %s: %w%s", socket, withoutURL(err), hint(err, "--status-socket"))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the agent at %s: %s", socket, resp.Status)
	}
	var s Status
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return nil, fmt.Errorf("ask the agent at %s: %w", socket, err)
	}
	return &s, nil
}

// withoutURL drops the made-up URL that is asked for from an error of an HTTP client.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// hint says what usually lies behind an error of asking an agent that listens where a
// flag of its says.
func hint(err error, flag string) string {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return " (no agent runs here, or with another " + flag + " or none)"
	case errors.Is(err, fs.ErrPermission):
		return " (only the user that runs the agent may ask; try as root)"
	}
	return ""
}

func writeStatus(out io.Writer, s *Status, output string) error {
	if output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, name+"\t"+format+"\n", args...) }
	line("enforcing", "%s", enforcingText(s))
	line("version", "%s", s.Version)
	if s.Node != "" {
		line("node", "%s", s.Node)
	}
	if s.Mode != modeAudit {
		line("host", "iptables %s; %s", s.Backend, s.NodeFacts.factsText())
	}
	if s.NodeFacts.Problem != "" {
		line("", "not everything could be found out: %s", s.NodeFacts.Problem)
	}
	line("source", "%s", s.Source)
	for _, k := range s.Cluster {
		line("", "%s: %s", k.Kind, kindText(k))
	}
	line("revision", "%d, applied %s, %s", s.Revision, timeText(s.Applied), lagText(s.LagSeconds))
	line("policies", "%d select pods of this node; %d of its pods' addresses are policed, %d addresses known", s.Policies, s.Policed, s.Addresses)
	for _, o := range s.OverLimit[:min(len(s.OverLimit), maxOverLimit)] {
		line("over limit", "%s", o)
	}
	if more := len(s.OverLimit) - maxOverLimit; more > 0 {
		line("", "and %d more policies (-o json lists all)", more)
	}
	if s.Mode != modeAudit {
		line("packets", "%s", packetsText(s.Rules))
	}
	line("decisions", "%d allowed, %d denied, %d audited, %d packets on hold, %d flow records lost", s.Allowed, s.Denied, s.Audited, s.Holding, s.FlowsLost)
	for _, q := range s.Queues {
		line(fmt.Sprintf("queue %d", q.Number), "%d packets judged, %d waiting, %d dropped (queue full), %d dropped (buffer full)",
			q.Packets, q.Waiting, q.QueueDropped, q.BufferDropped)
	}
	for _, l := range s.ListenLater {
		line("waits", "for another process to leave %s", l)
	}
	if s.PodStart != "" {
		line("pod start", "%s", podStartText(s.PodStart))
	}
	if s.Mode == modeAudit {
		if s.Audit != nil {
			line("copies", "%s", auditText(s.Audit))
		}
		return w.Flush()
	}
	s.writeDenials(line)
	line("fails", "%s; on stop %s", failText(s.FailMode), s.OnStop)
	return w.Flush()
}

// maxOverLimit is how many policies over a limit the text names.
const maxOverLimit = 10

// writeDenials says how packets are denied, besides by policies.
func (s *Status) writeDenials(line func(name, format string, args ...any)) {
	if s.Deny != nil {
		line("denies", "with %s where a namespace does not say; %d answers given, %d not", s.Deny.Default, s.Deny.Answered, s.Deny.Unanswered)
	}
	if s.AntiSpoof != nil {
		line("anti-spoof", "%s", s.AntiSpoof.text())
	}
	if s.Bridges != nil {
		line("bridges", "%s", s.Bridges.text())
	}
}

func enforcingText(s *Status) string {
	switch {
	case s.Mode == modeAudit && s.Problem != "":
		return "no: " + notEnforced + ", and it is not the newest state that is audited: " + s.Problem
	case s.Mode == modeAudit:
		return "no: " + notEnforced
	case s.Enforcing && s.Problem != "":
		return "yes, but not the newest state: " + s.Problem
	case s.Enforcing:
		return "yes"
	case s.Problem != "":
		return "no: " + s.Problem
	}
	return "no, waiting for the first state"
}

func kindText(k KindStatus) string {
	text := fmt.Sprintf("%d objects", k.Objects)
	if k.Revision != "" {
		text += " at resourceVersion " + k.Revision
	}
	if !k.Connected {
		text += ", not connected"
	}
	if k.Error != "" {
		text += ": " + k.Error
	}
	return text
}

func lagText(seconds float64) string {
	if seconds == 0 {
		return "nothing newer is known"
	}
	return fmt.Sprintf("%.3f s behind what is known", seconds)
}

func failText(mode string) string {
	if mode == "open" {
		return "open: without an agent, or with a full queue, new connections pass"
	}
	return "closed: without an agent, or with a full queue, new connections of policed pods are dropped"
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}
