// Command netverdict enforces Kubernetes NetworkPolicy from user space and
// answers questions about policies. One file per verb; this one holds what they
// share: the environment, and how errors become exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes: a script can tell "no" from "could not find out".
const (
	exitOK     = 0
	exitFailed = 1 // could not run
	exitNo     = 2 // ran, and the answer is no
)

// env is the outside world, injected so that tests can replace it.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
}

// answerNo is returned by a verb that ran and whose answer is no. It has been
// printed already.
var errAnswerNo = errors.New("the answer is no")

func main() {
	os.Exit(run(context.Background(), env{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:]))
}

// untilSignal is the context of a verb that has something to put in order
// before it ends: the first SIGINT or SIGTERM ends the context, a second one
// kills, as the first does with all other verbs.
func untilSignal(cmd *cobra.Command) (ctx context.Context, stop func()) {
	ctx, stop = signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

func run(ctx context.Context, e env, args []string) int {
	root := newRoot(e)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errAnswerNo):
		return exitNo
	}
	fmt.Fprintf(e.stderr, "netverdict: %v\n", err)
	return exitFailed
}

func newRoot(e env) *cobra.Command {
	root := &cobra.Command{
		Use:   "netverdict",
		Short: "Enforce Kubernetes NetworkPolicy from user space, and explain every decision",
		Long: `netverdict enforces Kubernetes NetworkPolicy on a node: iptables sends the first
packet of each new connection to a queue, a compiled decision tree judges it, and
the kernel remembers the decision. The same tree answers questions offline.

Exit codes: 0 yes or done, 1 could not run, 2 ran and the answer is no.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	explainUsage(root, os.Args[0])
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.AddCommand(newAgent(e), newAudit(e), newCleanup(e), newDemo(e), newEval(e), newExplain(e), newFlows(e), newProbe(e), newStatus(e), newVersion(e))
	return root
}
