package flow

import (
	"fmt"

	"github.com/netverdict/netverdict/policy"
)

// Filter chooses by verdict which flows are shown: the value of --flow-log. The
// zero Filter shows denied flows and those that would be, were they not only
// audited. It can back a command-line flag (TextVar).
type Filter uint8

const (
	Denied Filter = iota
	All
	None
)

var filterNames = [...]string{Denied: "denied", All: "all", None: "none"}

// Keep reports whether flows of that reported verdict (Decision.Reported) are shown. A worker may ask before
// it pushes, to spare the ring what no sink wants.
func (f Filter) Keep(v policy.Verdict) bool {
	switch f {
	case All:
		return true
	case Denied:
		return v != policy.Allow
	}
	return false
}

func (f Filter) String() string {
	if int(f) < len(filterNames) {
		return filterNames[f]
	}
	return filterNames[None]
}

// MarshalText renders the filter as String does.
func (f Filter) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText accepts "denied", "all" and "none".
func (f *Filter) UnmarshalText(b []byte) error {
	for i, name := range filterNames {
		if name == string(b) {
			*f = Filter(i)
			return nil
		}
	}
	return fmt.Errorf("flow filter %q: want denied, all or none", b)
}
