package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netverdict/netverdict/kube"
	"github.com/netverdict/netverdict/policy"
)

// world is a set of manifests, compiled so that every pod's policies apply
// wherever it runs, and the pods by name.
type world struct {
	tree *policy.Tree
	pods map[policy.NamespacedName]*policy.Pod
}

// manifests says which ones an offline verb reads.
type manifests struct {
	paths     []string
	recursive bool
	report    *kube.Report // of the last load
}

func (m *manifests) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&m.paths, "filename", "f", nil, "`path` of a manifest file or of a directory of them, or - for standard input; may be repeated (required)")
	cmd.Flags().BoolVarP(&m.recursive, "recursive", "R", false, "read subdirectories too")
	require(cmd, "filename", "where are the manifests? -f DIR, -f FILE, or -f - behind kubectl get ns,pods,nodes,networkpolicies -A -o yaml")
}

// refuseStdinTwice is for a verb with another input, which a flag names.
func (m *manifests) refuseStdinTwice(flag, path string) error {
	if path == "-" && slices.Contains(m.paths, "-") {
		return fmt.Errorf("-f - and %s -: standard input can be read only once", flag)
	}
	return nil
}

// load reads manifests for the offline verbs. What it noticed but did not stop at
// goes to stderr: a policy that is not enforced changes every answer.
func (m *manifests) load(e env) (*policy.Snapshot, error) {
	s, report, err := kube.LoadAll(m.paths, kube.Options{Recursive: m.recursive, Stdin: e.stdin})
	m.report = report
	for _, n := range report.Notices {
		if n.Severity != kube.Skipped {
			fmt.Fprintf(e.stderr, "netverdict: %s: %s\n", n.Severity, n)
		}
	}
	return s, err
}

// compile says on stderr which policies expand too much.
func (m *manifests) compile(e env, s *policy.Snapshot) (*policy.Tree, error) {
	tree, err := policy.Compile(s)
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", strings.Join(m.paths, ", "), err)
	}
	for _, o := range tree.OverLimit() {
		fmt.Fprintf(e.stderr, "netverdict: over a limit: %s\n", overLimitText(o, m.report))
	}
	return tree, nil
}

// loadWorld compiles manifests for all nodes.
func loadWorld(e env, m manifests) (*world, error) {
	s, err := m.load(e)
	if err != nil {
		return nil, err
	}
	tree, err := m.compile(e, s)
	if err != nil {
		return nil, err
	}
	w := &world{tree: tree, pods: make(map[policy.NamespacedName]*policy.Pod, len(s.Pods))}
	for _, p := range s.Pods {
		w.pods[p.NamespacedName] = p
	}
	return w, nil
}

// ends resolves the two ends of a connection, each "namespace/pod" or an IP
// address, to addresses of one family.
func (w *world) ends(source, destination string) (src, dst netip.Addr, err error) {
	sources, err := w.addrs(source)
	if err != nil {
		return src, dst, fmt.Errorf("source %w", err)
	}
	destinations, err := w.addrs(destination)
	if err != nil {
		return src, dst, fmt.Errorf("destination %w", err)
	}
	for _, s := range sources {
		for _, d := range destinations {
			if s.BitLen() == d.BitLen() {
				return s, d, nil
			}
		}
	}
	return src, dst, fmt.Errorf("%s and %s have no addresses of one family (%s, %s)",
		source, destination, addrsText(sources), addrsText(destinations))
}

// addrs lists the addresses of an end, in the pod's own order of preference.
func (w *world) addrs(end string) ([]netip.Addr, error) {
	namespace, name, isPod := strings.Cut(end, "/")
	if !isPod {
		a, err := netip.ParseAddr(end)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("%q: want namespace/pod or an IP address", end)
		}
		return []netip.Addr{a.Unmap()}, nil // ::ffff:10.0.0.1 is how some programs write 10.0.0.1
	}
	p, known := w.pods[policy.NamespacedName{Namespace: namespace, Name: name}]
	if !known {
		return nil, fmt.Errorf("%q: no such pod in the manifests", end)
	}
	return w.podAddrs(p)
}

// podAddrs are the addresses that a pod really holds: a name must never stand
// for another pod's address.
func (w *world) podAddrs(p *policy.Pod) ([]netip.Addr, error) {
	if p.Phase == policy.PhaseEnded {
		return nil, fmt.Errorf("%q: the pod has ended and holds no address", p.NamespacedName)
	}
	addrs := p.Addrs
	if p.HostNetwork && len(addrs) == 0 {
		addrs = p.HostAddrs
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%q: the pod has no address (status.podIPs is empty)", p.NamespacedName)
	}
	for _, a := range addrs {
		if holder, held := w.tree.Pod(a); held && holder != p {
			return nil, fmt.Errorf("%q: its address %s is held by pod %s", p.NamespacedName, a, holder.NamespacedName)
		}
	}
	return addrs, nil
}

func addrsText(addrs []netip.Addr) string {
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, " ")
}
