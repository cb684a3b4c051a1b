package policy

import (
	"cmp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// vocabulary is the words that policies tell pods apart by, and how often they
// use each. A label key or port name that no policy mentions cannot make a
// difference, so it makes no group: pods with unique labels (pod-template-hash,
// statefulset pod name) still share one.
type vocabulary struct {
	labelKeys map[string]int
	portNames map[string]int
}

func newVocabulary() vocabulary {
	return vocabulary{labelKeys: map[string]int{}, portNames: map[string]int{}}
}

// add counts the words of a policy n times, -1 takes them out.
func (v vocabulary) add(p *parsedPolicy, n int) {
	v.addSelector(p.target, n)
	for d := range p.rules {
		for i := range p.rules[d] {
			for _, port := range p.rules[d][i].ports {
				if port.name != "" {
					count(v.portNames, port.name, n)
				}
			}
			for _, peer := range p.rules[d][i].peers {
				if peer.block == nil {
					v.addSelector(peer.pods, n)
				}
			}
		}
	}
}

func (v vocabulary) addSelector(sel labels.Selector, n int) {
	reqs, _ := sel.Requirements()
	for i := range reqs {
		count(v.labelKeys, reqs[i].Key(), n)
	}
}

func count(words map[string]int, word string, n int) {
	if words[word] += n; words[word] == 0 {
		delete(words, word)
	}
}

// group is the pods that no selector and no named port can tell apart: same
// namespace, same labels and named ports as far as the vocabulary goes.
type group struct {
	key       string
	namespace string
	labels    labels.Set // only keys of the vocabulary
	ports     *portSet   // only names of the vocabulary

	atoms    []*atom // one for each region that it holds addresses in
	held     int     // addresses
	local    int     // addresses of local pods
	wasLocal bool    // local > 0, and its policies count it

	targeting []*parsedPolicy // those that select it, by name
	selected  []*peer         // used ones that select it by labels, by id
	programs  [2]*program     // what judges its local pods, by Direction; nil: nothing isolates them

	// Marks of an update.
	touched bool // its addresses changed
	rejudge bool // its programs are to be found anew
}

// groups is the index over the groups that selectors are resolved with.
type groups struct {
	byKey map[string]*group
	// byNamespace and byLabel are inverted lists, in no order. A label's list is
	// kept per namespace and, under the namespace "", for the whole cluster.
	byNamespace map[string][]*group
	byLabel     map[labelKey][]*group
	meter       *meter
}

type labelKey struct{ namespace, key, value string }

func newGroups(m *meter) *groups {
	return &groups{meter: m, byKey: map[string]*group{}, byNamespace: map[string][]*group{}, byLabel: map[labelKey][]*group{}}
}

func (g *groups) add(gr *group) {
	g.byKey[gr.key] = gr
	g.byNamespace[gr.namespace] = append(g.byNamespace[gr.namespace], gr)
	for k, v := range gr.labels {
		for _, ns := range [...]string{"", gr.namespace} {
			at := labelKey{ns, k, v}
			g.byLabel[at] = append(g.byLabel[at], gr)
		}
	}
}

func (g *groups) remove(gr *group) {
	delete(g.byKey, gr.key)
	dropFrom(g.byNamespace, gr.namespace, gr)
	for k, v := range gr.labels {
		for _, ns := range [...]string{"", gr.namespace} {
			dropFrom(g.byLabel, labelKey{ns, k, v}, gr)
		}
	}
}

// dropFrom takes one element out of a list in no order, and an empty list out of
// the map.
func dropFrom[K, T comparable](lists map[K][]T, key K, v T) {
	list := lists[key]
	i := slices.Index(list, v)
	if i < 0 {
		return
	}
	var zero T
	last := len(list) - 1
	list[i], list[last] = list[last], zero
	if last == 0 {
		delete(lists, key)
		return
	}
	lists[key] = list[:last]
}

// groupKeyer spells what makes a pod's group.
type groupKeyer struct {
	words vocabulary
	keys  []string
	ports []ContainerPort
	buf   []byte
}

// key is valid until the next call. Its separators cannot occur in namespace
// names, label keys, label values or port names.
func (k *groupKeyer) key(p *Pod) []byte {
	k.keys = k.keys[:0]
	for key := range p.Labels {
		if k.words.labelKeys[key] > 0 {
			k.keys = append(k.keys, key)
		}
	}
	slices.Sort(k.keys)
	b := append(k.buf[:0], p.Namespace...)
	for _, key := range k.keys {
		b = append(append(b, 0), key...)
		b = append(append(b, '='), p.Labels[key]...)
	}
	k.ports = k.words.knownPorts(k.ports[:0], p.Ports)
	for _, port := range k.ports {
		b = append(append(b, 0, ':'), port.Name...)
		b = append(b, 0, byte(port.Protocol), byte(port.Port>>8), byte(port.Port))
	}
	k.buf = b
	return b
}

func (v vocabulary) knownLabels(p *Pod) labels.Set {
	known := labels.Set{}
	for k, value := range p.Labels {
		if v.labelKeys[k] > 0 {
			known[k] = value
		}
	}
	return known
}

// knownPorts appends the ports whose names policies mention, sorted and once.
func (v vocabulary) knownPorts(known, ports []ContainerPort) []ContainerPort {
	for _, p := range ports {
		if v.portNames[p.Name] > 0 {
			known = append(known, p)
		}
	}
	slices.SortFunc(known, compareContainerPorts)
	return slices.Compact(known)
}

func compareContainerPorts(a, b ContainerPort) int {
	return cmp.Or(
		strings.Compare(a.Name, b.Name),
		cmp.Compare(a.Protocol, b.Protocol),
		cmp.Compare(a.Port, b.Port),
	)
}

// costOf a selector is how much it compares.
func costOf(sel labels.Selector) int {
	reqs, _ := sel.Requirements()
	return 1 + len(reqs)
}

// inNamespace lists the groups of one namespace that sel selects, in no order.
func (g *groups) inNamespace(namespace string, sel labels.Selector) []*group {
	candidates := g.byNamespace[namespace]
	if list, ok := g.shortest(namespace, sel); ok && len(list) < len(candidates) {
		candidates = list
	}
	g.meter.compared(len(candidates) * costOf(sel))
	var found []*group
	for _, gr := range candidates {
		if sel.Matches(gr.labels) {
			found = append(found, gr)
		}
	}
	return found
}

// inNamespaces lists the groups that sel selects in the namespaces that in
// accepts, in no order.
func (g *groups) inNamespaces(in func(namespace string) bool, sel labels.Selector) []*group {
	list, narrow := g.shortest("", sel)
	if narrow && len(list) < len(g.byNamespace) {
		g.meter.compared(len(list) * costOf(sel))
		var found []*group
		for _, gr := range list {
			if in(gr.namespace) && sel.Matches(gr.labels) {
				found = append(found, gr)
			}
		}
		return found
	}
	var found []*group
	for name := range g.byNamespace {
		if in(name) {
			found = append(found, g.inNamespace(name, sel)...)
		}
	}
	return found
}

// shortest returns the shortest inverted list that contains every group sel
// can select; ok is false when no requirement of sel names label values.
func (g *groups) shortest(namespace string, sel labels.Selector) (list []*group, ok bool) {
	reqs, selectable := sel.Requirements()
	if !selectable {
		return nil, true
	}
	for i := range reqs {
		if !namesValues(&reqs[i]) {
			continue
		}
		if l := g.withAnyValue(namespace, &reqs[i]); !ok || len(l) < len(list) {
			list, ok = l, true
		}
	}
	return list, ok
}

func namesValues(r *labels.Requirement) bool {
	switch r.Operator() {
	case selection.In, selection.Equals, selection.DoubleEquals:
		return true
	}
	return false
}

// withAnyValue may share its result with the index. A group has one value for a
// key, so the lists of several values have nothing in common.
func (g *groups) withAnyValue(namespace string, r *labels.Requirement) []*group {
	values := distinct(r.ValuesUnsorted())
	if len(values) == 1 {
		return g.byLabel[labelKey{namespace, r.Key(), values[0]}]
	}
	var union []*group
	for _, v := range values {
		union = append(union, g.byLabel[labelKey{namespace, r.Key(), v}]...)
	}
	return union
}

func distinct(values []string) []string {
	if len(values) < 2 {
		return values
	}
	values = slices.Clone(values)
	slices.Sort(values)
	return slices.Compact(values)
}
