package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/turn"
)

func newCleanup(e env) *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup",
		Short: "Remove the rules and sets that a stopped agent left",
		Long: `Remove the iptables rules and ipsets that an agent left behind on this host: one
that ran with --on-stop keep-closed, or was killed. From then on nothing is
enforced. Nothing that belongs to others is touched; doing it twice does no harm.

Stop the agent first: while one enforces, cleanup refuses, because everything would
pass until that agent has put its rules back.`,
		Example: "  netverdict cleanup",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cleanUp(cmd.Context(), e) },
	}
}

func cleanUp(ctx context.Context, e env) (err error) {
	cfg := hook.Config{IPv4: true, IPv6: true}
	left, err := hook.Leftovers(cfg)
	if err != nil {
		return err
	}
	if len(left) == 0 {
		fmt.Fprintln(e.stdout, "nothing to remove")
		return nil
	}
	h, err := hook.Open(cfg)
	if err != nil {
		return err
	}
	mine, takeErr := turn.Take(ctx, h, hook.DefaultPrefix, false)
	switch {
	case takeErr == nil:
		defer func() { err = errors.Join(err, mine.Yield()) }()
	case errors.Is(takeErr, turn.ErrTaken):
		return errors.New("an agent enforces on this host, and would put its rules back: stop it first")
	default: // no reason to leave rules that nobody may answer for
		fmt.Fprintf(e.stderr, "netverdict: it could not be found out whether an agent runs: %v\n", takeErr)
	}
	if err := h.Remove(); err != nil {
		return err
	}
	for _, l := range left {
		fmt.Fprintln(e.stdout, "removed", l)
	}
	return nil
}
