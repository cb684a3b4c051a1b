//go:build linux

package seccomp

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// profiles are all that there are.
var profiles = map[string]func() *Profile{"enforcing": Enforcing, "auditing": Auditing, "container": Container}

// machine runs programs as the kernel does.
type machine struct {
	vm    *bpf.VM
	table *arch.Info
}

func newMachine(t *testing.T, p *Profile, goarch string) *machine {
	t.Helper()
	raw, err := p.Program(goarch)
	if err != nil {
		t.Fatal(err)
	}
	program, all := bpf.Disassemble(raw)
	if !all {
		t.Fatal("there are instructions that nobody knows")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	table, err := arch.GetInfo(goarch)
	if err != nil {
		t.Fatal(err)
	}
	return &machine{vm, table}
}

// run gives the program a struct seccomp_data. The kernel loads its words as the machine
// has them, the VM as if they came from a network.
func (m *machine) run(t *testing.T, architecture, number uint32, args [6]uint64) Action {
	t.Helper()
	data := binary.BigEndian.AppendUint32(nil, number)
	data = binary.BigEndian.AppendUint32(data, architecture)
	data = append(data, make([]byte, 8)...)
	for _, a := range args {
		data = binary.BigEndian.AppendUint32(data, uint32(a))
		data = binary.BigEndian.AppendUint32(data, uint32(a>>32))
	}
	action, err := m.vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return Action(uint32(action))
}

func (m *machine) call(t *testing.T, name string, args ...uint64) Action {
	t.Helper()
	n, ok := m.table.SyscallNames[name]
	if !ok {
		t.Fatalf("%s has no system call %s", m.table.Name, name)
	}
	var all [6]uint64
	copy(all[:], args)
	return m.run(t, uint32(m.table.ID), uint32(n), all)
}

// decide is the meaning of a profile, as simple as it can be.
func (p *Profile) decide(name string, args [6]uint64) Action {
	for _, r := range p.Rules {
		if slices.Contains(r.Calls, name) && !slices.ContainsFunc(r.When, func(a Arg) bool { return args[a.Index]&a.Mask != a.Value }) {
			return r.Action
		}
	}
	return p.Default
}

// TestProgramsMean asks programs about every number, also of calls that do not exist, with the arguments
// that conditions are about and others.
func TestProgramsMean(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for name, profile := range profiles {
		for _, goarch := range []string{"amd64", "arm64"} {
			p := profile()
			m := newMachine(t, p, goarch)
			interesting := []uint64{0, 1, 2, 10, 16, 17, 38, 1 << 32, 1<<32 | 2, newNamespaces, unix.CLONE_NEWNET | 17, 0x3d0f00, 0xffffffff, 1 << 63}
			for _, r := range p.Rules {
				for _, a := range r.When {
					interesting = append(interesting, a.Value, a.Value|^a.Mask)
				}
			}
			for number := range uint32(600) {
				for range 200 {
					var args [6]uint64
					for i := range args {
						args[i] = interesting[random.IntN(len(interesting))]
					}
					want := p.decide(m.table.SyscallNumbers[int(number)], args)
					if got := m.run(t, uint32(m.table.ID), number, args); got != want {
						t.Fatalf("%s on %s: %s(%#x): %#x, want %#x", name, goarch, m.table.SyscallNumbers[int(number)], args, got, want)
					}
				}
			}
		}
	}
}

// TestForeignNumbersAreMissing: what a number means depends on the architecture, and
// on amd64 there are two more ways to call than the one that the list is about.
func TestForeignNumbersAreMissing(t *testing.T) {
	m := newMachine(t, Container(), "amd64")
	write := uint32(m.table.SyscallNames["write"])
	for what, got := range map[string]Action{
		"32-bit":           m.run(t, uint32(arch.I386.ID), write, [6]uint64{}),
		"another machine":  m.run(t, uint32(arch.AARCH64.ID), write, [6]uint64{}),
		"x32":              m.run(t, uint32(arch.X32.ID), write|uint32(arch.X32.SeccompMask), [6]uint64{}),
		"the last number":  m.run(t, uint32(m.table.ID), 1<<32-1, [6]uint64{}),
		"not invented yet": m.run(t, uint32(m.table.ID), 5000, [6]uint64{}),
	} {
		if got != Missing {
			t.Errorf("%s: %#x, want it missing", what, got)
		}
	}
	if got := m.call(t, "write"); got != Allow {
		t.Errorf("write: %#x", got)
	}
}

// TestArguments on both architectures: what makes sockets and processes.
func TestArguments(t *testing.T) {
	const sigchld, junk = 17, 0xdead << 32
	for _, c := range []struct {
		call                string
		args                []uint64
		enforcing, auditing Action
	}{
		{"socket", []uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW}, Allow, Allow},
		{"socket", []uint64{unix.AF_INET | junk, unix.SOCK_STREAM, 0}, Allow, Allow},
		{"socket", []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, Allow, Allow},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, Allow, Missing},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, Allow, Allow},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT}, Missing, Missing},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_XFRM}, Missing, Missing},
		{"socket", []uint64{unix.AF_PACKET, unix.SOCK_RAW, 0x0300}, Missing, Allow},
		{"socket", []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, Missing, Missing},
		{"socket", []uint64{unix.AF_VSOCK, unix.SOCK_STREAM, 0}, Missing, Missing},
		{"socketpair", []uint64{unix.AF_UNIX}, Missing, Missing},
		{"clone", []uint64{sigchld}, Allow, Allow},
		{"clone", []uint64{unix.CLONE_NEWUSER | sigchld}, Missing, Missing},
		{"clone", []uint64{unix.CLONE_NEWNET | sigchld}, Missing, Missing},
		{"clone3", nil, Missing, Missing},
		{"execve", nil, Allow, Missing},
		{"ioctl", []uint64{0, unix.TCGETS}, Allow, Allow},
		{"ioctl", []uint64{0, unix.TIOCSTI}, Missing, Missing},
		{"prctl", []uint64{unix.PR_SET_DUMPABLE}, Missing, Missing},
		{"prlimit64", []uint64{1}, Missing, Missing},
	} {
		for _, goarch := range []string{"amd64", "arm64"} {
			if got := newMachine(t, Enforcing(), goarch).call(t, c.call, c.args...); got != c.enforcing {
				t.Errorf("enforcing on %s: %s(%#x): %#x, want %#x", goarch, c.call, c.args, got, c.enforcing)
			}
			if got := newMachine(t, Auditing(), goarch).call(t, c.call, c.args...); got != c.auditing {
				t.Errorf("auditing on %s: %s(%#x): %#x, want %#x", goarch, c.call, c.args, got, c.auditing)
			}
		}
	}
}

