package kube

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/rest"

	"github.com/netverdict/netverdict/policy"
)

const (
	defaultCoalesce = 20 * time.Millisecond
	// settle is how long a change after quiet times waits for others that were
	// made with it.
	settle = 2 * time.Millisecond
	// defaultRetryMax lets a node converge within two seconds of the return of its
	// API server. client-go's own reflectors would pause for up to a minute.
	defaultRetryMax = 600 * time.Millisecond
)

// ClusterOptions say how a cluster is watched. The zero ClusterOptions are the
// defaults.
type ClusterOptions struct {
	// NodeName is the node this process runs on; Status shows its Node object.
	NodeName string
	// Coalesce is the least time between two snapshots, so that a burst makes few;
	// default 20 ms. It is also the longest wait: later changes do not prolong it,
	// and a change after quiet times waits for 2 ms only.
	Coalesce time.Duration
	// RetryMax is the longest pause before the API server is tried again, up to
	// half as much again is added at random; default 600 ms.
	RetryMax time.Duration
}

// Cluster watches Namespaces, Pods, Nodes and NetworkPolicies of an API server.
//
// Snapshots have the pods that hold an address: those that ended, or have none
// yet, are no party to any connection. Whatever a snapshot does not show (the
// readiness of pods, heartbeats of nodes) makes no new one.
//
// Old clusters may store policies that a 1.36 API server would refuse, and their
// servers go on serving them. They are enforced as far as they can be understood,
// and what cannot is read as allowing nothing; the Report names them.
type Cluster struct {
	opts    ClusterOptions
	host    string
	sources [kinds]lister

	mu     sync.Mutex // guards status
	status ClusterStatus
}

// NewCluster prepares to watch; requests begin with Watch. It speaks protobuf, and
// paces itself whatever rate limit cfg has.
func NewCluster(cfg *rest.Config, opts ClusterOptions) (*Cluster, error) {
	sources, err := listers(cfg)
	if err != nil {
		return nil, fmt.Errorf("prepare to watch the API server at %s: %w", cfg.Host, err)
	}
	return newCluster(cfg.Host, sources, opts), nil
}

func newCluster(host string, sources [kinds]lister, opts ClusterOptions) *Cluster {
	if opts.Coalesce <= 0 {
		opts.Coalesce = defaultCoalesce
	}
	if opts.RetryMax <= 0 {
		opts.RetryMax = defaultRetryMax
	}
	return &Cluster{opts: opts, host: host, sources: sources, status: newStatus()}
}

// Watch watches until ctx ends; then it returns nil. It calls onSnapshot when all
// kinds have been read for the first time, and then whenever something relevant
// has changed; and onError when the API server cannot be read, once for each
// distinct error. After an error the last snapshot stays the valid one; once all
// kinds are connected again onSnapshot is called even if nothing has changed, so a
// call always means that the error is over.
//
// Both functions are called from one goroutine, never at the same time, and should
// return soon: changes wait meanwhile, and come together. Snapshots share what has
// not changed with earlier ones. Watch must not be called twice at a time.
//
//	Namespaces ──▶ reflector ─▶ convert ─▶ feed ─┐                       ┌▶ onSnapshot
//	Pods ────────▶     "           "        "   ─┼▶ owner: tables ─▶ coalesce
//	Nodes ───────▶     "           "        "   ─┤     └─▶ Status        └▶ onError
//	NetworkPolicies ▶  "           "        "   ─┘
//
// A reflector lists as a stream (KEP-3157), so that no list of API objects is ever
// in memory; servers before 1.34 may not offer that, then it is one for a moment.
func (c *Cluster) Watch(ctx context.Context, onSnapshot func(*policy.Snapshot, *Report), onError func(error)) error {
	if onSnapshot == nil || onError == nil {
		return errors.New("watch " + c.host + ": both callbacks are needed")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o := newOwner(c, onSnapshot, onError)
	o.update(func(s *ClusterStatus) { *s = newStatus() }) // of an earlier Watch
	var reflectors sync.WaitGroup
	o.startReflectors(ctx, &reflectors)
	o.run(ctx)
	cancel()
	reflectors.Wait()
	return nil
}

// owner is the state of Watch, owned by its goroutine.
type owner struct {
	cluster    *Cluster
	onSnapshot func(*policy.Snapshot, *Report)
	onError    func(error)
	events     chan func()

	namespaces *table[*policy.Namespace]
	pods       *table[*policy.Pod]
	nodes      *table[*policy.Node]
	policies   *table[*networkingv1.NetworkPolicy]

	told     bool             // a snapshot was given
	due      <-chan time.Time // when to publish; nil: nothing pending
	last     time.Time        // when a snapshot was last published
	trouble  bool             // an error was reported and is not over
	reported map[string]bool  // texts of errors since all was well
}

func newOwner(c *Cluster, onSnapshot func(*policy.Snapshot, *Report), onError func(error)) *owner {
	return &owner{
		cluster: c, onSnapshot: onSnapshot, onError: onError,
		events:     make(chan func(), 64), // fewer switches between goroutines in a burst
		namespaces: newTable(sameNamespace),
		pods:       newTable(samePod),
		nodes:      newTable(sameNode),
		policies:   newTable(samePolicy),
		reported:   map[string]bool{},
	}
}

func (o *owner) run(ctx context.Context) {
	defer o.update(func(s *ClusterStatus) {
		for k := range s.Kinds {
			s.Kinds[k].Connected = false
		}
	})
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-o.events:
			event()
		case <-o.due:
			o.publish()
		}
	}
}

