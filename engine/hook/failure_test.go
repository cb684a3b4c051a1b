package hook

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// shadow puts a script named like a command in front of PATH. $REAL in it is
// the real command.
func shadow(t *testing.T, name, script string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	text := fmt.Sprintf("#!/bin/sh\nREAL=%s\n%s\n", path, script)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// faults makes the next runs of a command fail: "refuse" changes nothing, "late"
// does the work when nobody expects it any more and then fails, as if killed.
func faults(t *testing.T, command string) (next func(hows ...string)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "faults")
	shadow(t, command, fmt.Sprintf(`
how=$(head -n 1 %[1]s 2>/dev/null)
[ -z "$how" ] || sed -i 1d %[1]s
case "$how" in
refuse) echo "$0: line 3 failed" >&2; exit 1;;
late) cat >%[1]s.late; $REAL "$@" <%[1]s.late; echo "Killed" >&2; exit 137;;
esac
exec $REAL "$@"`, file))
	return func(hows ...string) {
		if err := os.WriteFile(file, []byte(strings.Join(hows, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSwitchFailsForSecondFamily(t *testing.T) {
	ns := newNamespace(t)
	fault := faults(t, "ip6tables-nft-restore")
	h := ns.installed(t, testConfig(NFT), both)
	epoch, v4, v6 := h.Epoch(), h.stacks[0].state, h.stacks[1].state

	fault("refuse", "refuse", "refuse")
	err := h.Switch(true, false)
	if err == nil || !strings.Contains(err.Error(), `line 3, ":NETVERDICT-REPLY - [0:0]"`) {
		t.Errorf("Switch: %v: want the line that failed", err)
	}
	if h.Epoch() != epoch {
		t.Errorf("Epoch() = %d after a switch that failed, want %d: the old tree's verdicts", h.Epoch(), epoch)
	}
	if got := h.stacks[0].state; got.epoch == epoch || got.generation == v4.generation {
		t.Errorf("IPv4 is in state %+v: it was to be switched", got)
	}
	if got := h.stacks[1].state; got != v6 {
		t.Errorf("IPv6 is in state %+v, want %+v", got, v6)
	}

	if err := h.Switch(true, false); err != nil {
		t.Fatal(err)
	}
	for _, s := range h.stacks {
		have := ns.saved(t, s)
		if o := s.observe(&have); o.epoch != h.Epoch() || o.state != s.state {
			t.Errorf("%v: the kernel has %+v, known is %+v in epoch %d", s.tables, o, s.state, h.Epoch())
		}
	}
	if repaired, err := h.Verify(); repaired || err != nil {
		t.Errorf("Verify: repaired %v, %v", repaired, err)
	}
}

// A signal to our process group, as a terminal sends it, must not reach a command.
func TestCommandsHaveTheirOwnGroup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "group")
	ns := newNamespace(t)
	shadow(t, "iptables-nft-restore", fmt.Sprintf(`cut -d' ' -f5 /proc/$$/stat >%s; exec $REAL "$@"`, file))
	ns.installed(t, testConfig(NFT), both)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(text)); got == "" || got == fmt.Sprint(syscall.Getpgrp()) {
		t.Errorf("the command is in group %q, we are in %d", got, syscall.Getpgrp())
	}
}

// A command that is killed may have done its work.
func TestSwitchThatSeemsToFail(t *testing.T) {
	ns := newNamespace(t)
	fault := faults(t, "iptables-nft-restore")
	h := ns.installed(t, testConfig(NFT), both)
	before := h.stacks[0].state

	fault("late")
	if err := h.Switch(true, false); err != nil {
		t.Fatalf("the rules are in force, yet: %v", err)
	}
	if got := h.stacks[0].state; got.generation != before.generation+1 {
		t.Errorf("generation %d, want %d", got.generation, before.generation+1)
	}
	if err := h.Finish(); err != nil {
		t.Fatal(err)
	}

	// Now nobody learns in time that the last attempt took. The set that its
	// rules use must not be the one that the next switch empties and names.
	fault("refuse", "refuse", "late")
	if err := h.Switch(true, true); err == nil {
		t.Fatal("Switch succeeded")
	}
	ns.run(t, "ipset add netverdict4-allow-b 10.0.0.1,tcp:80,10.0.0.2")
	if err := h.Switch(true, false); err != nil {
		t.Fatal(err)
	}
	have := ns.saved(t, h.stacks[0])
	o := h.stacks[0].observe(&have)
	if o.state != h.stacks[0].state || o.generation != before.generation+3 || o.epoch != h.Epoch() {
		t.Errorf("the kernel has %+v, known is %+v, was %+v", o.state, h.stacks[0].state, before)
	}
	if got := ns.entries(t, h.stacks[0].allowSet()); o.allow == sideB || got != "" {
		t.Errorf("set %s in use has %q", h.stacks[0].allowSet(), got)
	}
}

func TestVerifyRepairs(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		for name, damage := range map[string]string{
			"flushed":       "iptables-%[1]v -t mangle -F; iptables-%[1]v -t mangle -X; ipset destroy",
			"jump deleted":  "iptables-%[1]v -t mangle -F POSTROUTING",
			"rule inserted": "iptables-%[1]v -t mangle -I NETVERDICT -j RETURN",
			"rule deleted":  "ip6tables-%[1]v -t mangle -D NETVERDICT 3",
			"jump doubled":  "iptables-%[1]v -t mangle -A POSTROUTING -j NETVERDICT",
			"set flushed":   "ipset flush netverdict6-egress",
			"old copy":      "iptables-%[1]v-restore --noflush < OLD",
		} {
			t.Run(name, func(t *testing.T) {
				ns := newNamespace(t)
				h := ns.installed(t, testConfig(b), both)
				old := filepath.Join(t.TempDir(), "old")
				ns.run(t, fmt.Sprintf("iptables-%v-save -t mangle > %s", b, old))
				if err := h.Switch(true, true); err != nil {
					t.Fatal(err)
				}
				if err := h.Finish(); err != nil {
					t.Fatal(err)
				}
				epoch, state := h.Epoch(), h.stacks[0].state
				ns.run(t, strings.NewReplacer("%[1]v", b.String(), "OLD", old).Replace(damage)+" || true")
				if repaired, err := h.Verify(); !repaired || err != nil {
					t.Fatalf("Verify: repaired %v, %v\n%s", repaired, err, ns.rules(t, b))
				}
				if repaired, err := h.Verify(); repaired || err != nil {
					t.Errorf("second Verify: repaired %v, %v\n%s", repaired, err, ns.rules(t, b))
				}
				if h.Epoch() == epoch || h.stacks[0].generation == state.generation {
					t.Errorf("after a repair epoch %d and generation %d are still believed", h.Epoch(), h.stacks[0].generation)
				}
				if got := ns.entries(t, "netverdict6-egress"); got != pod6.String() {
					t.Errorf("policed IPv6 addresses: %q", got)
				}
			})
		}
	})
}

