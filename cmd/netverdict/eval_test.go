package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/oracle"
	"github.com/netverdict/netverdict/policy/policytest"
)

// What eval prints for random clusters, from YAML on disk to JSON lines, is what
// the oracle says of the objects they were written from: ends given as
// addresses and, where a pod holds the address, as names.
func TestEvalAgreesWithOracle(t *testing.T) {
	t.Parallel()
	for seed := range uint64(150) {
		s := policytest.Random(seed, policytest.Size{})
		s.Local, s.LocalPodCIDRs = nil, nil // eval applies every pod's policies and has no node
		input, want := randomFlows(t, s, seed, 60)
		got := runEval(t, policytest.Manifests(s), input)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: eval differs from the oracle (-want +got):\n%s", seed, diff)
		}
	}
}

// randomFlows draws connections and writes the answers that the oracle gives.
func randomFlows(t *testing.T, s *policy.Snapshot, seed uint64, n int) (input, want string) {
	rng := policytest.NewRand(seed)
	var in, out strings.Builder
	for range n {
		f := policytest.RandomFlow(rng, s)
		if f.Protocol.HasPorts() && f.Port == 0 {
			continue // a line that cannot be evaluated
		}
		d := oracle.Decide(s, f.Src, f.Dst, f.Protocol, f.Port)
		o := flowOut{
			Source: f.Src.String(), Destination: f.Dst.String(), Protocol: f.Protocol.String(), Verdict: d.Reported(),
			Egress: flow.NewOutcome(d.Egress), Ingress: flow.NewOutcome(d.Ingress),
		}
		if f.Protocol.HasPorts() {
			port := number(f.Port)
			o.Port = &port
		}
		if rng.IntN(2) == 0 {
			o.Source = nameOf(s, f.Src, f.Dst)
		}
		fmt.Fprintln(&in, compact(t, map[string]any{"source": o.Source, "destination": o.Destination, "protocol": o.Protocol, "port": o.Port}))
		fmt.Fprintln(&out, compact(t, o))
	}
	return in.String(), out.String()
}

// nameOf names the pod that holds an address, if the name stands for just that
// address when the other end is peer: a pod with two has one per family.
func nameOf(s *policy.Snapshot, a, peer netip.Addr) string {
	if a.BitLen() != peer.BitLen() {
		return a.String()
	}
	for _, p := range s.Pods {
		if p.HostNetwork || p.Phase == policy.PhaseEnded {
			continue
		}
		for _, held := range p.Addrs {
			if held != a {
				continue
			}
			if name := soleHolder(s, p); name != "" {
				return name
			}
		}
	}
	return a.String()
}

// soleHolder is the name of a pod that shares none of its addresses.
func soleHolder(s *policy.Snapshot, p *policy.Pod) string {
	for _, other := range s.Pods {
		if other == p {
			continue
		}
		for _, a := range p.Addrs {
			for _, b := range other.Addrs {
				if a == b {
					return ""
				}
			}
		}
	}
	return p.NamespacedName.String()
}

func compact(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func runEval(t *testing.T, manifests []byte, input string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), manifests, 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), env{strings.NewReader(input), &stdout, &stderr}, []string{"eval", "-f", dir, "--flows", "-"}); code != exitOK {
		t.Fatalf("eval exits with %d: %s", code, &stderr)
	}
	return stdout.String()
}
