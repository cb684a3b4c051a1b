package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/netverdict/netverdict/engine/seccomp"
)

// seccompOptions are the flags about what an agent forbids itself.
type seccompOptions struct {
	enabled bool
	given   bool // it was asked for, so it must be possible
}

func (o *seccompOptions) addFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.enabled, "seccomp", true, "confine the agent and the commands that it runs to the system calls that they need; if it is not given, an agent that cannot goes on without")
}

// installProfile is replaced by tests that watch what a profile lacks.
var installProfile = (*seccomp.Profile).Install

// confine confines this process for good.
func (o *agentOptions) confine(log *slog.Logger) error {
	if !o.seccomp.enabled {
		return nil
	}
	profile := seccomp.Enforcing()
	if o.mode.audits() {
		profile = seccomp.Auditing()
	}
	err := installProfile(profile)
	switch {
	case err != nil && o.seccomp.given:
		return fmt.Errorf("--seccomp: %w", err)
	case err != nil:
		log.Warn("the agent may make any system call; it is not confined", "error", err)
	default:
		log.Info("confined to the system calls of an agent (--seccomp)")
	}
	return nil
}