// Two programs that both insist on being first would never have peace.
func TestVerifyToleratesJumpBehindOthers(t *testing.T) {
	ns := newNamespace(t)
	h := ns.installed(t, testConfig(NFT), both)
	ns.run(t, "iptables-nft -t mangle -I POSTROUTING -j MARK --set-xmark 0x1/0x1")
	if repaired, err := h.Verify(); repaired || err != nil {
		t.Errorf("Verify: repaired %v, %v", repaired, err)
	}
	if err := h.Install(both); err != nil {
		t.Fatal(err)
	}
	have := ns.saved(t, h.stacks[0])
	if specs, first := have.jumps(DefaultPrefix); len(specs) != 1 || !first {
		t.Errorf("after Install the jumps are %q, first %v", specs, first)
	}
}

func TestOpenNamesMissingCommand(t *testing.T) {
	ns := newNamespace(t)
	t.Setenv("PATH", t.TempDir())
	for _, b := range [...]Backend{Auto, NFT, Legacy} {
		err := ns.do(func() error {
			_, err := Open(testConfig(b))
			return err
		})
		for _, want := range []string{"iptables", "ip6tables", "restore", "install the package iptables", "PATH"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %v: want %q", b, err, want)
			}
		}
	}
}

func TestOpenNamesMissingFeaturesTogether(t *testing.T) {
	ns := newNamespace(t)
	shadow(t, "iptables-nft-restore", `
rules=$(cat)
case "$rules" in *NFQUEUE*|*"ctdir"*)
	echo "iptables-restore: Extension NFQUEUE revision 0 not supported, missing kernel module?" >&2; exit 1;;
esac
echo "$rules" | $REAL "$@"`)
	cfg := testConfig(NFT)
	err := ns.do(func() error {
		_, err := Open(cfg)
		return err
	})
	if !errors.Is(err, ErrUnsupported) {
		t.Fatalf("Open: %v", err)
	}
	for _, want := range []string{
		"NFQUEUE target", "xt_NFQUEUE", "CONFIG_NETFILTER_XT_TARGET_NFQUEUE", "to ask for verdicts",
		"conntrack match", "xt_conntrack", "to tell replies from requests", "missing kernel module?", "linux-modules-extra",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "addrtype") {
		t.Errorf("%v\nnames what works", err)
	}
	if left := ns.leftovers(t, cfg); len(left) != 0 {
		t.Errorf("Open left %q", left)
	}
}