// update edits the status that other goroutines read.
func (o *owner) update(edit func(*ClusterStatus)) {
	o.cluster.mu.Lock()
	defer o.cluster.mu.Unlock()
	edit(&o.cluster.status)
}

// changed enters an event of a kind: whether it changed a table, and up to which
// revision the kind is known now.
func (o *owner) changed(k kind, relevant bool, revision string, objects int) {
	now := time.Now()
	o.update(func(s *ClusterStatus) {
		s.Kinds[k].event(now, relevant, revision, objects)
		if k == nodeKind && relevant {
			s.Node = o.ownNode()
		}
	})
	if relevant {
		o.schedule()
	}
}

// synced enters the end of a list.
func (o *owner) synced(k kind) {
	first := false
	o.update(func(s *ClusterStatus) {
		first = !s.Kinds[k].Synced
		s.Kinds[k].Synced = true
	})
	if first {
		o.schedule()
	}
}

func (o *owner) connected(k kind) {
	well := true
	o.update(func(s *ClusterStatus) {
		s.Kinds[k].Connected, s.Kinds[k].Error = true, ""
		for i := range s.Kinds {
			well = well && s.Kinds[i].Connected
		}
	})
	if well && o.trouble {
		o.trouble, o.reported = false, map[string]bool{}
		o.schedule()
	}
}

func (o *owner) disconnected(k kind) {
	o.update(func(s *ClusterStatus) { s.Kinds[k].Connected = false })
}

func (o *owner) failed(k kind, err error) {
	text := describeFailure(k, err)
	o.update(func(s *ClusterStatus) {
		s.Kinds[k].Connected, s.Kinds[k].Error = false, text
	})
	o.trouble = true
	if !o.reported[text] {
		o.reported[text] = true
		o.onError(fmt.Errorf("watch the API server at %s: %w", o.cluster.host, &failure{text: text, cause: err}))
	}
}

func (o *owner) schedule() {
	if o.due == nil && o.allSynced() {
		o.due = time.After(max(settle, o.cluster.opts.Coalesce-time.Since(o.last)))
	}
}

func (o *owner) allSynced() bool {
	all := true
	o.update(func(s *ClusterStatus) { all = s.Synced() })
	return all
}

func (o *owner) publish() {
	o.due = nil
	s := &policy.Snapshot{
		Namespaces: o.namespaces.values(), Pods: o.pods.values(), Nodes: o.nodes.values(), Policies: o.policies.values(),
	}
	o.last = time.Now()
	s.Since = o.since()
	o.onSnapshot(s, o.report(s))
	now := time.Now()
	o.update(func(s *ClusterStatus) { s.published(now) })
}

// since takes what changed since the last snapshot: of the first, everything.
func (o *owner) since() *policy.Delta {
	d := &policy.Delta{All: !o.told, Pods: o.pods.take(), Policies: o.policies.take()}
	d.Namespaces, d.Nodes = byName(o.namespaces.take()), byName(o.nodes.take())
	o.told = true
	return d
}

func byName[T any](objects map[policy.NamespacedName]T) map[string]T {
	out := make(map[string]T, len(objects))
	for name, v := range objects {
		out[name.Name] = v
	}
	return out
}

func (o *owner) report(s *policy.Snapshot) *Report {
	r := &Report{Namespaces: len(s.Namespaces), Pods: len(s.Pods), Nodes: len(s.Nodes), NetworkPolicies: len(s.Policies)}
	for _, list := range [][]Notice{o.namespaces.notices(), o.nodes.notices(), o.pods.notices(), o.policies.notices()} {
		for _, n := range list {
			r.notice(n.Place, n.Severity, n.Object, n.Text)
		}
	}
	return r
}

func (o *owner) ownNode() *policy.Node {
	node, _ := o.nodes.get(policy.NamespacedName{Name: o.cluster.opts.NodeName})
	return node
}