// TestRulesAreClear: libseccomp, which reads the profile in container runtimes, knows no
// order of rules, so none may matter; and a name that no kernel has protects nobody.
func TestRulesAreClear(t *testing.T) {
	for name, profile := range profiles {
		seen := map[string]Rule{}
		for _, r := range profile().Rules {
			for _, c := range r.Calls {
				if !slices.ContainsFunc(architectures, func(a architecture) bool { _, ok := a.table.SyscallNames[c]; return ok }) {
					t.Errorf("%s: %s is no system call", name, c)
				}
				if before, again := seen[c]; again && (before.Action != r.Action || len(before.When) == 0 || len(r.When) == 0) {
					t.Errorf("%s: %s is in two rules, and the first would win", name, c)
				}
				seen[c] = r
			}
			if r.Why == "" {
				t.Errorf("%s: nobody knows why %v", name, r.Calls)
			}
		}
	}
}

func TestBadRules(t *testing.T) {
	for _, r := range []Rule{allowIf("", "read", is(6, 0)), allowIf("", "read", masked(0, 1, 2))} {
		p := profile([]Rule{r})
		if _, err := p.Program("amd64"); err == nil {
			t.Errorf("%+v became a program", r)
		}
		if _, err := p.OCI(); err == nil {
			t.Errorf("%+v became a file", r)
		}
	}
	if _, err := Enforcing().Program("s390x"); err == nil {
		t.Error("a program for s390x, whose calls nobody has listed")
	}
}

// TestLongJumps: a profile can be longer than a conditional jump is.
func TestLongJumps(t *testing.T) {
	p := &Profile{Default: Missing}
	for n, name := range arch.X86_64.SyscallNumbers {
		p.Rules = append(p.Rules, allowIf("", name, is(0, n), is(1, 7)), allowIf("", name, is(2, n)))
	}
	m := newMachine(t, p, "amd64")
	for n, name := range arch.X86_64.SyscallNumbers {
		for _, args := range [][6]uint64{{uint64(n), 7}, {uint64(n), 8}, {0, 0, uint64(n)}, {1 << 20, 7, 1 << 20}} {
			if got, want := m.run(t, uint32(m.table.ID), uint32(n), args), p.decide(name, args); got != want {
				t.Errorf("%s(%v): %#x, want %#x", name, args, got, want)
			}
		}
	}
}

// TestProgramsAreShort: the kernel takes 4096 instructions, and each call that it must run
// the program for pays for those on its way.
func TestProgramsAreShort(t *testing.T) {
	for name, profile := range profiles {
		raw, err := profile().Program("amd64")
		if err != nil {
			t.Fatal(err)
		}
		segments := len(profile().segments(arch.X86_64))
		if t.Logf("%s: %d instructions, %d segments", name, len(raw), segments); len(raw) > 1000 {
			t.Errorf("%s: %d instructions", name, len(raw))
		}
	}
}
