package deploytest

import (
	"fmt"
	"slices"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	mobyseccomp "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// confine loads Docker's default seccomp profile, which containerd and CRI-O derive
// theirs from, into the calling thread, as it is for these capabilities.
func confine(capabilities []string) error {
	bounding := make([]string, len(capabilities))
	for i, c := range capabilities {
		bounding[i] = "CAP_" + c
	}
	profile, err := mobyseccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: bounding}}})
	if err != nil {
		return fmt.Errorf("the default seccomp profile: %w", err)
	}
	policy := seccomp.Policy{DefaultAction: seccomp.ActionErrno}
	info, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	for i := range profile.Syscalls {
		group, err := seccompGroup(&profile.Syscalls[i], info)
		if err != nil {
			return err
		}
		policy.Syscalls = append(policy.Syscalls, group)
	}
	return seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Policy: policy})
}

// seccompGroup translates one rule; calls of other architectures are left out.
func seccompGroup(rule *specs.LinuxSyscall, info *arch.Info) (seccomp.SyscallGroup, error) {
	names := slices.DeleteFunc(slices.Clone(rule.Names), func(name string) bool {
		_, exists := info.SyscallNames[name]
		return !exists
	})
	group := seccomp.SyscallGroup{Action: seccomp.ActionAllow}
	if rule.Action == specs.ActErrno {
		group.Action = seccomp.ActionErrno
		if rule.ErrnoRet != nil {
			group.Action |= seccomp.Action(*rule.ErrnoRet)
		}
	} else if rule.Action != specs.ActAllow {
		return group, fmt.Errorf("seccomp rule for %q: unknown action %s", rule.Names, rule.Action)
	}
	if len(rule.Args) == 0 {
		group.Names = names
		return group, nil
	}
	var conditions seccomp.ArgumentConditions
	for _, a := range rule.Args {
		c, err := seccompCondition(a)
		if err != nil {
			return group, fmt.Errorf("seccomp rule for %q: %w", rule.Names, err)
		}
		conditions = append(conditions, c)
	}
	for _, name := range names {
		group.NamesWithCondtions = append(group.NamesWithCondtions, seccomp.NameWithConditions{Name: name, Conditions: conditions})
	}
	return group, nil
}

func seccompCondition(a specs.LinuxSeccompArg) (seccomp.Condition, error) {
	c := seccomp.Condition{Argument: uint32(a.Index), Value: a.Value}
	switch {
	case a.Op == specs.OpEqualTo:
		c.Operation = seccomp.Equal
	case a.Op == specs.OpLessThan:
		c.Operation = seccomp.LessThan
	case a.Op == specs.OpGreaterThan:
		c.Operation = seccomp.GreaterThan
	case a.Op == specs.OpMaskedEqual && a.ValueTwo == 0:
		c.Operation = seccomp.BitsNotSet
	default:
		return c, fmt.Errorf("unknown comparison %s", a.Op)
	}
	return c, nil
}
