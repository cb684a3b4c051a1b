package hubble

import (
	"fmt"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// fieldMask is the fields of a flow to send; a field with an empty mask is sent
// whole. nil sends everything.
type fieldMask map[protoreflect.Name]fieldMask

// impliedBy are fields without which others cannot be read: of a policy verdict, the
// direction and the policies. The hubble command (1.19) forgets them in the mask that
// it sends by default, and then prints "TRAFFIC_DIRECTION_UNKNOWN" and, even with
// --print-policy-names, no policy.
var impliedBy = map[string][]string{
	"event_type": {
		"traffic_direction", "policy_match_type",
		"egress_allowed_by", "ingress_allowed_by", "egress_denied_by", "ingress_denied_by",
	},
}

func newFieldMask(m *fieldmaskpb.FieldMask) (fieldMask, error) {
	if len(m.GetPaths()) == 0 {
		return nil, nil
	}
	if _, err := fieldmaskpb.New((*flowpb.Flow)(nil), m.GetPaths()...); err != nil {
		return nil, fmt.Errorf("not all of %q are fields of a flow: %w", m.GetPaths(), err)
	}
	mask := fieldMask{}
	for _, path := range m.GetPaths() {
		mask.add(strings.Split(path, "."))
		for _, implied := range impliedBy[path] {
			mask.add([]string{implied})
		}
	}
	return mask, nil
}

func (m fieldMask) add(path []string) {
	name := protoreflect.Name(path[0])
	inner, known := m[name]
	switch {
	case len(path) == 1:
		m[name] = fieldMask{} // the whole field, whatever else is asked of it
		return
	case known && len(inner) == 0:
		return
	case !known:
		inner = fieldMask{}
		m[name] = inner
	}
	inner.add(path[1:])
}

func (m fieldMask) apply(f *flowpb.Flow) {
	if m != nil {
		m.prune(f.ProtoReflect())
	}
}

func (m fieldMask) prune(msg protoreflect.Message) {
	msg.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		inner, keep := m[d.Name()]
		switch {
		case !keep:
			msg.Clear(d)
		case len(inner) > 0: // a path goes on only into single messages
			inner.prune(v.Message())
		}
		return true
	})
}
