package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// vocabulary is the words that policies tell pods apart by. A label key or port
// name that no policy mentions cannot make a difference, so it makes no group:
// pods with unique labels (pod-template-hash, statefulset pod name) still share one.
type vocabulary struct {
	labelKeys map[string]bool
	portNames map[string]bool
}

func newVocabulary() vocabulary {
	return vocabulary{labelKeys: map[string]bool{}, portNames: map[string]bool{}}
}

func (v vocabulary) addSelector(sel labels.Selector) {
	reqs, _ := sel.Requirements()
	for _, r := range reqs {
		v.labelKeys[r.Key()] = true
	}
}

// group is the pods that no selector and no named port can tell apart: same
// namespace, same labels and named ports as far as the vocabulary goes.
type group struct {
	namespace string
	labels    labels.Set      // only keys of the vocabulary
	ports     []ContainerPort // only names of the vocabulary; sorted, unique
}

// groups is the index over the groups of a snapshot that selectors are
// resolved with. Group numbers are ranks by namespace and labels, so they do
// not depend on the order of the pods.
type groups struct {
	all        []group
	namespaces map[string]labels.Set
	names      []string // of namespaces, sorted
	// byNamespace and byLabel are inverted lists, each ascending. A label's list
	// is kept per namespace and, under the namespace "", for the whole cluster.
	byNamespace map[string][]uint32
	byLabel     map[labelKey][]uint32
}

type labelKey struct{ namespace, key, value string }

// newGroups sorts pods into groups; of[i] is the group of pods[i].
func newGroups(namespaces map[string]labels.Set, pods []*Pod, words vocabulary) (g *groups, of []uint32) {
	type sample struct {
		first *Pod
		id    uint32
	}
	byKey := map[string]*sample{}
	samples := make([]*sample, len(pods))
	keyer := groupKeyer{words: words}
	for i, p := range pods {
		key := keyer.key(p)
		sm, known := byKey[string(key)]
		if !known {
			sm = &sample{first: p}
			byKey[string(key)] = sm
		}
		samples[i] = sm
	}
	g = &groups{
		namespaces:  namespaces,
		byNamespace: map[string][]uint32{},
		byLabel:     map[labelKey][]uint32{},
	}
	g.names = slices.Sorted(maps.Keys(g.namespaces))
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		sm := byKey[key]
		sm.id = g.add(sm.first, words)
	}
	of = make([]uint32, len(pods))
	for i, sm := range samples {
		of[i] = sm.id
	}
	return g, of
}

func (g *groups) add(p *Pod, words vocabulary) uint32 {
	id := uint32(len(g.all))
	known := labels.Set{}
	for k, v := range p.Labels {
		if !words.labelKeys[k] {
			continue
		}
		known[k] = v
		for _, ns := range [...]string{"", p.Namespace} {
			at := labelKey{ns, k, v}
			g.byLabel[at] = append(g.byLabel[at], id)
		}
	}
	g.all = append(g.all, group{namespace: p.Namespace, labels: known, ports: knownPorts(p.Ports, words)})
	g.byNamespace[p.Namespace] = append(g.byNamespace[p.Namespace], id)
	return id
}

// groupKeyer spells what makes a pod's group.
type groupKeyer struct {
	words vocabulary
	keys  []string
	buf   []byte
}

// key is valid until the next call. Its separators cannot occur in namespace
// names, label keys, label values or port names.
func (k *groupKeyer) key(p *Pod) []byte {
	k.keys = k.keys[:0]
	for key := range p.Labels {
		if k.words.labelKeys[key] {
			k.keys = append(k.keys, key)
		}
	}
	slices.Sort(k.keys)
	b := append(k.buf[:0], p.Namespace...)
	for _, key := range k.keys {
		b = append(append(b, 0), key...)
		b = append(append(b, '='), p.Labels[key]...)
	}
	for _, port := range knownPorts(p.Ports, k.words) {
		b = append(append(b, 0, ':'), port.Name...)
		b = append(b, 0, byte(port.Protocol), byte(port.Port>>8), byte(port.Port))
	}
	k.buf = b
	return b
}

func knownPorts(ports []ContainerPort, words vocabulary) []ContainerPort {
	var known []ContainerPort
	for _, p := range ports {
		if words.portNames[p.Name] {
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

// namespaceLabels gives every namespace that an object names its labels, with
// the one that the API server itself sets (KEP-2161).
func namespaceLabels(s *Snapshot) map[string]labels.Set {
	all := map[string]labels.Set{}
	for _, n := range s.Namespaces {
		set := make(labels.Set, len(n.Labels)+1)
		maps.Copy(set, n.Labels)
		set[corev1.LabelMetadataName] = n.Name
		all[n.Name] = set
	}
	implied := func(name string) {
		if _, ok := all[name]; !ok {
			all[name] = labels.Set{corev1.LabelMetadataName: name}
		}
	}
	for _, p := range s.Pods {
		implied(p.Namespace)
	}
	for _, p := range s.Policies {
		implied(p.Namespace)
	}
	return all
}

// inNamespace lists the groups of one namespace that sel selects, ascending.
func (g *groups) inNamespace(namespace string, sel labels.Selector) []uint32 {
	candidates := g.byNamespace[namespace]
	if list, ok := g.shortest(namespace, sel); ok && len(list) < len(candidates) {
		candidates = list
	}
	var found []uint32
	for _, id := range candidates {
		if sel.Matches(g.all[id].labels) {
			found = append(found, id)
		}
	}
	return found
}

// inNamespaces lists the groups that sel selects in the namespaces that
// nsSel selects, ascending.
func (g *groups) inNamespaces(nsSel, sel labels.Selector) []uint32 {
	var names []string
	for _, name := range g.names {
		if nsSel.Matches(g.namespaces[name]) {
			names = append(names, name)
		}
	}
	list, ok := g.shortest("", sel)
	if !ok || len(names) < len(list) {
		var found []uint32
		for _, name := range names {
			found = append(found, g.inNamespace(name, sel)...)
		}
		slices.Sort(found)
		return found
	}
	var found []uint32
	for _, id := range list {
		if _, in := slices.BinarySearch(names, g.all[id].namespace); in && sel.Matches(g.all[id].labels) {
			found = append(found, id)
		}
	}
	return found
}

// shortest returns the shortest inverted list that contains every group sel
// can select; ok is false when no requirement of sel names label values.
func (g *groups) shortest(namespace string, sel labels.Selector) (list []uint32, ok bool) {
	reqs, selectable := sel.Requirements()
	if !selectable {
		return nil, true
	}
	for _, r := range reqs {
		if !namesValues(r) {
			continue
		}
		if l := g.withAnyValue(namespace, r); !ok || len(l) < len(list) {
			list, ok = l, true
		}
	}
	return list, ok
}

func namesValues(r labels.Requirement) bool {
	switch r.Operator() {
	case selection.In, selection.Equals, selection.DoubleEquals:
		return true
	}
	return false
}

func (g *groups) withAnyValue(namespace string, r labels.Requirement) []uint32 {
	values := r.ValuesUnsorted()
	if len(values) == 1 {
		return g.byLabel[labelKey{namespace, r.Key(), values[0]}]
	}
	var union []uint32
	for _, v := range values {
		union = append(union, g.byLabel[labelKey{namespace, r.Key(), v}]...)
	}
	slices.Sort(union)
	return slices.Compact(union)
}
