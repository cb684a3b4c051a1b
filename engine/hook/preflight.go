package hook

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netverdict/netverdict/policy"
)

// ErrPermission and ErrUnsupported are wrapped by the errors of Open when the
// process lacks a privilege, or the kernel a feature.
var (
	ErrPermission  = errors.New("permission denied")
	ErrUnsupported = errors.New("missing kernel feature")
)

// capability is a privilege that a process may have or lack, see capabilities(7).
type capability struct {
	number int
	name   string // without CAP_
	use    string
}

var capabilities = []capability{
	{unix.CAP_NET_ADMIN, "NET_ADMIN", "to change packet filter rules, sets and connection marks, and to read queues"},
	{unix.CAP_NET_RAW, "NET_RAW", "because iptables asks the kernel about sets through a raw socket"},
}

// checkPrivilege says early and clearly what would fail in many places, and as
// something else: without CAP_NET_RAW iptables says that a kernel module is missing.
// All that is missing is named together.
func checkPrivilege() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 has two words for each set
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read the capabilities of this process: %w", err)
	}
	var names, needs []string
	for _, c := range capabilities {
		if data[c.number/32].Effective&(1<<(c.number%32)) == 0 {
			names = append(names, c.name)
			needs = append(needs, "CAP_"+c.name+" "+c.use)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%w: need %s; running as uid %d (run as root with all its capabilities, or add %s to the container's securityContext.capabilities)",
		ErrPermission, strings.Join(needs, "; and "), os.Geteuid(), strings.Join(names, " and "))
}

// feature is something of the kernel that a rule needs.
type feature struct {
	name   string
	spec   string // a rule that uses it
	use    string // what for
	module string
	option string // kernel option
}

// features lists what the rules of a chain need.
func (c *chain) features() []feature {
	keys, _, _ := c.names.probeSets(c.family)
	fs := []feature{
		{"comment match", "-m comment --comment probe", "to find the counters of rules", "xt_comment", "CONFIG_NETFILTER_XT_MATCH_COMMENT"},
		{"mark match", "-m mark --mark " + c.packet.decided(), "to read verdicts", "xt_mark", "CONFIG_NETFILTER_XT_MARK"},
		{"MARK target", "-j MARK --set-xmark " + c.packet.cleared(), "to hide verdicts", "xt_mark", "CONFIG_NETFILTER_XT_MARK"},
		{"connmark match", "-m connmark --mark " + c.conn.anyNumber(policy.Allow), "to keep allowed flows in the kernel", "xt_connmark", "CONFIG_NETFILTER_XT_CONNMARK"},
		{"CONNMARK target", "-j CONNMARK --set-xmark " + c.conn.cleared(), "to keep allowed flows in the kernel", "xt_connmark", "CONFIG_NETFILTER_XT_CONNMARK"},
		{"conntrack match", "-m conntrack --ctdir REPLY", "to tell replies from requests", "xt_conntrack", "CONFIG_NETFILTER_XT_MATCH_CONNTRACK"},
		{"addrtype match", "-m addrtype --src-type LOCAL", "to let the node's own traffic pass", "xt_addrtype", "CONFIG_NETFILTER_XT_MATCH_ADDRTYPE"},
		{"set match", fmt.Sprintf("-m set --match-set %s %s", keys, key), "to find packets of isolated pods", "xt_set", "CONFIG_NETFILTER_XT_SET"},
		{"SET target", fmt.Sprintf("-j SET --add-set %s %s --exist --timeout 1", keys, key), "to remember verdicts", "xt_set", "CONFIG_NETFILTER_XT_SET"},
		{"NFQUEUE target", c.queueTarget(), "to ask for verdicts", "xt_NFQUEUE", "CONFIG_NETFILTER_XT_TARGET_NFQUEUE"},
	}
	if c.askLimit != 0 {
		fs = append(fs, feature{"hashlimit match", c.perSource("above", c.askLimit, "probe"), "to bound floods (an ask limit of 0 does without)", "xt_hashlimit", "CONFIG_NETFILTER_XT_MATCH_HASHLIMIT"})
	}
	if c.antiSpoof {
		fs = append(fs, feature{"rpfilter match", "-m rpfilter --invert", "to find spoofed sources (only with anti-spoof)", "ipt_rpfilter, ip6t_rpfilter", "CONFIG_IP_NF_MATCH_RPFILTER, CONFIG_IP6_NF_MATCH_RPFILTER"})
	}
	if c.family == ipv6 {
		fs = append(fs,
			feature{"icmp6 match", "-p ipv6-icmp -m icmp6 --icmpv6-type 133", "to let neighbour discovery pass", "ip6_tables", "CONFIG_IP6_NF_IPTABLES"},
			feature{"hl match", "-m hl --hl-eq 255", "to tell neighbour discovery from what was routed", "xt_hl", "CONFIG_NETFILTER_XT_MATCH_HL"})
	}
	return fs
}

// probe tries what the rules need in a chain of the real table that nothing
// jumps to, and removes it again. All that is missing is named together.
func (s *stack) probe() (err error) {
	// What cannot be read cannot be removed again.
	if _, err := s.tables.read(); err != nil {
		return err
	}
	keys, addrs, links := s.names.probeSets(s.family)
	defer func() { err = errors.Join(err, s.removeProbe()) }()
	noSets := errors.Join(
		s.sets.ensure(s.keySpec(keys, true)),
		s.sets.ensure(s.addrSpec(addrs)),
		s.sets.ensure(s.bridgesSpec(links)))
	if s.mayAnswer {
		s.logsDialed = s.tables.apply(s.probeInput([]feature{{spec: s.dialedRate() + " " + s.dialed()}})) == nil
	}
	return errors.Join(
		s.unsupported(noSets),
		s.unsupported(connmarks{s.family, s.conn}.try()),
		s.probeFeatures(keys, noSets == nil))
}

// unsupported says that an error, if it is one, is about the kernel.
func (s *stack) unsupported(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%v: %w: %w", s.family, ErrUnsupported, err)
}

// probeFeatures tries all features at once and, if that fails, each. Those that name
// a set cannot be tried without it, and need not be: its absence is an error already.
func (s *stack) probeFeatures(set string, exists bool) error {
	features := slices.DeleteFunc(s.features(), func(f feature) bool { return !exists && strings.Contains(f.spec, set) })
	if s.tables.apply(s.probeInput(features)) == nil {
		return nil
	}
	return s.probeEach(features)
}

func (s *stack) probeEach(features []feature) error {
	var missing []error
	for _, f := range features {
		if err := s.tables.apply(s.probeInput([]feature{f})); err != nil {
			missing = append(missing, fmt.Errorf("%s, needed %s: load the module %s or enable the kernel option %s: %w",
				f.name, f.use, f.module, f.option, err))
		}
	}
	if len(missing) == 0 { // each works alone: it was the table or its lock, and is over
		return nil
	}
	hint := "; Debian has the modules in the package linux-image, Ubuntu in linux-modules-extra, RHEL in kernel-modules-extra"
	if s.tables.backend == NFT {
		hint += "; all of them also need CONFIG_NFT_COMPAT"
	}
	return fmt.Errorf("%v: %w%s:\n%w", s.tables, ErrUnsupported, hint, errors.Join(missing...))
}

func (s *stack) probeInput(features []feature) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n:%s - [0:0]\n", mangle, s.names.probe())
	for _, f := range features {
		fmt.Fprintf(&b, "-A %s %s\n", s.names.probe(), f.spec)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

func (s *stack) removeProbe() error {
	have, err := s.tables.read()
	if err == nil {
		err = s.tables.removeChains(&have, []string{s.names.probe()})
	}
	keys, addrs, links := s.names.probeSets(s.family)
	return errors.Join(err, s.sets.destroy(keys), s.sets.destroy(addrs), s.sets.destroy(links))
}
