package hubble

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"k8s.io/apimachinery/pkg/labels"
)

// side is one of the two ends of a flow.
type side uint8

const (
	source side = iota
	destination
)

func (w side) addr(e *event) netip.Addr {
	if w == source {
		return e.Src
	}
	return e.Dst
}

func (w side) port(e *event) uint16 {
	if w == source {
		return e.SrcPort
	}
	return e.DstPort
}

func (w side) end(e *event) *end {
	if w == source {
		return &e.src
	}
	return &e.dst
}

// addrs holds for addresses in a list of addresses and ranges.
func addrs(which side, want []string) (condition, error) {
	var prefixes []netip.Prefix
	for _, text := range want {
		p, err := parsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%q is neither an IP address nor a range in CIDR notation", text)
		}
		prefixes = append(prefixes, p)
	}
	return func(c *candidate) bool {
		a := which.addr(c.event)
		return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
	}, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	if strings.Contains(text, "/") {
		return netip.ParsePrefix(text)
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// pods holds for pods by NAMESPACE/PREFIX, NAMESPACE/ and /PREFIX. A bare PREFIX is
// of the namespace "default", as Cilium's server and kubectl have it.
func pods(which side, want []string) (condition, error) {
	type pattern struct{ namespace, prefix string }
	var patterns []pattern
	for _, text := range want {
		namespace, prefix, ok := strings.Cut(text, "/")
		switch {
		case text == "" || strings.Contains(prefix, "/"):
			return nil, fmt.Errorf("%q: want NAMESPACE/POD, NAMESPACE/ or /POD", text)
		case !ok:
			namespace, prefix = "default", text
		}
		patterns = append(patterns, pattern{namespace, prefix})
	}
	return func(c *candidate) bool {
		e := which.end(c.event)
		return e.kind == podEnd && slices.ContainsFunc(patterns, func(p pattern) bool {
			return (p.namespace == "" || p.namespace == e.pod.Namespace) && strings.HasPrefix(e.pod.Name, p.prefix)
		})
	}, nil
}

func workloads(which side, want []*flowpb.Workload) condition {
	return func(c *candidate) bool {
		e := which.end(c.event)
		if e.kind != podEnd || e.pod.Workload.Kind == "" {
			return false
		}
		have := e.pod.Workload
		return slices.ContainsFunc(want, func(w *flowpb.Workload) bool {
			return (w.GetName() == "" || w.GetName() == have.Name) && (w.GetKind() == "" || w.GetKind() == have.Kind)
		})
	}
}

// identities knows the reserved numbers only: pods have none here.
func (s *Server) identities(which side, want []uint32) (condition, error) {
	for _, id := range want {
		if id >= firstPodIdentity {
			return nil, fmt.Errorf("%d: pods have no identity numbers here; filter by label", id)
		}
	}
	return func(c *candidate) bool { return slices.Contains(want, s.identity(which.end(c.event))) }, nil
}

func (s *Server) clusters(which side, want []string) condition {
	ours := slices.Contains(want, s.opts.Cluster)
	return func(c *candidate) bool {
		k := which.end(c.event).kind
		return ours && (k == podEnd || k == nodeEnd)
	}
}

// selectors holds for ends that one of the label selectors selects.
func selectors(which side, want []string) (condition, error) {
	var list []labels.Selector
	for _, text := range want {
		s, err := parseSelector(text)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		list = append(list, s)
	}
	return func(c *candidate) bool {
		have := endLabels{which.end(c.event)}
		return slices.ContainsFunc(list, func(s labels.Selector) bool { return s.Matches(have) })
	}, nil
}
