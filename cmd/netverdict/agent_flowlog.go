package main

import (
	"fmt"
	"io"
	"log/slog"
	"math"
	"time"

	"github.com/spf13/cobra"

	"github.com/netverdict/netverdict/engine/flow"
)

// flowLogOptions are the agent's flags about the flow log.
type flowLogOptions struct {
	filter     flow.Filter
	file       string
	maxSize    int
	maxBackups int
	fold       time.Duration
	rate       float64
	burst      int
}

func (o *flowLogOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.TextVar(&o.filter, "flow-log", flow.Denied, "`which` flows to print: denied, all or none; for all, the kernel reports the connections that it lets pass by itself")
	f.StringVar(&o.file, "flow-log-file", "-", "`path` of the flow log; - is standard output")
	f.IntVar(&o.maxSize, "flow-log-max-size", 100, "`MiB` at which the file is renamed and a new one begun")
	f.IntVar(&o.maxBackups, "flow-log-max-backups", 3, "renamed files that are kept")
	f.DurationVar(&o.fold, "flow-log-fold", time.Minute, "repeated denials become one line with a count this often; 0 prints each")
	f.Float64Var(&o.rate, "flow-log-rate", 100, "flow log lines per second at most, for denied and for allowed flows apart; what is withheld is counted; 0 for no limit")
	f.IntVar(&o.burst, "flow-log-burst", 1000, "lines at once at most, after a time with fewer")
}

func (o *flowLogOptions) validate() error {
	switch {
	case o.file == "":
		return fmt.Errorf("--flow-log-file %q: want a path, or - for standard output", o.file)
	case o.maxSize < 1:
		return fmt.Errorf("--flow-log-max-size %d: want 1 MiB or more", o.maxSize)
	case o.maxBackups < 1:
		return fmt.Errorf("--flow-log-max-backups %d: want 1 or more", o.maxBackups)
	case o.fold < 0:
		return fmt.Errorf("--flow-log-fold %v: want 0 or more", o.fold)
	case o.rate < 0 || math.IsNaN(o.rate) || math.IsInf(o.rate, 0):
		return fmt.Errorf("--flow-log-rate %v: want 0 or more lines per second", o.rate)
	case o.burst < 1:
		return fmt.Errorf("--flow-log-burst %d: want 1 or more lines", o.burst)
	}
	return nil
}

// open returns the flow log and what closes its file, to be called after the
// collector has ended.
func (o *flowLogOptions) open(e env, log *slog.Logger) (*flow.Log, io.Closer, error) {
	out, closer := e.stdout, io.Closer(io.NopCloser(nil))
	if o.file != "-" {
		file, err := flow.OpenFile(o.file, o.maxSize, o.maxBackups)
		if err != nil {
			return nil, nil, fmt.Errorf("--flow-log-file: %w", err)
		}
		out, closer = file, file
	}
	return flow.NewLog(out, flow.LogConfig{
		Filter: o.filter, FoldEvery: o.fold, Rate: o.rate, Burst: o.burst,
		Report: func(err error) {
			log.Error("the flow log cannot be written; flows are lost until it can", "error", err)
		},
	}), closer, nil
}
