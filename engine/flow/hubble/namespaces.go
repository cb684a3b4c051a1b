package hubble

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// namespaceTime is how long a namespace is listed after its last flow: what the
// API's description of GetNamespaces promises.
const namespaceTime = time.Hour

// namespaces are those that had flows, with the time of the last, in Unix
// nanoseconds.
type namespaces struct {
	mu   sync.Mutex
	last map[string]int64
}

// note enters the namespaces of the pods of a batch. Their names are the
// snapshots' own strings, so few of them are new.
func (n *namespaces) note(events []event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.last == nil {
		n.last = map[string]int64{}
	}
	for i := range events {
		e := &events[i]
		for _, end := range [...]*end{&e.src, &e.dst} {
			if end.kind == podEnd {
				n.last[end.pod.Namespace] = e.Time
			}
		}
	}
}

// list returns the names, sorted, and forgets those of long ago.
func (n *namespaces) list(now time.Time) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.last, func(_ string, t int64) bool { return now.Sub(time.Unix(0, t)) > namespaceTime })
	return slices.Sorted(maps.Keys(n.last))
}
