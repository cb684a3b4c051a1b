package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"

	"github.com/spf13/cobra"
	kjson "sigs.k8s.io/json"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// maxFlowLine bounds one line of eval's input, in bytes. A flow needs under 1 KiB.
const maxFlowLine = 1 << 20

func newEval(e env) *cobra.Command {
	var m manifests
	var flows string
	cmd := &cobra.Command{
		Use:   "eval -f DIR --flows FILE",
		Short: "Decide many connections against manifests, without a cluster",
		Long: `Decide many connections against manifests (Namespaces, Pods with status, Nodes,
NetworkPolicies; YAML or JSON), without a cluster and without privileges.

Each input line is one connection as a JSON object:
  {"source":"ns/pod or IP","destination":"ns/pod or IP","protocol":"TCP","port":80}
protocol is TCP unless given; ICMP and other protocols need no port. Each output
line repeats it and adds the verdict (allow, deny, or audit: denied by policies in a
namespace that is only audited, so it passes) and, for both directions, why. Here every
pod's policies apply, wherever it runs. A line that cannot be evaluated yields
{"error":…,"line":N} and exit code 1 at the end; empty lines are passed over.`,
		Example: `  echo '{"source":"shop/cart","destination":"shop/db","port":5432}' |
    netverdict eval -f manifests/ --flows -`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := m.refuseStdinTwice("--flows", flows); err != nil {
				return err
			}
			w, err := loadWorld(e, m)
			if err != nil {
				return err
			}
			in, err := openInput(e, flows)
			if err != nil {
				return err
			}
			defer in.Close()
			return evalFlows(w, in, e.stdout)
		},
	}
	m.addFlags(cmd)
	cmd.Flags().StringVar(&flows, "flows", "", "`file` with one connection per line, - for standard input (required)")
	require(cmd, "flows", "which connections are to be decided? A file with one a line, or - for standard input")
	return cmd
}

func openInput(e env, path string) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(e.stdin), nil
	}
	return os.Open(path)
}

// flowIn is a line of eval's input.
type flowIn struct {
	Source      string  `json:"source"`
	Destination string  `json:"destination"`
	Protocol    *string `json:"protocol"`
	Port        *number `json:"port"`
}

// port checks the port also where it does not matter: nobody means -5.
func (in *flowIn) port(p policy.Protocol) (uint16, error) {
	switch {
	case in.Port == nil && p.HasPorts():
		return 0, fmt.Errorf("port is missing: %s needs one", p)
	case in.Port == nil:
		return 0, nil
	case p.HasPorts() && (*in.Port < 1 || *in.Port > 65535):
		return 0, fmt.Errorf("port %d is not within 1–65535", *in.Port)
	case *in.Port < 0 || *in.Port > 65535:
		return 0, fmt.Errorf("port %d is not within 0–65535", *in.Port)
	}
	return uint16(*in.Port), nil
}

// flowOut is a line of eval's output: the input as given, and the decision.
type flowOut struct {
	Source      string            `json:"source"`
	Destination string            `json:"destination"`
	Protocol    string            `json:"protocol"`
	Port        *number           `json:"port,omitempty"`
	Verdict     policy.Verdict    `json:"verdict"`
	Egress      *flow.OutcomeJSON `json:"egress"`
	Ingress     *flow.OutcomeJSON `json:"ingress"`
}

type flowError struct {
	Error string `json:"error"`
	Line  int    `json:"line"`
}

func evalFlows(w *world, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	buffered := bufio.NewWriter(out)
	enc := json.NewEncoder(buffered)
	enc.SetEscapeHTML(false)
	bad := 0
	for n := 1; ; n++ {
		if lines.Buffered() == 0 { // whoever waits for answers gets those there are
			if err := buffered.Flush(); err != nil {
				return fmt.Errorf("write decisions: %w", err)
			}
		}
		line, tooLong, err := readLine(lines)
		if n == 1 {
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf")) // a byte order mark
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read flows: %w", err)
		}
		if len(bytes.TrimSpace(line)) > 0 || tooLong {
			answer, evalErr := evalLine(w, line, tooLong)
			if evalErr != nil {
				bad++
				answer = flowError{evalErr.Error(), n}
			}
			if encErr := enc.Encode(answer); encErr != nil {
				return fmt.Errorf("write decisions: %w", encErr)
			}
		}
		if err != nil {
			break
		}
	}
	if err := buffered.Flush(); err != nil {
		return fmt.Errorf("write decisions: %w", err)
	}
	switch bad {
	case 0:
		return nil
	case 1:
		return errors.New("one line could not be evaluated")
	}
	return fmt.Errorf("%d lines could not be evaluated", bad)
}

// readLine returns the next line without its end; of one that is too long,
// only that it is.
func readLine(r *bufio.Reader) (line []byte, tooLong bool, err error) {
	for {
		part, err := r.ReadSlice('\n')
		if tooLong = tooLong || len(line)+len(part) > maxFlowLine; !tooLong {
			line = append(line, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, tooLong, err
		}
	}
}

func evalLine(w *world, line []byte, tooLong bool) (any, error) {
	if tooLong {
		return nil, fmt.Errorf("the line is longer than %d bytes", maxFlowLine)
	}
	in, err := parseFlow(line)
	if err != nil {
		return nil, err
	}
	out := flowOut{Source: in.Source, Destination: in.Destination, Protocol: policy.TCP.String(), Port: in.Port}
	if in.Protocol != nil {
		out.Protocol = *in.Protocol
	}
	protocol, err := policy.ParseProtocol(out.Protocol)
	if err != nil {
		return nil, err
	}
	port, err := in.port(protocol)
	if err != nil {
		return nil, err
	}
	src, dst, err := w.ends(in.Source, in.Destination)
	if err != nil {
		return nil, err
	}
	d := w.tree.Decide(src, dst, protocol, port)
	out.Verdict = d.Reported()
	out.Egress, out.Ingress = flow.NewOutcome(d.Egress), flow.NewOutcome(d.Ingress)
	return out, nil
}

// parseFlow reads a line strictly: no unknown, repeated or misspelt field.
func parseFlow(line []byte) (in flowIn, err error) {
	strict, err := kjson.UnmarshalStrict(line, &in)
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	switch {
	case err != nil:
		return in, fmt.Errorf("not a flow: %w", inWords(err))
	case in.Source == "":
		return in, errors.New("source is missing")
	case in.Destination == "":
		return in, errors.New("destination is missing")
	}
	return in, nil
}

// inWords says a JSON error without the names of this program's types.
func inWords(err error) error {
	var wrong *json.UnmarshalTypeError
	switch {
	case !errors.As(err, &wrong):
		return err
	case wrong.Field == "":
		return fmt.Errorf("want a JSON object, got %s", wrong.Value)
	}
	return fmt.Errorf("%s: want a string, got %s", wrong.Field, wrong.Value)
}

// number is a JSON number without a fraction; 80.0 and 8e1 are how some
// programs write 80.
type number int

// UnmarshalJSON implements json.Unmarshaler.
func (n *number) UnmarshalJSON(b []byte) error {
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return fmt.Errorf("port: want a whole number, got %s", b)
	}
	*n = number(f)
	return nil
}
