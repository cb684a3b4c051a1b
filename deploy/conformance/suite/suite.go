//go:build linux

// Package suite has tests of what upstream's NetworkPolicy tests do not reach on a
// machine without SCTP sockets, or at all. They run on the same cluster, by the same
// API. Each one also has something that must pass, so that a cluster in which
// nothing works fails.
package suite

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/netverdict/netverdict/deploy/conformance/rig"
)

// Test is a test by name.
type Test struct {
	Name string
	// alone tests disturb all others.
	alone bool
	run   func(*T)
}

// Tests are all tests.
var Tests = []Test{
	{Name: "SCTP: a policy that allows a port over SCTP passes that association and nothing else", run: sctpPort},
	{Name: "SCTP: a policy that allows a port over TCP does not pass SCTP", run: sctpIsNotTCP},
	{Name: "SCTP: ranges and named ports are of the policy's protocol", run: sctpRangesAndNames},
	{Name: "SCTP: egress that allows a port over SCTP passes that and nothing else", run: sctpEgress},
	{Name: "SCTP, in place of upstream's: should support a 'default-deny-ingress' policy", run: sctpDefaultDeny},
	{Name: "SCTP, in place of upstream's: should enforce policy based on Ports", run: sctpNamespacePort},
	{Name: "SCTP, in place of upstream's: should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector", run: sctpPodAndNamespace},
	{Name: "endPort: both ends of a TCP and UDP range pass, their neighbours do not", run: endPort},
	{Name: "dual stack: selectors hold for every pair of addresses", run: dualStackSelectors},
	{Name: "dual stack: an ipBlock of one family says nothing about the other", run: dualStackBlocks},
	{Name: "host network: a node reaches its own pods, kubelet probes included, other nodes' only where policies allow", run: hostNetwork},
	{Name: "host network: selectors do not pick host-network pods, ipBlocks do", run: hostNetworkPeers},
	{Name: "IP reuse: an address that changes hands carries no permission and no denial over", run: addressReuse},
	{Name: "pod start: what a new pod sends first is judged by its policies", run: podStart},
	{Name: "established flows: a policy that forbids a live connection cuts it, and no other", run: establishedFlows},
	{Name: "ICMP: rules with ports do not pass echo, rules without do; errors of allowed flows pass", run: icmp},
	{Name: "self: an isolated pod reaches itself, also through its Service", run: self},
	{Name: "named port: each pod of a Service has its own number, and its number only", run: namedPorts},
	{Name: "agent: denied stays denied and allowed allowed while the agent is away", alone: true, run: agentRestart},
}

// Result is how a test ended.
type Result struct {
	Name string
	Took time.Duration
	Err  error
}

// atOnce is how many tests run at a time: mostly they wait for packets that do not
// come.
const atOnce = 5

// limit of one test.
const limit = 5 * time.Minute

// Run runs every test on a cluster.
func Run(ctx context.Context, r *rig.Rig) []Result {
	results := make([]Result, len(Tests))
	tokens := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i := range Tests {
		if Tests[i].alone {
			continue
		}
		tokens <- struct{}{}
		wg.Go(func() {
			results[i] = Tests[i].once(ctx, r, i)
			<-tokens
		})
	}
	wg.Wait()
	for i := range Tests {
		if Tests[i].alone {
			results[i] = Tests[i].once(ctx, r, i)
		}
	}
	return results
}

// once runs one test and removes what it made.
func (test *Test) once(ctx context.Context, r *rig.Rig, number int) Result {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()
	t := &T{ctx: ctx, rig: r, client: r.Client, number: number}
	begin := time.Now()
	done := make(chan struct{})
	go func() { // a goroutine of its own: fail ends it
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				t.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		test.run(t)
	}()
	<-done
	t.clean(context.WithoutCancel(ctx))
	return Result{Name: test.Name, Took: time.Since(begin), Err: t.err}
}

// T is one run of a test. Its methods end the test when something is not as it
// should be; they are called from the test's own goroutine only.
type T struct {
	ctx    context.Context
	rig    *rig.Rig
	client kubernetes.Interface
	number int

	namespaces []string
	closers    []func() error
	err        error
}

// fail ends the test.
func (t *T) fail(format string, args ...any) {
	t.err = fmt.Errorf(format, args...)
	runtime.Goexit()
}

// must ends the test if err is not nil.
func (t *T) must(err error) {
	if err != nil {
		t.fail("%w", errors.Join(err, context.Cause(t.ctx)))
	}
}

// atEnd has something closed when the test is over.
func (t *T) atEnd(fn func() error) { t.closers = append(t.closers, fn) }
