package hook

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tables runs the iptables commands of one family and backend.
type tables struct {
	family  family
	backend Backend // NFT or Legacy
	restore string  // path
	save    string  // path
	pace    *pace
	held    *held // what commit left running
}

// grace is how much earlier than the timeout iptables gives up waiting for its
// lock: it then says who holds it, which a killed command cannot.
const grace = 5 * time.Second

func (t *tables) String() string { return fmt.Sprintf("%s (%v)", t.family.commands(), t.backend) }

// apply runs iptables-restore: one transaction. The error of a command that ran
// out of time does not say whether the transaction took place.
func (t *tables) apply(input string) error {
	_, err := t.run(input, t.restore, "--noflush", "-w", strconv.Itoa(t.pace.lockWait()))
	return t.restoreError(input, err)
}

func (t *tables) restoreError(input string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", filepath.Base(t.restore), withLine(err, input))
}

// read runs iptables-save for the mangle table.
func (t *tables) read() (saved, error) {
	out, err := t.run("", t.save, "-c", "-t", mangle)
	if err != nil {
		return saved{}, fmt.Errorf("%s: %w", filepath.Base(t.save), err)
	}
	s, err := parseSaved(bytes.NewReader(out))
	if err != nil {
		return saved{}, fmt.Errorf("read the table %s of %v: %w%s", mangle, t, err, t.nativeHint(err))
	}
	return s, nil
}

// nativeHint is the way out when a table has rules that only nft can read.
func (t *tables) nativeHint(err error) string {
	if !errors.Is(err, errIncompatible) {
		return ""
	}
	nft := "ip"
	if t.family == ipv6 {
		nft = "ip6"
	}
	return fmt.Sprintf(" (nft -a list table %s %s shows them: they belong in a table of their own)", nft, mangle)
}

// commandError is a command that failed.
type commandError struct {
	stderr string
	err    error
}

func (e *commandError) Error() string {
	if e.stderr == "" {
		return e.err.Error()
	}
	return fmt.Sprintf("%v: %s", e.err, e.stderr)
}

func (e *commandError) Unwrap() error { return e.err }

// run runs a command to its end.
func (t *tables) run(stdin, path string, args ...string) ([]byte, error) {
	t.settle()
	cmd, end := t.command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	return out, end(&stderr, err)
}

// command prepares a command with a C locale, so that its messages can be searched,
// with bounded time, and out of reach of signals to our process group: what ends a
// program at a terminal must not end the command with which it removes its rules.
// Whatever becomes of it, end says it.
func (t *tables) command(path string, args ...string) (cmd *exec.Cmd, end func(stderr *bytes.Buffer, err error) error) {
	ctx, cancel := t.pace.context()
	cmd = exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	return cmd, func(stderr *bytes.Buffer, err error) error {
		defer cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer within %v: %w", t.pace.limit(), ctx.Err())
		}
		return &commandError{strings.Join(strings.Fields(stderr.String()), " "), err}
	}
}

// failedLine finds the line number in what iptables-restore complains with:
// "line 5 failed", "Error occurred at line: 5", "line 5: CHAIN_DEL failed".
var failedLine = regexp.MustCompile(`\bline:? (\d+)`)

// withLine adds the text of the line that failed.
func withLine(err error, input string) error {
	var failed *commandError
	if !errors.As(err, &failed) {
		return err
	}
	m := failedLine.FindStringSubmatch(failed.stderr)
	if m == nil {
		return err
	}
	lines := strings.Split(input, "\n")
	n, _ := strconv.Atoi(m[1])
	if n < 1 || n > len(lines) || lines[n-1] == "" || lines[n-1] == "COMMIT" {
		return err // iptables-legacy names COMMIT when the kernel refused any line
	}
	return fmt.Errorf("line %d, %q: %w", n, lines[n-1], err)
}
