package hook

import (
	"fmt"
	"strings"
	"testing"

	"github.com/netverdict/netverdict/policy"
)

// connect puts a connection with a mark into the connection table.
func (n *namespace) connect(t testing.TB, port int, mark uint32) {
	t.Helper()
	n.run(t, fmt.Sprintf("conntrack -I -p udp -s 10.1.0.2 -d 10.2.0.2 --sport %d --dport 9 -t 600 -m %d 2>&1", port, mark))
}

// connmark returns the mark of that connection as conntrack prints it.
func (n *namespace) connmark(t testing.TB, port int) (mark uint32) {
	t.Helper()
	out := n.run(t, fmt.Sprintf("conntrack -L -p udp --sport %d 2>/dev/null", port))
	_, after, ok := strings.Cut(out, "mark=")
	if !ok {
		t.Fatalf("no connection from port %d: %q", port, out)
	}
	if _, err := fmt.Sscanf(after, "%d", &mark); err != nil {
		t.Fatalf("mark in %q: %v", after, err)
	}
	return mark
}

func TestInstallForgetsMarksOfUnknownOrigin(t *testing.T) {
	ns := newNamespace(t)
	h := ns.open(t, testConfig(NFT))
	conn := h.stacks[0].conn
	const foreign = 0x4321
	ns.connect(t, 1, conn.Verdict(foreign, policy.Allow, 1)) // the generation that Install begins with
	ns.connect(t, 2, conn.Verdict(foreign, policy.Deny, 40))
	ns.connect(t, 3, foreign)
	ns.run(t, fmt.Sprintf("conntrack -I -p tcp --state ESTABLISHED -s fd01::2 -d fd02::2 --sport 4 --dport 9 -t 600 -m %d 2>&1", conn.Verdict(foreign, policy.Allow, 1)))
	if err := h.Install(both); err != nil {
		t.Fatal(err)
	}
	for port := 1; port <= 3; port++ {
		if got := ns.connmark(t, port); got != foreign {
			t.Errorf("connection %d has mark %#x, want %#x", port, got, foreign)
		}
	}
	if out := ns.run(t, "conntrack -L -f ipv6 2>/dev/null"); !strings.Contains(out, fmt.Sprintf("mark=%d ", foreign)) {
		t.Errorf("IPv6 connection: %s", out)
	}
}

// Every time that a generation comes into use, no connection carries it, though
// each generation leaves one connection behind that never sends again. One that
// was cut stays cut: nobody but Review may free it.
func TestNoConnectionCarriesAGenerationThatBegins(t *testing.T) {
	ns := newNamespace(t)
	cfg := testConfig(NFT)
	cfg.IPv6 = false
	cfg.ConnmarkMask = 0x001f_0000 // four generations
	h := ns.installed(t, cfg, both)
	s := h.stacks[0]
	const foreign = 0x4321
	for round := range 13 {
		// A crash is as good as a Finish.
		finished := round%3 != 0
		if round == 7 {
			h = ns.installed(t, cfg, both)
			s = h.stacks[0]
		}
		ns.connect(t, 100+2*round, s.conn.Verdict(foreign, policy.Allow, s.generation))
		ns.connect(t, 101+2*round, s.conn.Verdict(foreign, policy.Deny, s.generation))
		if err := h.Switch(true, false); err != nil {
			t.Fatal(err)
		}
		for port := 100; port < 102+2*round; port++ {
			mark := ns.connmark(t, port)
			if cut := port%2 == 1; cut {
				if !s.conn.Decided(mark) {
					t.Errorf("round %d: connection %d was cut, and has mark %#x: its replies pass", round, port, mark)
				}
			} else if s.conn.Decided(mark) && s.conn.numberIn(mark) == s.generation {
				t.Errorf("round %d: generation %d begins, and connection %d has mark %#x", round, s.generation, port, mark)
			}
			if s.conn.Clear(mark) != foreign {
				t.Errorf("round %d: connection %d: foreign bits of mark %#x changed", round, port, mark)
			}
		}
		if finished {
			if err := h.Finish(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestRemoveClearsConnectionMarks(t *testing.T) {
	ns := newNamespace(t)
	h := ns.installed(t, testConfig(NFT), both)
	ns.connect(t, 1, h.stacks[0].conn.Verdict(0x4321, policy.Allow, h.stacks[0].generation))
	if err := h.Switch(true, true); err != nil {
		t.Fatal(err)
	}
	if got := ns.connmark(t, 1); got == 0x4321 {
		t.Fatal("a switch cleared a mark without need: the test proves nothing")
	}
	if err := h.Remove(); err != nil {
		t.Fatal(err)
	}
	if got := ns.connmark(t, 1); got != 0x4321 {
		t.Errorf("after Remove the connection has mark %#x", got)
	}
}
