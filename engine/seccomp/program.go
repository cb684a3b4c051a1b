//go:build linux

package seccomp

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
)

// Offsets in struct seccomp_data (linux/seccomp.h) of a little-endian machine, which
// all architectures with a table are.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
	argSize   = 8
	wordSize  = 4
)

// segment is what becomes of the system calls from a number on, up to the next segment.
type segment struct {
	from uint32
	code []bpf.Instruction // ends with a return; the number is in A
}

// Program is the profile as the kernel takes it, for a GOARCH. The number of a call is
// looked up in a binary tree: some 8 comparisons, wherever it stands in the list. From 5.11 on
// the kernel runs no program at all for calls that are always allowed (commit 8e01b51a31a1).
//
// github.com/elastic/go-seccomp-bpf has the tables of numbers. Its compiler is not
// used: it compares with each call in turn, and after a condition that does not hold it compares the
// calls that follow with the argument instead of the number (v1.6.0).
func (p *Profile) Program(goarch string) ([]bpf.RawInstruction, error) {
	table, err := arch.GetInfo(goarch)
	if err != nil {
		return nil, fmt.Errorf("no table of system calls for %s: %w", goarch, err)
	}
	if err := p.validate(); err != nil {
		return nil, err
	}
	program := append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: wordSize},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(table.ID), SkipTrue: 1},
		bpf.RetConstant{Val: uint32(p.Default)},
		bpf.LoadAbsolute{Off: offNumber, Size: wordSize},
	}, search(p.segments(table))...)
	return bpf.Assemble(program)
}

// segments are in the order of numbers; neighbours differ.
func (p *Profile) segments(table *arch.Info) []segment {
	otherwise := []bpf.Instruction{bpf.RetConstant{Val: uint32(p.Default)}}
	rules := map[uint32][]*Rule{}
	for i := range p.Rules {
		for _, name := range p.Rules[i].Calls {
			if n, ok := table.SyscallNames[name]; ok {
				rules[uint32(n)] = append(rules[uint32(n)], &p.Rules[i])
			}
		}
	}
	all := []segment{{0, otherwise}}
	add := func(s segment) {
		last := &all[len(all)-1]
		switch {
		case last.from == s.from:
			last.code = s.code
		case !slices.Equal(last.code, s.code):
			all = append(all, s)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(rules)) {
		add(segment{n, choose(rules[n], p.Default)})
		if _, next := rules[n+1]; !next {
			add(segment{n + 1, otherwise})
		}
	}
	return all
}

// search finds the segment of the number in A.
func search(all []segment) []bpf.Instruction {
	if len(all) == 1 {
		return all[0].code
	}
	middle := len(all) / 2
	below, above := search(all[:middle]), search(all[middle:])
	var out []bpf.Instruction
	if len(below) <= math.MaxUint8 {
		out = append(out, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: all[middle].from, SkipTrue: uint8(len(below))})
	} else { // farther than a conditional jump goes
		out = append(out, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: all[middle].from, SkipFalse: 1}, bpf.Jump{Skip: uint32(len(below))})
	}
	return append(append(out, below...), above...)
}

// choose returns the action of the first rule that holds.
func choose(rules []*Rule, otherwise Action) []bpf.Instruction {
	var out []bpf.Instruction
	for _, r := range rules {
		out = append(out, r.check()...)
		if len(r.When) == 0 {
			return out
		}
	}
	return append(out, bpf.RetConstant{Val: uint32(otherwise)})
}

// check returns the rule's action if all conditions hold, and goes on behind itself if not.
func (r *Rule) check() []bpf.Instruction {
	out := []bpf.Instruction{bpf.RetConstant{Val: uint32(r.Action)}}
	for _, a := range slices.Backward(r.When) {
		for _, half := range []uint32{1, 0} {
			out = append(a.compare(half, uint8(len(out))), out...)
		}
	}
	return out
}

// compare skips instructions if the argument's low (0) or high (1) half is not as wanted.
func (a Arg) compare(half uint32, skip uint8) []bpf.Instruction {
	mask, value := uint32(a.Mask>>(32*half)), uint32(a.Value>>(32*half))
	if mask == 0 {
		return nil
	}
	out := []bpf.Instruction{bpf.LoadAbsolute{Off: offArgs + uint32(a.Index)*argSize + half*wordSize, Size: wordSize}}
	if mask != math.MaxUint32 {
		out = append(out, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask})
	}
	return append(out, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: skip})
}

// architecture is one that there are profiles for.
type architecture struct {
	oci   string // in profiles for container runtimes
	table *arch.Info
}

var architectures = []architecture{
	{"SCMP_ARCH_X86_64", arch.X86_64},
	{"SCMP_ARCH_AARCH64", arch.AARCH64},
}
