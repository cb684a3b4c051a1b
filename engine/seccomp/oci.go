//go:build linux

package seccomp

import (
	"bytes"
	"encoding/json"
)

// ociProfile is what containerd, CRI-O and Docker read: the object linux.seccomp of the OCI
// runtime specification, with comments, which they overlook.
type ociProfile struct {
	DefaultAction string    `json:"defaultAction"`
	DefaultErrno  uint      `json:"defaultErrnoRet"`
	Architectures []string  `json:"architectures"`
	Syscalls      []ociRule `json:"syscalls"`
}

type ociRule struct {
	Names   []string `json:"names"`
	Action  string   `json:"action"`
	Errno   uint     `json:"errnoRet,omitempty"`
	Args    []ociArg `json:"args,omitempty"`
	Comment string   `json:"comment,omitempty"`
}

// ociArg holds if the argument, masked with Value, is ValueTwo.
type ociArg struct {
	Index    uint   `json:"index"`
	Value    uint64 `json:"value"`
	ValueTwo uint64 `json:"valueTwo"`
	Op       string `json:"op"`
}

// OCI is the profile as a file for container runtimes.
func (p *Profile) OCI() ([]byte, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	var out ociProfile
	out.DefaultAction, out.DefaultErrno = ociAction(p.Default)
	for _, a := range architectures {
		out.Architectures = append(out.Architectures, a.oci)
	}
	for i := range p.Rules {
		if p.Rules[i].Action != p.Default { // libseccomp refuses rules that change nothing
			out.Syscalls = append(out.Syscalls, p.Rules[i].oci())
		}
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(out)
	return text.Bytes(), err
}

func (r *Rule) oci() ociRule {
	out := ociRule{Names: r.Calls, Comment: r.Why}
	out.Action, out.Errno = ociAction(r.Action)
	for _, a := range r.When {
		out.Args = append(out.Args, ociArg{a.Index, a.Mask, a.Value, "SCMP_CMP_MASKED_EQ"})
	}
	return out
}

func ociAction(a Action) (name string, errno uint) {
	if e, refused := a.refused(); refused {
		return "SCMP_ACT_ERRNO", uint(e)
	}
	return "SCMP_ACT_ALLOW", 0
}
