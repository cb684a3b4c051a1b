package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/netverdict/netverdict/engine/flow"
)

// maxComplaints bounds the lines of a log that are named because they cannot be read.
const maxComplaints = 10

// replay hands the flows of a log to add. What is no JSON object is passed over
// with a remark at the end: kubectl logs mixes the agent's messages in. An object
// that is no flow is an error, but not the end.
func replay(e env, path string, add func(*flow.Line) error) error {
	in, err := openInput(e, path)
	if err != nil {
		return err
	}
	defer in.Close()
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, flow.MaxLineLen)
	other, bad, n := 0, 0, 0
	for lines.Scan() {
		n++
		text := bytes.TrimSpace(lines.Bytes())
		if len(text) == 0 {
			continue
		}
		if text[0] != '{' {
			other++
			continue
		}
		line, err := flow.ParseLine(text)
		if err != nil {
			if bad++; bad <= maxComplaints {
				fmt.Fprintf(e.stderr, "netverdict: %s line %d: %s\n", inputName(path), n, printable(noFlow(err).Error()))
			}
			continue
		}
		if err := add(&line); err != nil {
			return err
		}
	}
	if other > 0 {
		fmt.Fprintf(e.stderr, "netverdict: %s: passed over lines that are no flow records: %d\n", inputName(path), other)
	}
	return replayEnd(path, n, bad, lines.Err())
}

// noFlow says why a JSON object is no flow without the names of this program's types.
func noFlow(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Errorf("not a flow log line: %s is a %s", wrong.Field, wrong.Value)
	}
	return err
}

func replayEnd(path string, n, bad int, err error) error {
	switch {
	case errors.Is(err, bufio.ErrTooLong):
		return fmt.Errorf("%s line %d: longer than %d bytes: no flow log", inputName(path), n+1, flow.MaxLineLen)
	case err != nil && path == "-":
		return fmt.Errorf("read %s: %w", inputName(path), err)
	case err != nil: // names the file
		return err
	case bad > 0:
		return fmt.Errorf("%s: lines that could not be read: %d", inputName(path), bad)
	}
	return nil
}

func inputName(path string) string {
	if path == "-" {
		return "standard input"
	}
	return path
}
