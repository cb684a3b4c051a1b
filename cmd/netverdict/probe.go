package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// defaultHealth is where install.yaml's agents answer, in their own pod.
const defaultHealth = unixPrefix + "/run/health/netverdict.sock"

// maxProbeAnswer is what is read of an answer: a kubelet shows 10 KiB at most.
const maxProbeAnswer = 10 << 10

func newProbe(e env) *cobra.Command {
	address := healthAddress{defaultHealth}
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "probe healthz|readyz",
		Short: "Ask an agent whether it lives, or enforces",
		Long: `Ask the --health-address of an agent whether it lives (healthz) or enforces
(readyz), and print what it says. It is meant for exec probes: an image needs no
shell, and agents on one host network need no port each.

Exit codes: 0 yes, 2 the agent says no, 1 there is no answer.`,
		Example: `  netverdict probe readyz
  netverdict probe healthz --health-address 127.0.0.1:8051
  kubectl -n kube-system exec ds/netverdict -- /netverdict probe readyz`,
		Args: oneOf(strings.TrimPrefix(pathHealth, "/"), strings.TrimPrefix(pathReady, "/")),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 {
				return fmt.Errorf("--timeout %v: want more than 0", timeout)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			status, text, err := askHealth(ctx, &address, "/"+args[0])
			if err != nil {
				return fmt.Errorf("ask %s for %s: %w%s", &address, args[0], withoutURL(err), hint(err, "--health-address"))
			}
			fmt.Fprint(e.stdout, text)
			if status != http.StatusOK {
				return errAnswerNo
			}
			return nil
		},
	}
	cmd.Flags().Var(&address, "health-address", "the agent's --health-address: unix:PATH or HOST:PORT")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for the answer")
	return cmd
}

// askHealth returns what an agent says. Any status but OK and Service Unavailable is
// somebody else's, and an error.
func askHealth(ctx context.Context, a *healthAddress, path string) (status int, text string, err error) {
	network, target := a.endpoint()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, target)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeAnswer))
	if err != nil {
		return 0, "", err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		return 0, "", fmt.Errorf("%s: this is no agent's health endpoint", resp.Status)
	}
	return resp.StatusCode, string(body), nil
}
