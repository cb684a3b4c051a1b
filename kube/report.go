package kube

import (
	"fmt"

	"github.com/netverdict/netverdict/policy"
)

// maxNotices bounds the notices of each severity in a Report.
const maxNotices = 1000

// Severity says how much a notice matters.
type Severity uint8

const (
	// Skipped: an object of a kind that does not matter here, or a hidden file.
	Skipped Severity = iota
	// Warning: a valid policy that may not mean what its author thinks.
	Warning
	// NotEnforced: a policy of an API that is not supported; it has no effect here.
	NotEnforced
)

var severityNames = [...]string{Skipped: "skipped", Warning: "warning", NotEnforced: "not enforced"}

func (s Severity) String() string {
	if int(s) < len(severityNames) {
		return severityNames[s]
	}
	return fmt.Sprintf("severity %d", uint8(s))
}

// Notice is something worth knowing that does not stop a load.
type Notice struct {
	Place
	Severity Severity
	Object   string // as in Problem
	Text     string
}

func (n Notice) String() string {
	return Problem{Place: n.Place, Object: n.Object, Text: n.Text}.String()
}

// Report says what a load read.
type Report struct {
	Files     int // files read
	Documents int // documents in them that were not empty
	// Objects that the snapshot is made of.
	Namespaces, Pods, Nodes, NetworkPolicies int
	// Notices in the order of the files, at most 1,000 of each severity.
	Notices []Notice
	// Dropped counts the notices left out because of that bound.
	Dropped int

	policies map[policy.NamespacedName]Place
	counts   [len(severityNames)]int
}

// PolicyAt is where a NetworkPolicy is; ok is false if it is from no file.
func (r *Report) PolicyAt(name policy.NamespacedName) (at Place, ok bool) {
	at, ok = r.policies[name]
	return at, ok
}

func (r *Report) notice(at Place, s Severity, object, text string) {
	if r.counts[s] >= maxNotices {
		r.Dropped++
		return
	}
	r.counts[s]++
	r.Notices = append(r.Notices, Notice{Place: at, Severity: s, Object: printable(object), Text: printable(text)})
}

// Count returns the number of notices of a severity, at most 1,000.
func (r *Report) Count(s Severity) int {
	if int(s) >= len(r.counts) {
		return 0
	}
	return r.counts[s]
}
