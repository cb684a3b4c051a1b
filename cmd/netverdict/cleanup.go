package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/netverdict/netverdict/engine/hook"
)

func newCleanup(e env) *cobra.Command {
	cfg := hook.Config{IPv4: true, IPv6: true}
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove the rules and sets that a stopped agent left",
		Long: `Remove the iptables rules and ipsets that an agent left behind on this host: one
that ran with --on-stop keep-closed, or was killed. From then on nothing is
enforced. Nothing that belongs to others is touched; doing it twice does no harm.

Stop the agent first: a running one puts its rules back.`,
		Example: "  netverdict cleanup",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
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
			if err := h.Remove(); err != nil {
				return err
			}
			for _, l := range left {
				fmt.Fprintln(e.stdout, "removed", l)
			}
			return nil
		},
	}
	return cmd
}