func TestOpenUnprivileged(t *testing.T) {
	ns := newNamespace(t)
	all := []string{ErrPermission.Error(), "CAP_NET_ADMIN", "CAP_NET_RAW", "run as root", "NET_ADMIN and NET_RAW"}
	for name, c := range map[string]struct {
		uid    uint32
		drop   string // numbers of capabilities
		want   []string
		wantNo []string
	}{
		"another user":      {65534, "", append(all, "uid 65534"), nil},
		"root without any":  {0, "12 13", append(all, "uid 0"), nil},
		"without NET_ADMIN": {0, "12", []string{ErrPermission.Error(), "CAP_NET_ADMIN to change packet filter rules", "add NET_ADMIN to"}, []string{"NET_RAW"}},
		"without NET_RAW":   {0, "13", []string{ErrPermission.Error(), "CAP_NET_RAW because iptables", "add NET_RAW to"}, []string{"NET_ADMIN", "module"}},
	} {
		var out []byte
		ns.in(t, func() (err error) {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), reexec+"=1", reexecDrop+"="+c.drop)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.uid}}
			out, err = cmd.CombinedOutput()
			return err
		})
		for _, want := range c.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: %s\nwant %q", name, out, want)
			}
		}
		for _, no := range c.wantNo {
			if strings.Contains(string(out), no) {
				t.Errorf("%s: %s\nit names %q, which is there", name, out, no)
			}
		}
	}
}

// Sets, connection marks and rules are tried though another of them is missing.
func TestOpenNamesSetsAndFeaturesTogether(t *testing.T) {
	ns := newNamespace(t)
	shadow(t, "iptables-nft-restore", `
rules=$(cat)
case "$rules" in *ctdir*) echo "missing kernel module?" >&2; exit 1;; esac
echo "$rules" | $REAL "$@"`)
	cfg := testConfig(NFT)
	// A set of another type in the way of the probe's own is as good as no such type.
	ns.run(t, "ipset create "+probeKeys(t, &cfg)+" hash:net")
	err := ns.do(func() error {
		_, err := Open(cfg)
		return err
	})
	if !errors.Is(err, ErrUnsupported) {
		t.Fatalf("Open: %v", err)
	}
	for _, want := range []string{"is no " + keyType, "conntrack match", "xt_conntrack"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant %q", err, want)
		}
	}
	for _, no := range []string{"set match", "SET target", "NFQUEUE target"} {
		if strings.Contains(err.Error(), no) {
			t.Errorf("%v\nnames %s, which works or cannot be tried", err, no)
		}
	}
}

func probeKeys(t *testing.T, cfg *Config) string {
	t.Helper()
	cfg.setDefaults()
	n, err := newNames(cfg.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	keys, _, _ := n.probeSets(ipv4)
	return keys
}

func TestAutoBackend(t *testing.T) {
	open := func(t *testing.T, script string) Backend {
		ns := newNamespace(t)
		ns.run(t, script)
		return ns.open(t, testConfig(Auto)).Backend()
	}
	for want, script := range map[Backend]string{
		NFT:    "iptables-nft -t mangle -N KUBE-IPTABLES-HINT",
		Legacy: "ip6tables-legacy -t mangle -N KUBE-KUBELET-CANARY",
	} {
		if got := open(t, script); got != want {
			t.Errorf("after %q: %v", script, got)
		}
	}
	if got := open(t, "true"); got != NFT {
		t.Errorf("without hints: %v, but iptables in PATH is nft", got)
	}
	shadow(t, "iptables-restore", `[ "$1" = --version ] && echo "iptables-restore v1.8.9 (legacy)"`)
	if got := open(t, "true"); got != Legacy {
		t.Errorf("without hints: %v, but iptables in PATH is legacy", got)
	}
}

// A backend that was asked for by its plain name must not load legacy tables.
func TestAutoBackendLoadsNoLegacyTables(t *testing.T) {
	ns := newNamespace(t)
	ns.open(t, testConfig(Auto))
	if got := ns.run(t, "cat /proc/thread-self/net/ip_tables_names"); strings.Contains(got, mangle) {
		t.Errorf("looking for the kubelet's hint loaded the legacy tables %q", got)
	}
}
