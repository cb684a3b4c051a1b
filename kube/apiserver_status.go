package kube

import (
	"slices"
	"time"

	"github.com/netverdict/netverdict/policy"
)

// kind is one of the watched kinds.
type kind int

const (
	namespaceKind kind = iota
	podKind
	nodeKind
	policyKind
	kinds // how many there are
)

func (k kind) String() string {
	return [kinds]string{"Namespace", "Pod", "Node", "NetworkPolicy"}[k]
}

// ClusterStatus says how far a Cluster knows the API server's state.
type ClusterStatus struct {
	// Kinds are Namespace, Pod, Node and NetworkPolicy.
	Kinds [kinds]KindStatus
	// Node is the Node object of ClusterOptions.NodeName, nil while there is none.
	// It must not be changed.
	Node *policy.Node
	// Published is when onSnapshot last returned; zero before the first time.
	Published time.Time
}

func newStatus() ClusterStatus {
	var s ClusterStatus
	for k := range kinds {
		s.Kinds[k].Kind = k.String()
	}
	return s
}

// Synced reports whether all kinds have been read once. It stays true when the API
// server goes away.
func (s ClusterStatus) Synced() bool {
	return !slices.ContainsFunc(s.Kinds[:], func(k KindStatus) bool { return !k.Synced })
}

// Connected reports whether all kinds are being watched at this moment. Watches
// are renewed every few minutes, so it may be false for an instant.
func (s ClusterStatus) Connected() bool {
	return !slices.ContainsFunc(s.Kinds[:], func(k KindStatus) bool { return !k.Connected })
}

// Pending is the time of the oldest change that onSnapshot has not returned from,
// zero if there is none: the time since then is the lag behind the API server.
func (s ClusterStatus) Pending() time.Time {
	var oldest time.Time
	for i := range s.Kinds {
		p := s.Kinds[i].Pending
		if !p.IsZero() && (oldest.IsZero() || p.Before(oldest)) {
			oldest = p
		}
	}
	return oldest
}

// KindStatus is about the objects of one kind.
type KindStatus struct {
	Kind      string
	Synced    bool   // all objects were read at least once
	Connected bool   // a watch is open
	Error     string // why there is no watch; empty if one is open or there never was an error
	Objects   int    // in the next snapshot
	// Revision is the newest metadata.resourceVersion seen. An idle kind's is
	// renewed about once a minute.
	Revision string
	// Published is the revision that the last snapshot shows.
	Published string
	// LastEvent is when an object was last added, changed or removed, or the server
	// renewed the revision.
	LastEvent time.Time
	// Pending is when the oldest change came that no snapshot shows; zero if none.
	Pending time.Time
}

func (k *KindStatus) event(now time.Time, relevant bool, revision string, objects int) {
	k.LastEvent, k.Objects = now, objects
	if revision != "" {
		k.Revision = revision
	}
	if relevant && k.Pending.IsZero() {
		k.Pending = now
	}
	if k.Pending.IsZero() && k.Published != "" {
		k.Published = k.Revision // the last snapshot shows that state, too
	}
}

func (s *ClusterStatus) published(now time.Time) {
	s.Published = now
	for i := range s.Kinds {
		s.Kinds[i].Published, s.Kinds[i].Pending = s.Kinds[i].Revision, time.Time{}
	}
}

// Status may be called from any goroutine at any time.
func (c *Cluster) Status() ClusterStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}
