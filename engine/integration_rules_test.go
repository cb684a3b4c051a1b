package engine_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/netverdict/netverdict/policy"
)

// command runs a command on the node and returns what it prints.
func (n *network) command(name string, args ...string) string {
	n.t.Helper()
	out, err := n.node.Command(within(n.t, patience), name, args...).Output()
	if err != nil {
		n.t.Fatal(err)
	}
	return string(out)
}

// iptables is the name of a command of the backend under test.
func (n *network) iptables(family, verb string) string {
	return fmt.Sprintf("%s-%v%s", map[string]string{"v4": "iptables", "v6": "ip6tables"}[family], n.backend, verb)
}

// volatile is what differs between two prints of the same rules.
var volatile = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`)

// rules prints the mangle tables and the sets of the node.
func (n *network) rules() string {
	n.t.Helper()
	all := n.command("ipset", "list", "-o", "save")
	for _, family := range []string{"v4", "v6"} {
		all += n.command(n.iptables(family, "-save"), "-t", "mangle")
	}
	return volatile.ReplaceAllString(all, "")
}

// TestNothingIsLeftBehind: when the engine has ended, the rules and sets of others
// are as before, and ours are gone.
func TestNothingIsLeftBehind(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.command("ipset", "create", "somebody-elses", "hash:ip")
		for _, family := range []string{"v4", "v6"} {
			n.command(n.iptables(family, ""), "-w", "-t", "mangle", "-N", "SOMEBODY")
			n.command(n.iptables(family, ""), "-w", "-t", "mangle", "-A", "POSTROUTING", "-j", "SOMEBODY")
			n.command(n.iptables(family, ""), "-w", "-t", "mangle", "-A", "SOMEBODY", "-j", "MARK", "--set-xmark", "0x1/0x1")
		}
		before := n.rules()
		n.start(allow("client", "server"))
		demand(t, append(http(policy.Allow, n.client, n.server, 80), http(policy.Deny, n.other, n.server, 80)...)...)
		if during := n.rules(); !strings.Contains(during, "NFQUEUE") || !strings.Contains(during, "SOMEBODY") {
			t.Errorf("while it runs:\n%s", during)
		}
		if err := n.stop(); err != nil {
			t.Error(err)
		}
		if after := n.rules(); after != before {
			t.Errorf("after:\n%s\nbefore:\n%s", after, before)
		}
		demand(t, http(policy.Allow, n.other, n.server, 80)...)
	})
}

// TestVandalism: whoever flushes our rules or sets finds them put back, and the
// engine says so.
func TestVandalism(t *testing.T) {
	eachBackend(t, func(t *testing.T, n *network) {
		n.serve(80)
		n.startWith(func(o *options) { o.engine.VerifyEvery = 50 * time.Millisecond }, allow("client", "server"))
		rules := n.rules()
		for _, vandalism := range []struct {
			name string
			do   func()
		}{
			{"flushed chains", func() {
				n.command(n.iptables("v4", ""), "-w", "-t", "mangle", "-F")
				n.command(n.iptables("v6", ""), "-w", "-t", "mangle", "-F")
			}},
			{"a flushed set", func() { n.command("ipset", "flush", "netverdict4-ingress") }},
		} {
			epoch := n.hook.Epoch()
			vandalism.do()
			// One look may find half of the damage done.
			eventually(t, "the repair of "+vandalism.name, func() bool { return n.hook.Epoch() != epoch && shape(n.rules()) == shape(rules) })
			demand(t, append(http(policy.Allow, n.client, n.server, 80), http(policy.Deny, n.other, n.server, 80)...)...)
		}
	})
}

var numbers = regexp.MustCompile(`0x[0-9a-f]+|-[ab]\b|(?m)^add .*-(allow|deny)-.*\n|timeout \d+`)

// shape is the rules and sets without what changes with each epoch.
func shape(rules string) string { return numbers.ReplaceAllString(rules, "") }
