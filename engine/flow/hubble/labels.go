package hubble

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// Labels as Cilium writes them have a source: k8s:app=web for a pod's own,
// reserved:world for what is no pod. A selector may name the source, or not.
const (
	sourceK8s      = "k8s"
	sourceReserved = "reserved"
	sourceAny      = "any"

	// namespaceLabel is the label that Cilium adds to those of a pod.
	namespaceLabel = "io.kubernetes.pod.namespace"
)

// reserved is the name of an end that is no pod, or "".
func (e *end) reserved() string {
	switch e.kind {
	case worldEnd:
		return "world"
	case nodeEnd:
		return "host"
	case unknownEnd:
		return "unknown"
	}
	return ""
}

// labels lists an end's labels as flows carry them, sorted.
func (e *end) labels() []string {
	if e.kind != podEnd {
		if name := e.reserved(); name != "" {
			return []string{sourceReserved + ":" + name}
		}
		return nil
	}
	all := make([]string, 0, len(e.pod.Labels)+1)
	for k, v := range e.pod.Labels {
		all = append(all, sourceK8s+":"+k+"="+v)
	}
	all = append(all, sourceK8s+":"+namespaceLabel+"="+e.pod.Namespace)
	slices.Sort(all)
	return all
}

// endLabels shows them to a selector that parseSelector made, whose keys are
// SOURCE.KEY.
type endLabels struct{ *end }

var _ labels.Labels = endLabels{}

// Lookup returns the value of a label.
func (l endLabels) Lookup(label string) (value string, ok bool) {
	from, key, _ := strings.Cut(label, ".")
	if l.kind != podEnd {
		return "", (from == sourceReserved || from == sourceAny) && key != "" && key == l.reserved()
	}
	if from != sourceK8s && from != sourceAny {
		return "", false
	}
	if key == namespaceLabel {
		return l.pod.Namespace, true
	}
	value, ok = l.pod.Labels[key]
	return value, ok
}

// Has reports whether there is a label.
func (l endLabels) Has(label string) bool {
	_, ok := l.Lookup(label)
	return ok
}

// Get returns the value of a label, or "".
func (l endLabels) Get(label string) string {
	value, _ := l.Lookup(label)
	return value
}

// parseSelector parses a label selector in which keys may have a source before a
// colon. Kubernetes' selectors have no colons, so the source goes before a dot.
func parseSelector(text string) (labels.Selector, error) {
	var b strings.Builder
	for _, requirement := range splitRequirements(text) {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		trimmed := strings.TrimLeft(requirement, " \t!")
		key := trimmed
		if end := strings.IndexAny(trimmed, " \t=!<>"); end >= 0 {
			key = trimmed[:end]
		}
		b.WriteString(requirement[:len(requirement)-len(trimmed)])
		if from, name, ok := strings.Cut(key, ":"); ok {
			b.WriteString(from + "." + name)
		} else if key != "" {
			b.WriteString(sourceAny + "." + key)
		}
		b.WriteString(trimmed[len(key):])
	}
	return labels.Parse(b.String())
}

// splitRequirements splits at the commas that are not in parentheses.
func splitRequirements(text string) (parts []string) {
	depth, start := 0, 0
	for i, r := range text {
		switch {
		case r == '(':
			depth++
		case r == ')':
			depth--
		case r == ',' && depth == 0:
			parts = append(parts, text[start:i])
			start = i + 1
		}
	}
	return append(parts, text[start:])
}
