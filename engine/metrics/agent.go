package metrics

import (
	"time"

	"github.com/netverdict/netverdict/engine"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/engine/hook"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/engine/reject"
	"github.com/netverdict/netverdict/policy"
)

// Agent is what is read of an agent when its metrics are asked for. The functions
// must be safe to call at any time from any goroutine.
type Agent struct {
	Version string
	State   func() State
	// Kernel returns nil as long as nothing is enforced.
	Kernel func() *Kernel
	Rules  Rules // nil: there are none
	Flows  func() flow.Stats
	Log    func() flow.LogStats
	// Kinds is nil if objects do not come from an API server.
	Kinds func() []Kind
	// Answers is what senders of denied packets were told; nil: nobody can be.
	Answers func() reject.Stats
}

// State is what an agent says of itself.
type State struct {
	Enforcing bool
	// Failing says that the newest state of the source cannot be read or enforced.
	Failing bool
	// OverLimit is how many policies the tree in force leaves the rules of out.
	OverLimit int
	// Waiting counts addresses to listen on that another process still has.
	Waiting int
	// Oldest is when the oldest change came that is not enforced; zero: none waits.
	Oldest time.Time
}

// Kernel is the kernel's side of an agent.
type Kernel struct {
	Engine Engine
	Queues []queue.Source
	First  uint16 // number of the first queue
}

// Engine is what decides; *engine.Engine is one, *audit.Auditor another.
type Engine interface {
	Tree() (tree *policy.Tree, serial uint64)
	Stats() engine.Stats
	PolicyHits() []engine.PolicyHits
}

// Rules are the kernel's rules; *hook.Hook is one.
type Rules interface {
	Counters() (hook.Counters, error)
	Generations() map[string]uint32
}

// Kind is how far the API server's objects of one kind are known.
type Kind struct {
	Name              string
	Connected, Synced bool
	Objects           int
	Pending           time.Time // of the oldest change that no snapshot shows; zero if none
}
